import json
import os
import signal
from pathlib import Path

import pytest
import torch

import fdkernels as fdk
from fdistill import config, run
from fdistill.roles import Role
from fdistill.trainer import Distiller, Interrupted


def start(preset, overrides):
    cfg = config.load(preset, overrides)
    folder = run.folder_of(cfg)
    folder.mkdir(parents=True, exist_ok=True)
    return Distiller(cfg, run.task_class(cfg)(cfg), folder)


def flat(value, prefix=""):
    """Every tensor and number of a nested state, by path."""
    if isinstance(value, dict):
        return {k: v for key, inner in value.items() for k, v in flat(inner, f"{prefix}/{key}").items()}
    if isinstance(value, (list, tuple)):
        return flat(dict(enumerate(value)), prefix)
    return {prefix: value}


def everything(distiller):
    networks = {name: dict(net.state_dict()) for name, net in distiller.networks.items()}
    state = flat({"networks": networks, **distiller.state_dict()})
    return {key: value for key, value in state.items() if key != "/seconds"}


def assert_same_bits(first, second):
    assert first.keys() == second.keys()
    for key, value in first.items():
        if isinstance(value, torch.Tensor):
            assert torch.equal(value, second[key]), key
        else:
            assert value == second[key], key


def log_without_time(folder):
    rows = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    return [{key: value for key, value in row.items() if key != "seconds"} for row in rows]


def interrupt_at(monkeypatch, step):
    """Send a real SIGINT to this process, in the middle of the iteration after `step`."""
    ahead = Distiller._update_student

    def update(self):
        if self.step == step:
            os.kill(os.getpid(), signal.SIGINT)
        ahead(self)

    monkeypatch.setattr(Distiller, "_update_student", update)


KINDS = {
    "hinge": ["loss.divergence=rkl", "loss.gan=hinge", "loss.gan_weight=0.2"],
    "relativistic": ["loss.divergence=rkl", "loss.gan=relativistic", "loss.gan_weight=0.2"],
    "sid": ["loss.kind=sid", "loss.alpha=1"],
    "sid, GAN": ["loss.kind=sid", "loss.alpha=1", "loss.gan_weight=0.2"],
    "sim": ["loss.kind=sim", "loss.c=1", "loss.sigma_power=2"],
}


@pytest.mark.parametrize(
    ("preset", "kind"),
    [("digits", []), ("gmm", []), *(("gmm", kind) for kind in KINDS.values()), ("digits", KINDS["relativistic"])],
    ids=lambda value: value if isinstance(value, str) else "-".join(value),
)
def test_stopped_and_resumed_equals_unbroken(preset, kind, tiny_digits, tiny_gmm, monkeypatch):
    overrides = tiny_digits if preset == "digits" else [*tiny_gmm, "phases=[[fake,discriminator],[student]]"]
    overrides = [*overrides, *kind]
    unbroken = start(preset, [*overrides, "name=unbroken"])
    unbroken.train()
    with monkeypatch.context() as patch:
        interrupt_at(patch, 7)  # not in step with the log, the checkpoints or the data
        with pytest.raises(Interrupted, match="after step 8 of 12"):
            start(preset, [*overrides, "name=broken"]).train()
    resumed = start(preset, [*overrides, "name=broken"])
    assert resumed.restore()
    assert resumed.step == 8
    resumed.train()
    assert_same_bits(everything(unbroken), everything(resumed))
    assert log_without_time(unbroken.folder) == log_without_time(resumed.folder)


def test_a_killed_run_goes_on_from_its_last_checkpoint(tiny_gmm, monkeypatch):
    unbroken = start("gmm", [*tiny_gmm, "name=unbroken"])
    unbroken.train()

    def killed(self):
        if self.step == 7:
            raise MemoryError
        advance(self)

    advance = Distiller.iteration
    with monkeypatch.context() as patch:
        patch.setattr(Distiller, "iteration", killed)
        with pytest.raises(MemoryError):
            start("gmm", [*tiny_gmm, "name=killed"]).train()
    resumed = start("gmm", [*tiny_gmm, "name=killed"])
    resumed.restore()
    assert resumed.step == 4  # the log has a row of step 6, which is written again
    resumed.train()
    assert_same_bits(everything(unbroken), everything(resumed))
    assert log_without_time(unbroken.folder) == log_without_time(resumed.folder)


def test_seeds_differ_and_repeat(tiny_gmm):
    runs = [start("gmm", [*tiny_gmm, f"seed={seed}", f"name={i}"]) for i, seed in enumerate((0, 0, 1))]
    for distiller in runs:
        distiller.train()
    states = [everything(distiller) for distiller in runs]
    assert_same_bits(states[0], states[1])
    weight = "/networks/student/mlp.last.weight"
    assert not torch.equal(states[0][weight], states[2][weight])


def test_the_teacher_goes_on_where_it_was_stopped(tmp_path, monkeypatch):
    from fdistill import digits

    settings = ["teacher.steps=6", "teacher.batch=8", "teacher.checkpoint_every=2"]
    unbroken = digits.load_or_train_teacher(config.load("digits", [*settings, f"cache={tmp_path / 'a'}"]))
    update = Role.update

    def interrupting(self, loss):
        if self.updates == 3:
            os.kill(os.getpid(), signal.SIGINT)
        return update(self, loss)

    cfg = config.load("digits", [*settings, f"cache={tmp_path / 'b'}"])
    with monkeypatch.context() as patch:
        patch.setattr(Role, "update", interrupting)
        with pytest.raises(Interrupted, match="after step 4 of 6 of the teacher"):
            digits.load_or_train_teacher(cfg)
    resumed = digits.load_or_train_teacher(cfg)
    assert_same_bits(dict(unbroken.state_dict()), dict(resumed.state_dict()))


def test_measuring_touches_no_state(tiny_gmm):
    distiller = start("gmm", tiny_gmm)
    distiller.train()
    before = {key: value.clone() if torch.is_tensor(value) else value for key, value in everything(distiller).items()}
    distiller.task.evaluate(distiller, distiller.folder)
    distiller.sample_weights(16)
    assert_same_bits(before, everything(distiller))


def test_health_is_logged(tiny_digits):
    distiller = start("digits", tiny_digits)
    distiller.train()
    row = log_without_time(distiller.folder)[-1]
    assert row["step"] == 12
    figures = {*fdk.FDivStats._fields, "weight_spread"} - {"weight", "generator_loss"}
    assert {f"health/{name}" for name in figures} <= row.keys() and row["health/weight_spread"] > 0
    for name in ("student", "fake", "discriminator"):
        assert row[f"{name}/grad_norm"] > 0
        assert int(distiller.roles[name].skipped) == 0
    assert 0 <= row["discriminator/accuracy_real"] <= 1
    assert len(list(Path(distiller.folder, "progress").iterdir())) == 4
