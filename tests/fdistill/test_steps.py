"""Every role's step, compared with one written in float64 (`hand.py`), under every kind of loss."""

import itertools
import math
from statistics import NormalDist

import pytest
import torch
from torch.nn.utils import vector_to_parameters

import fdkernels as fdk
from fdistill import config, digits
from fdistill.config import OptimizerConfig
from fdistill.networks import UNetDenoiser
from fdistill.task import EpochSampler
from tests.fdistill.hand import (
    ORDER,
    TOLERANCE,
    AdamW,
    advance,
    close,
    denoising,
    flat,
    in_float64,
    noised,
    pair,
)

# All roles differ, and no value is a default: warm-up, cosine, decay, clips that bind in some steps only.
OPTIMIZERS = [
    "student={lr: 0.02, betas: [0.3, 0.9], weight_decay: 0.3, clip: 0.7, schedule: cosine, warmup: 1}",
    "fake={lr: 0.01, betas: [0.5, 0.8], weight_decay: 0.2, clip: 0.75, schedule: cosine}",
    "discriminator={lr: 0.03, betas: [0.2, 0.7], weight_decay: 0.1, clip: 1.5, schedule: constant, warmup: 3}",
]
# In seven steps the roles get 7, 5 and 4 updates. The average's decay is capped from the student's third update on.
PHASES = ["steps=7", "phases=[[fake,discriminator],[student,fake],[fake,discriminator,student]]", "ema=0.28"]
LOSS = ["loss.divergence=kl", "loss.bins=3", "loss.decay=0.6", "loss.ratio_range=[0.5,3]"]
SIGMA = ["sigma_log_mean=-0.2", "sigma_log_std=0.9", "sigma_max=1.7"]
OF_ANY_LOSS = [*OPTIMIZERS, *PHASES, *SIGMA]
SETTINGS = [*OF_ANY_LOSS, *LOSS]


def settings(options):
    """All of these, and before them what the loss that they choose has."""
    is_implicit = any(option in ("loss.kind=sid", "loss.kind=sim") for option in options)
    return [*(OF_ANY_LOSS if is_implicit else SETTINGS), *options]


def hold(tiny, options):
    """Run the gmm task, and check that its steps show what they have to show."""
    distiller, hand = pair("gmm", [*tiny, *settings(options)])
    figures = [advance(distiller, hand) for _ in range(hand.cfg.steps)]
    assert [hand.optimizers[name].updates for name in ORDER] == [7, 5, 4]
    if not distiller.has_ratio:
        return
    for name in ORDER:  # the clip binds in some steps and not in others
        norms = [row[f"{name}/grad_norm"] for row in figures if f"{name}/grad_norm" in row]
        assert min(norms) < hand.optimizers[name].cfg.clip < max(norms)
    rows = [row for row in figures if "student/loss" in row]
    if not hand.cfg.loss.shuffle_weight:
        assert any(0 < row["health/clip_fraction"] < 1 for row in rows)
    assert hand.cfg.loss.divergence == "rkl" or max(row["health/weight_spread"] for row in rows) > 0.1


DIVERGENCES = [*fdk.divergences(), "alpha(0.7)"]


@pytest.mark.parametrize("divergence", DIVERGENCES)
def test_steps_of_every_divergence(divergence, tiny_gmm):
    hold(tiny_gmm, [f"loss.divergence={divergence}", "loss.gan_weight=0.3"])


@pytest.mark.parametrize(
    ("normalize", "gan", "shuffle"), [*itertools.product(("true", "false"), (0, 0.8), ("true", "false"))]
)
def test_steps_of_every_option(normalize, gan, shuffle, tiny_gmm):
    loss = [f"loss.normalize_ratio={normalize}", f"loss.gan_weight={gan}", f"loss.shuffle_weight={shuffle}"]
    hold(tiny_gmm, loss)


IMPLICIT = {
    "sid": ["loss.kind=sid"],
    "sid, weighted": ["loss.kind=sid", "loss.alpha=1", "loss.sigma_power=1.5"],
    "sim": ["loss.kind=sim", "loss.c=0.8"],
    "sim, weighted": ["loss.kind=sim", "loss.c=3", "loss.sigma_power=2"],
}


@pytest.mark.parametrize("gan", [0, 0.8])
@pytest.mark.parametrize("kind", IMPLICIT)
def test_steps_of_score_implicit_matching(kind, gan, tiny_gmm):
    """Gradients through teacher and fake score too, whose weights stay as they are."""
    hold(tiny_gmm, [*IMPLICIT[kind], f"loss.gan_weight={gan}"])


@pytest.mark.parametrize("gan", [0, 0.8])
@pytest.mark.parametrize("kind", ["loss.divergence=rkl", "loss.kind=sid"])
@pytest.mark.parametrize("discriminator", ["hinge", "relativistic"])
def test_steps_of_other_discriminators(discriminator, kind, gan, tiny_gmm):
    hold(tiny_gmm, [f"loss.gan={discriminator}", kind, f"loss.gan_weight={gan}"])


CALLS = ("add_noise", "denoising_loss", "discriminator_loss", "fused_fdiv_loss", "score_implicit_loss")


@pytest.mark.parametrize("kind", ["fdiv", "sid"])
def test_steps_on_every_backend(kind, backend, tiny_gmm, monkeypatch):
    used = []

    def recorded(name, function):
        def call(*args, **how):
            used.append((name, how["backend"]))
            return function(*args, **how)

        return call

    for name in (*CALLS, "generator_loss"):
        monkeypatch.setattr(fdk, name, recorded(name, getattr(fdk, name)))
    hold(tiny_gmm, [f"loss.backend={backend}", f"loss.kind={kind}", "loss.gan_weight=0.3"])
    assert {found for _, found in used} == {backend}
    counts = [sum(found == name for found, _ in used) for name in (*CALLS, "generator_loss")]
    # Noise: for 7 critics' phases, 4 batches of data, 4 students.
    assert counts == [7 + 5 + 4, 7, 5, *((4, 0, 0) if kind == "fdiv" else (0, 4, 4))]


@pytest.mark.parametrize("gan", [0, 0.8])
@pytest.mark.parametrize("kind", [[], IMPLICIT["sid"], IMPLICIT["sim"]], ids=["fdiv", "sid", "sim"])
def test_steps_of_images(kind, gan, tiny_digits):
    distiller, hand = pair("digits", [*tiny_digits, *settings([*kind, f"loss.gan_weight={gan}"])])
    for _ in range(hand.cfg.steps):
        advance(distiller, hand)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_gradient_that_is_not_finite_changes_nothing(bad, tiny_gmm):
    """Only the place in the schedule moves, and the average, which takes the student's weights as they are."""
    distiller, hand = pair("gmm", [*tiny_gmm, *SETTINGS, "loss.gan_weight=0.3"])
    for i in range(7):
        spoilt = i in (0, 2, 4)
        hooks = [next(role.network.parameters()).register_hook(lambda g: g * bad) for role in distiller.roles.values()]
        if not spoilt:
            for hook in hooks:
                hook.remove()
        advance(distiller, hand, spoilt=spoilt)
        for hook in hooks:
            hook.remove()
    assert [hand.optimizers[name].applied for name in ORDER] == [4, 3, 2]


def test_a_sample_that_is_not_finite_is_left_out(tiny_gmm):
    distiller, hand = pair("gmm", [*tiny_gmm, *SETTINGS, "phases=[[student],[student],[student],[discriminator]]"])
    for net in (distiller.task.fake, hand.nets["fake"]):
        net.register_forward_hook(lambda *_: _[-1].index_fill(0, torch.tensor([3]), math.nan))
    assert [advance(distiller, hand)["health/nonfinite_samples"] for _ in range(3)] == [1, 1, 1]


def test_the_weights_that_a_report_shows(tiny_gmm):
    """h of the averaged student, with the normalizer's means unchanged, on noise that no step has drawn."""
    distiller, hand = pair("gmm", [*tiny_gmm, *SETTINGS])
    for _ in range(3):
        advance(distiller, hand)
    vector_to_parameters(hand.average, hand.weights("student"))
    with torch.no_grad():
        _, noisy, sigma = hand.samples(torch.Generator().manual_seed(hand.cfg.seed + 20_000))
        logits = hand.nets["discriminator"](hand.nets["teacher"].features(noisy, sigma), sigma)
        expected, _ = hand.weight(logits, sigma)
    found = distiller.sample_weights(hand.cfg.batch)
    for name, value in (("weight", expected), ("sigma", sigma)):
        close(torch.from_numpy(found[name]).double(), value, f"the {name} that is shown", TOLERANCE)


def test_bins_are_of_equal_population(tiny_gmm):
    distiller, _ = pair("gmm", [*tiny_gmm, *SETTINGS, "loss.bins=8"])
    expected = [-0.2 + 0.9 * NormalDist().inv_cdf(i / 8) for i in range(1, 8)]
    assert distiller.normalizer.edges.log().tolist() == pytest.approx(expected, abs=0.05)


def test_the_teachers_steps(tmp_path):
    """EDM's loss on data, AdamW with a warm-up of 50 and cosine. The teacher that is kept is the average."""
    cfg = config.load("digits", [f"cache={tmp_path}", "teacher={steps: 5, batch: 8, ema: 0.28, lr: 0.5}", *SIGMA])
    kept = flat(digits.load_or_train_teacher(cfg).parameters())
    torch.manual_seed(cfg.teacher.seed)
    net = in_float64(UNetDenoiser(digits.new_unet(cfg.teacher), cfg.teacher.sigma_data))
    images, order = digits.load_digits()[0], EpochSampler(1797, cfg.teacher.seed)
    generator = torch.Generator().manual_seed(cfg.teacher.seed)
    adamw = AdamW(OptimizerConfig(lr=0.5, betas=(0.9, 0.999), schedule="cosine", warmup=50), total=5)
    first = average = flat(net.parameters())
    for _ in range(5):
        clean = images[order.take(8)].double()
        noisy, sigma = noised(clean, cfg, generator)
        _, gradient = denoising(net, clean, noisy, sigma)
        updated = adamw.step(flat(net.parameters()), adamw.clipped(gradient))
        vector_to_parameters(updated, net.parameters())
        decay = min(0.28, (1 + adamw.updates) / (10 + adamw.updates))
        average = decay * average + (1 - decay) * updated
    close(kept - first, average - first, "the teacher's way", 1e-3)
