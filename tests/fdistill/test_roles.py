"""A role's update, its average and its meter against their formulas; what each part of a step is trained on."""

import copy
import math

import pytest
import torch
from torch import nn
from torch.nn.functional import binary_cross_entropy_with_logits

import fdkernels as fdk
from fdistill import trainer
from fdistill.config import OptimizerConfig
from fdistill.roles import Average, Meter, Role
from tests.fdistill.test_trainer import log_without_time, start


def role(**options):
    torch.manual_seed(0)
    return Role("student", nn.Linear(5, 3), OptimizerConfig(**options), total_updates=10)


def test_an_update_is_adamw_of_the_clipped_gradient():
    ours = role(lr=0.05, betas=(0.3, 0.8), weight_decay=0.2, clip=1.5)
    net = copy.deepcopy(ours.network)
    theirs = torch.optim.AdamW(net.parameters(), lr=0.05, betas=(0.3, 0.8), weight_decay=0.2)
    for size in (0.1, 3.0, 50.0, 0.2):  # under and over the clip
        x = torch.full((4, 5), size)
        norm = ours.update(ours.network(x).square().mean())
        theirs.zero_grad()
        net(x).square().mean().backward()
        expected = torch.cat([p.grad.flatten() for p in net.parameters()]).norm()
        torch.testing.assert_close(norm, expected)
        for p in net.parameters():
            p.grad *= min(1.0, 1.5 / float(expected))
        theirs.step()
        for mine, other in zip(ours.network.parameters(), net.parameters(), strict=True):
            torch.testing.assert_close(mine, other, rtol=1e-4, atol=1e-6)
            assert mine.grad is None
    assert ours.updates == 4


def test_no_clip_is_no_clip():
    ours, bounded = role(lr=0.05, clip=0.0), role(lr=0.05, clip=1e30)
    for _ in range(3):
        for one in (ours, bounded):
            one.update(one.network(torch.full((4, 5), 50.0)).square().mean())
    for free, other in zip(ours.network.parameters(), bounded.network.parameters(), strict=True):
        assert torch.equal(free, other)
    assert not torch.equal(next(ours.network.parameters()), next(role().network.parameters()))


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, [1] * 10),
        ({"warmup": 3}, [0.25, 0.5, 0.75, *[1] * 7]),
        ({"schedule": "cosine"}, [math.cos(math.pi * i / 20) ** 2 for i in range(10)]),
        ({"schedule": "cosine", "warmup": 1}, [0.5, *[math.cos(math.pi * i / 20) ** 2 for i in range(1, 10)]]),
    ],
)
def test_learning_rates(options, expected):
    trained, found = role(lr=0.2, **options), []
    for _ in range(10):
        trained.update(trained.network(torch.ones(2, 5)).sum())
        found += [group["lr"] / 0.2 for group in trained.optimizer.param_groups]
    assert found == pytest.approx(expected)


def test_a_role_goes_on_where_it_stood():
    first, second = role(warmup=5), role(warmup=5)
    for bad in (1.0, math.nan, 1.0):
        first.update(first.network(torch.ones(2, 5)).sum() * bad)
    second.load_state_dict(copy.deepcopy(first.state_dict()))
    assert second.updates == 3 and int(second.skipped) == 1
    assert second.learning_rate() == first.learning_rate()


def test_the_average_of_weights():
    """a ← d·a + (1-d)·w with d = min(decay, (1+u)/(10+u)) after u updates."""
    net = nn.Linear(2, 2)
    average = Average(net, decay=0.5)
    expected = net.weight.detach().clone()
    for updates, decay in ((0, 0.1), (1, 2 / 11), (5, 0.4), (8, 0.5), (100, 0.5)):
        nn.init.normal_(net.weight)
        average.update(net, updates)
        expected = decay * expected + (1 - decay) * net.weight.detach()
        torch.testing.assert_close(average.network.weight, expected)
    assert not any(p.requires_grad for p in average.network.parameters())


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


# ---- what a step trains on


@pytest.fixture
def distiller(tiny_gmm, monkeypatch):
    """One whose losses are recorded, not applied."""
    distiller = start("gmm", [*tiny_gmm, "loss.gan_weight=0.25", "loss.divergence=kl"])
    distiller.losses = {}
    monkeypatch.setattr(distiller, "_apply", lambda name, loss: distiller.losses.update({name: loss.detach()}))
    return distiller


@pytest.fixture
def noised(distiller):
    x = distiller.task.student(distiller.task.noise(16, distiller.generator)).detach()
    return x, *distiller._noised(x)


def test_the_noise_level(distiller, noised):
    x, noisy, sigma = noised
    again = torch.Generator().manual_seed(distiller.cfg.seed)
    assert torch.equal(x, distiller.task.student(distiller.task.noise(16, again)))
    assert (sigma > 0).all() and sigma.unique().numel() == 16
    generator = torch.Generator().manual_seed(1)
    many = trainer.log_normal_sigma(20_000, -0.4, 1.2, generator).log()
    assert many.mean() == pytest.approx(-0.4, abs=0.05) and many.std() == pytest.approx(1.2, abs=0.05)
    noise = (noisy - x) / sigma[:, None]
    assert noise.std() == pytest.approx(1, abs=0.4)


def test_the_fake_score_learns_to_denoise(distiller, noised):
    """EDM's loss: the squared error of x0, weighed with 1/c²."""
    x, noisy, sigma = noised
    distiller._update_fake(x, noisy, sigma)
    _, c = distiller.task.fake.coefficients(sigma, x)
    expected = ((distiller.task.fake.denoise(noisy, sigma) - x) / c).square().mean()
    torch.testing.assert_close(distiller.losses["fake"], expected.detach())


def test_the_discriminator_learns_what_is_real(distiller, noised):
    _, noisy, sigma = noised
    again = torch.Generator()
    again.set_state(distiller.generator.get_state())
    distiller._update_discriminator(noisy, sigma)
    real = distiller.task.real(16, again)
    real = real + sigma[:, None] * torch.randn(real.shape, generator=again)
    of_fake, of_real = (
        distiller.task.discriminator(distiller.teacher.features(v, sigma), sigma).detach() for v in (noisy, real)
    )
    expected = binary_cross_entropy_with_logits(of_real, torch.ones_like(of_real))
    expected += binary_cross_entropy_with_logits(of_fake, torch.zeros_like(of_fake))
    torch.testing.assert_close(distiller.losses["discriminator"], expected)
    figures = distiller.meter.fetch()
    assert figures["discriminator/accuracy_fake"] == (of_fake < 0).double().mean()
    assert figures["discriminator/accuracy_real"] == (of_real > 0).double().mean()


def test_what_the_student_learns(distiller, monkeypatch):
    """The fused loss with the discriminator's logits, plus gan_weight times the error of taking it for real."""
    calls = []

    def recorded(*args, **kwargs):
        loss, stats = fused(*args, **kwargs)
        calls.append((kwargs, loss.detach()))
        return loss, stats

    fused = fdk.fused_fdiv_loss
    monkeypatch.setattr(trainer.fdk, "fused_fdiv_loss", recorded)
    distiller._update_student()
    ((kwargs, score),) = calls
    logits = kwargs["logits"].detach()
    adversarial = binary_cross_entropy_with_logits(logits, torch.ones_like(logits))
    torch.testing.assert_close(distiller.losses["student"], score + 0.25 * adversarial)
    assert kwargs["t"] is kwargs["prediction"].sigma and kwargs["normalizer"] is distiller.normalizer
    assert kwargs["divergence"] == "kl" and kwargs["nonfinite"] == "zero"
    assert tuple(kwargs["ratio_range"]) == tuple(distiller.cfg.loss.ratio_range)
    noisy, sigma = kwargs["prediction"].noisy, kwargs["t"]
    expected = distiller.task.discriminator(distiller.teacher.features(noisy, sigma), sigma)
    torch.testing.assert_close(logits, expected.detach())
    assert all(p.requires_grad for p in distiller.task.discriminator.parameters())


def test_the_average_follows_the_students_updates(tiny_gmm):
    distiller = start("gmm", [*tiny_gmm, "ema=0.9"])
    distiller.roles["fake"].updates = 50
    before = [p.clone() for p in distiller.average.network.parameters()]
    distiller._update_student()
    pairs = zip(before, distiller.average.network.parameters(), distiller.task.student.parameters(), strict=True)
    for old, averaged, new in pairs:
        torch.testing.assert_close(averaged, 2 / 11 * old + 9 / 11 * new)


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


def test_weights_are_measured_with_the_state_as_it_stands(tiny_gmm, monkeypatch):
    distiller = start("gmm", tiny_gmm)
    distiller.train()
    seen = []

    def recorded(logits, sigma, *, normalizer, **kwargs):
        seen.append((normalizer.training, normalizer.mean.clone()))
        return weight(logits, sigma, normalizer=normalizer, **kwargs)

    weight = fdk.fdiv_weight
    monkeypatch.setattr(trainer.fdk, "fdiv_weight", recorded)
    distiller.sample_weights(16)
    ((training, mean),) = seen
    assert not training and torch.equal(mean, distiller.normalizer.mean)
