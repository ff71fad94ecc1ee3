"""FastGen: fdkernels' functions in place of its own, against both and against float64."""

from __future__ import annotations

import math
from types import SimpleNamespace

import pytest
import torch

from tests.fdkernels import recipes
from tests.fdkernels.test_peers import record
from tests.integrations.parity import DTYPES, FP32, SEEDS, compare, leaf, normal, predictions, run, wide

TRAINER = "fastgen"
LOSSES, F_DISTILL = "fastgen.methods.common_loss", "fastgen.methods.distribution_matching.f_distill"
WEIGHTS = ("rkl", "kl", "js", "sf", "neyman", "sh", "jf")
SCHEDULE = SimpleNamespace(alpha=torch.cos, sigma=torch.sin, min_t=0.02, max_t=1.2)


@pytest.mark.parametrize("scaled", [False, True], ids=["plain", "scaled"])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("seed", SEEDS)
def test_variational_score_distillation_loss(trainer, seed, dtype, scaled):
    x, tau, fake = (leaf(v, dtype) for v in predictions(seed, 4, 3, 5, 7))
    scale = torch.tensor([0.3, 1.7, 0.9, 1.1]).to(dtype) if scaled else None
    losses = trainer.module(LOSSES)
    theirs = run(losses.variational_score_distillation_loss, [x], x, tau.detach(), fake.detach(), scale)
    with trainer.patched():
        ours = run(losses.variational_score_distillation_loss, [x], x, tau.detach(), fake.detach(), scale)
    exact_x = wide(x)
    exact = run(
        recipes.vsd_loss,
        [exact_x],
        exact_x,
        wide(tau).detach(),
        wide(fake).detach(),
        scale if scale is None else wide(scale),
    )
    compare(theirs, ours, exact, dtype)


def model(trainer, divergence: str, dtype: torch.dtype, bins: torch.Tensor):
    """A self for f-distill's weight, of the trainer's own divergences where it has them."""
    module = trainer.module(F_DISTILL)
    weights = module.WEIGHTS if trainer.is_stand_in else module.all_f_div_weighting_function
    options = SimpleNamespace(
        f_div=divergence, ratio_lower=0.1, ratio_upper=20.0, ratio_normalization=True, ratio_ema_rate=0.75
    )
    found = SimpleNamespace(
        config=SimpleNamespace(f_distill=options), bin_num=len(bins), f_div_weighting_function=weights[divergence],
        net=SimpleNamespace(noise_scheduler=SCHEDULE, bins=bins.to(dtype, copy=True)),
    )  # fmt: skip
    found.h = lambda logits, t: module.FdistillModel._get_f_div_weighting_h(found, logits, t)
    return found


@pytest.mark.parametrize("divergence", WEIGHTS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("seed", SEEDS)
def test_weight_and_its_state(trainer, seed, dtype, divergence):
    generator = torch.Generator().manual_seed(seed)
    logits, t = normal(generator, 32, 2).to(dtype), torch.rand(32, generator=generator).double()
    bins = torch.rand(5, generator=generator) + 0.5
    theirs, ours, exact = (model(trainer, divergence, each, bins) for each in (dtype, dtype, torch.float32))
    with trainer.patched():
        for _ in range(2):  # the second call starts from the state of the first
            h = ours.h(logits, t)
    if divergence == "rkl":  # with which FastGen raises
        assert torch.equal(h, torch.ones(32))
        return
    for _ in range(2):
        exact_h, peer = exact.h(logits.float(), t), theirs.h(logits, t)
    assert ours.net.bins.dtype == dtype
    if dtype == torch.float32:
        torch.testing.assert_close(h, exact_h, rtol=FP32, atol=0)
        torch.testing.assert_close(ours.net.bins, exact.net.bins, rtol=FP32, atol=0)
    else:
        assert (h / exact_h - 1).abs().max() < (peer.float() / exact_h - 1).abs().max()


@pytest.mark.parametrize(
    "settings",
    [{"ratio_lower": 0.0, "ratio_upper": math.inf}, {"ratio_upper": 1e9}, {"ratio_ema_rate": 1.0}],
    ids=["no-range", "far", "fixed-bins"],
)
def test_settings_at_their_ends(trainer, settings):
    logits = torch.tensor([[-math.inf], [-30.0], [-2.0], [0.5], [12.0], [math.inf]])
    t, bins = torch.tensor([0.2, 0.1, 0.3, 0.6, 0.9, 1.0]), torch.tensor([0.8, 1.2])
    theirs, ours = (model(trainer, "js", torch.float32, bins) for _ in range(2))
    for each in (theirs, ours):
        vars(each.config.f_distill).update(settings)
    with trainer.patched():
        h = ours.h(logits, t)
    torch.testing.assert_close(h, theirs.h(logits, t), rtol=3e-5, atol=1e-6)  # its epsilons are 1e-6
    torch.testing.assert_close(ours.net.bins, theirs.net.bins, rtol=FP32, atol=0)


@pytest.mark.parametrize("name", [f"{weight}_b{batch}" for weight in WEIGHTS[1:] for batch in (64, 6)])
def test_recorded_weights(trainer, name):
    r = record(f"fastgen_weight_{name}")
    mine = model(trainer, name.split("_")[0], torch.float32, r["bins_before"])
    low, high = r["t_range"].tolist()
    mine.net.noise_scheduler = SimpleNamespace(min_t=low, max_t=high)
    options = mine.config.f_distill
    options.ratio_ema_rate = float(r["decay"])
    options.ratio_lower, options.ratio_upper = r["ratio_range"].tolist()
    with trainer.patched():
        h = mine.h(r["logits"], r["t"])
    torch.testing.assert_close(h, r["weight"], rtol=2e-5, atol=0)
    torch.testing.assert_close(mine.net.bins, r["bins_after"], rtol=2e-5, atol=0)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("seed", SEEDS)
def test_adversarial_losses(trainer, seed, dtype):
    generator = torch.Generator().manual_seed(seed)
    fake, real = (leaf(3 * normal(generator, 6, 2), dtype) for _ in range(2))
    losses = trainer.module(LOSSES)

    def both():
        return (
            run(losses.gan_loss_generator, [fake], fake),
            run(losses.gan_loss_discriminator, [real, fake], real, fake),
        )

    theirs = both()
    with trainer.patched():
        ours = both()
    wide_fake, wide_real = wide(fake), wide(real)

    def softplus(v):
        return torch.log1p(torch.exp(v))

    exact = (
        run(lambda v: softplus(-v).mean(), [wide_fake], wide_fake),
        run(lambda r, f: softplus(f).mean() + softplus(-r).mean(), [wide_real, wide_fake], wide_real, wide_fake),
    )
    for peer, mine, true in zip(theirs, ours, exact, strict=True):
        assert mine.loss.dtype == dtype
        for a, b, c in zip(mine.gradients, peer.gradients, true.gradients, strict=True):
            torch.testing.assert_close(a, c.to(dtype), rtol=FP32 if dtype == torch.float32 else 8e-3, atol=0)
            assert (a.double() - c).abs().max() <= (b.double() - c).abs().max() + 1e-8


@pytest.mark.parametrize("kind", ["x0", "eps", "v", "flow"])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("seed", SEEDS)
def test_denoising_score_matching_loss(trainer, seed, dtype, kind):
    generator = torch.Generator().manual_seed(seed)
    pred, x0, eps = (normal(generator, 4, 3, 5, 7).to(dtype) for _ in range(3))
    t = torch.rand(4, generator=generator).double()
    pred.requires_grad_()
    given = {"x0": None if kind == "eps" else x0, "eps": None if kind == "x0" else eps}
    if kind == "v":
        given |= {"noise_scheduler": SCHEDULE, "t": t}
    losses = trainer.module(LOSSES)
    theirs = run(losses.denoising_score_matching_loss, [pred], kind, pred, **given)
    with trainer.patched():
        ours = run(losses.denoising_score_matching_loss, [pred], kind, pred, **given)
    p, q = {
        "x0": (0 * t + 1, 0 * t),
        "eps": (0 * t, 0 * t + 1),
        "flow": (0 * t - 1, 0 * t + 1),
        "v": (-t.sin(), t.cos()),
    }[kind]
    exact_pred = wide(pred)
    target = recipes.frames(p, 4) * x0.double() + recipes.frames(q, 4) * eps.double()
    exact = run(lambda v: (v - target).square().mean(), [exact_pred], exact_pred)
    if dtype == torch.float32 or kind in ("v", "flow"):
        compare(theirs, ours, exact, dtype)
    else:  # both round once
        torch.testing.assert_close(ours.gradients[0], theirs.gradients[0])


def test_the_model_calls_ours_by_the_names_it_imported(trainer):
    if not trainer.is_stand_in:
        pytest.skip("a student step of the checkout is in FastGen's own tests")
    x, tau, fake = (leaf(v, torch.float32) for v in predictions(0, 4, 3, 5, 7))
    logits, t = torch.randn(4, 2), torch.rand(4)
    mine = model(trainer, "rkl", torch.float32, torch.ones(5))
    mine._get_f_div_weighting_h = mine.h
    student_loss = trainer.module(F_DISTILL).FdistillModel.student_loss
    with pytest.raises(TypeError):
        student_loss(mine, x, tau.detach(), fake.detach(), logits, t)
    with trainer.patched():
        loss = student_loss(mine, x, tau.detach(), fake.detach(), logits, t)
    torch.testing.assert_close(loss, recipes.vsd_loss(wide(x), wide(tau), wide(fake)).float(), rtol=FP32, atol=0)


@pytest.mark.parametrize("dtypes", [(torch.bfloat16, torch.float32), (torch.float16, torch.float16)])
@pytest.mark.parametrize("is_autocast", [False, True], ids=["plain", "autocast"])
def test_the_loss_has_the_dtype_of_mixed_inputs_and_of_autocast(trainer, is_autocast, dtypes):
    """Under autocast it is float32, so that a gradient scaler's 65536 does not overflow."""
    x, tau, fake = predictions(0, 4, 3, 5, 7)
    x, tau, fake = leaf(x, dtypes[0]), tau.to(dtypes[1]), fake.to(dtypes[1])
    losses = trainer.module(LOSSES)

    def gradient():
        with torch.autocast("cpu", torch.float16, enabled=is_autocast):
            loss = losses.variational_score_distillation_loss(x, tau, fake)
            dsm = losses.denoising_score_matching_loss("eps", x, eps=tau)
        scale = 65536 if is_autocast else 1
        return loss.dtype, dsm.dtype, torch.autograd.grad(scale * loss, [x])[0]

    theirs = gradient()
    with trainer.patched():
        ours = gradient()
    assert ours[:2] == theirs[:2]
    torch.testing.assert_close(ours[2], theirs[2], rtol=0.02, atol=2e-3 * theirs[2].abs().max().item())
    assert not is_autocast or torch.isfinite(ours[2]).all()
