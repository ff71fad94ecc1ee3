"""A role's state, the meter, the rhythm of a run. test_steps.py tests the steps themselves."""

import copy
import math

import torch
from torch import nn

from fdistill.config import OptimizerConfig
from fdistill.roles import Meter, Role
from tests.fdistill.test_trainer import log_without_time, start


def role(**options):
    torch.manual_seed(0)
    return Role("student", nn.Linear(5, 3), OptimizerConfig(**options), total_updates=10)


def test_no_clip_is_no_clip():
    ours, bounded = role(lr=0.05, clip=0.0), role(lr=0.05, clip=1e30)
    for _ in range(3):
        for one in (ours, bounded):
            one.update(one.network(torch.full((4, 5), 50.0)).square().mean())
    for free, other in zip(ours.network.parameters(), bounded.network.parameters(), strict=True):
        assert torch.equal(free, other)
    assert not torch.equal(next(ours.network.parameters()), next(role().network.parameters()))


def test_a_role_goes_on_where_it_stood():
    first, second = role(warmup=5), role(warmup=5)
    for bad in (1.0, math.nan, 1.0):
        first.update(first.network(torch.ones(2, 5)).sum() * bad)
    second.load_state_dict(copy.deepcopy(first.state_dict()))
    assert second.updates == 3 and int(second.skipped) == 1
    assert second.learning_rate() == first.learning_rate()


def test_the_meter_is_a_mean_since_the_last_fetch():
    meter = Meter()
    for value in (1.0, 2.0, 6.0):
        meter.add("a", torch.tensor(value, requires_grad=True))
    meter.add("b", torch.tensor(math.nan))
    assert meter.fetch() == {"a": 3.0}
    meter.add("a", torch.tensor(4.0))
    resumed = Meter()
    resumed.load_state_dict(copy.deepcopy(meter.state_dict()))
    resumed.add("a", torch.tensor(5.0))
    assert resumed.fetch() == {"a": 4.5} and meter.fetch() == {"a": 4.0} and meter.fetch() == {}


def test_the_rhythm_of_a_run(tiny_gmm, monkeypatch):
    phases = "phases=[[fake],[discriminator,fake],[student]]"
    distiller = start("gmm", [*tiny_gmm, phases, "steps=7", "log_every=3", "checkpoint_every=2", "keep=9"])
    updated, apply = [], distiller._apply
    monkeypatch.setattr(
        distiller, "_apply", lambda name, loss: (updated.append((distiller.step, name)), apply(name, loss))
    )
    distiller.train()
    cycle = [(0, "fake"), (1, "fake"), (1, "discriminator"), (2, "student")]
    expected = [(3 * lap + step, name) for lap in range(3) for step, name in cycle]
    assert updated == [(step, name) for step, name in expected if step < 7]
    assert [row["step"] for row in log_without_time(distiller.folder)] == [3, 6, 7]
    saved = sorted(path.name for path in (distiller.folder / "checkpoints").glob("step-*"))
    assert saved == [f"step-{step:08d}" for step in (2, 4, 6, 7)]
    pictures = sorted(path.stem for path in (distiller.folder / "progress").iterdir())
    assert pictures == [f"step-{step:08d}" for step in (0, 2, 4, 6, 7)]
