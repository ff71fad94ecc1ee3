import json
import os
import signal
from pathlib import Path

import pytest
import torch

import fdkernels as fdk
from fdistill import config, run, trainer
from fdistill.config import OptimizerConfig
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
    """A real SIGINT to this process, in the middle of the iteration after `step`."""
    ahead = Distiller._update_student

    def update(self):
        if self.step == step:
            os.kill(os.getpid(), signal.SIGINT)
        ahead(self)

    monkeypatch.setattr(Distiller, "_update_student", update)


@pytest.mark.parametrize("preset", ["digits", "gmm"])
def test_stopped_and_resumed_equals_unbroken(preset, tiny_digits, tiny_gmm, monkeypatch):
    overrides = tiny_digits if preset == "digits" else [*tiny_gmm, "phases=[[fake,discriminator],[student]]"]
    unbroken = start(preset, [*overrides, "name=unbroken"])
    unbroken.train()
    with monkeypatch.context() as patch:
        interrupt_at(patch, 7)  # off the log's, the checkpoints' and the data's rhythm
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


@pytest.mark.parametrize(("preset", "kind"), [("digits", "edm"), ("gmm", "edm")])
def test_the_student_learns_through_the_fused_loss_alone(preset, kind, tiny_digits, tiny_gmm, monkeypatch):
    distiller = start(preset, [*(tiny_digits if preset == "digits" else tiny_gmm), "loss.gan_weight=0"])
    calls = []

    def recorded(student, teacher, fake, *args, **kwargs):
        calls.append(kwargs)
        prediction = kwargs["prediction"]
        # Raw outputs: what the networks say at the noised sample, not x0.
        torch.testing.assert_close(teacher, distiller.teacher(prediction.noisy, prediction.sigma))
        torch.testing.assert_close(fake, distiller.task.fake(prediction.noisy, prediction.sigma))
        loss, stats = fused(student, teacher, fake, *args, **kwargs)
        return loss * 0, stats

    fused = fdk.fused_fdiv_loss
    monkeypatch.setattr(trainer.fdk, "fused_fdiv_loss", recorded)
    before = [p.clone() for p in distiller.task.student.parameters()]
    distiller._update_student()
    assert [call["prediction"].kind for call in calls] == [kind]
    # The loss switched off, nothing moves: there is no other gradient.
    assert all(torch.equal(a, b) for a, b in zip(before, distiller.task.student.parameters(), strict=True))


def test_each_role_trains_itself_alone(tiny_digits):
    distiller = start("digits", tiny_digits)

    def parameters():
        nets = {"teacher": distiller.teacher, **distiller.networks}
        return {name: torch.cat([p.detach().flatten().clone() for p in net.parameters()]) for name, net in nets.items()}

    def moved(update):
        before = parameters()
        update()
        after = parameters()
        return {name for name in before if not torch.equal(before[name], after[name])}

    x = distiller.task.student(distiller.task.noise(8, distiller.generator)).detach()
    noisy, sigma = distiller._noised(x)
    assert moved(lambda: distiller._update_fake(x, noisy, sigma)) == {"fake"}
    assert moved(lambda: distiller._update_discriminator(noisy, sigma)) == {"discriminator"}
    assert moved(distiller._update_student) == {"student", "ema"}
    assert all(p.grad is None for net in distiller.networks.values() for p in net.parameters())


def test_phases_decide_who_is_updated(tiny_gmm):
    distiller = start("gmm", [*tiny_gmm, "steps=11", "phases=[[fake],[fake,discriminator],[student]]"])
    assert {name: role.total_updates for name, role in distiller.roles.items()} == {
        "student": 3, "fake": 8, "discriminator": 4,
    }  # fmt: skip
    distiller.train()
    assert {name: role.updates for name, role in distiller.roles.items()} == {
        "student": 3, "fake": 8, "discriminator": 4,
    }  # fmt: skip


def test_the_control_permutes_h_and_keeps_its_values(tiny_gmm):
    plain = start("gmm", [*tiny_gmm, "loss.divergence=kl", "name=a"])
    control = start("gmm", [*tiny_gmm, "loss.divergence=kl", "loss.shuffle_weight=true", "name=b"])
    logits = torch.randn(64, 1, generator=torch.Generator().manual_seed(0))
    sigma = torch.linspace(0.1, 2, 64)
    weight = fdk.fdiv_weight(logits, sigma, divergence="kl", normalizer=plain.normalizer)
    shuffled = control.weighting(logits, sigma)["weight"]
    assert not torch.equal(weight, shuffled)
    torch.testing.assert_close(weight.sort().values, shuffled.sort().values)
    assert plain.weighting(logits, sigma)["logits"] is logits


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_gradient_that_is_not_finite_changes_nothing(bad):
    net = torch.nn.Linear(3, 1)
    role = Role("student", net, OptimizerConfig(lr=0.1), total_updates=10)
    role.update(net(torch.ones(2, 3)).sum())
    before = {key: value.clone() for key, value in net.state_dict().items()}
    moments = [state["exp_avg_sq"].clone() for state in role.optimizer.state.values()]
    role.update((net(torch.ones(2, 3)) * bad).sum())
    assert int(role.skipped) == 1
    assert_same_bits(before, net.state_dict())
    assert all(torch.equal(a, s["exp_avg_sq"]) for a, s in zip(moments, role.optimizer.state.values(), strict=True))
    role.update(net(torch.ones(2, 3)).sum())
    assert int(role.skipped) == 1
    assert not torch.equal(before["weight"], net.weight)


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
    figures = {*fdk.FDivStats._fields, "weight_spread"} - {"weight"}
    assert {f"health/{name}" for name in figures} <= row.keys() and row["health/weight_spread"] > 0
    for name in ("student", "fake", "discriminator"):
        assert row[f"{name}/grad_norm"] > 0
        assert int(distiller.roles[name].skipped) == 0
    assert 0 <= row["discriminator/accuracy_real"] <= 1
    assert len(list(Path(distiller.folder, "progress").iterdir())) == 4
