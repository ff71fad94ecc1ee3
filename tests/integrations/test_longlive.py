"""LongLive: fdkernels' DMD loss in place of its own, against it and against float64."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from tests.fdkernels import recipes
from tests.integrations.parity import DTYPES, SEEDS, compare, leaf, normal, run, wide
from tests.integrations.video import (
    COND,
    NAMES,
    UNCOND,
    check_conversions,
    check_critic_loss,
    check_critic_step,
    dmd,
    seeded,
    sigma_of,
    velocities,
)

TRAINER = "longlive"
METHOD = "compute_distribution_matching_loss"
FORMS = {"blocks": {}, "first-frame": {"first": True}, "i2v": {"i2v": True, "first": True}}


def formula(v: SimpleNamespace) -> torch.Tensor:
    """From velocities: x0, then the recipe of docs/recipes.md."""
    x0 = {name: v.noisy - recipes.frames(v.sigma) * getattr(v, name) for name in NAMES}
    x0["fake"] = x0["fake"] + v.fake_w * (x0["fake"] - x0["fake_uncond"])
    inputs = SimpleNamespace(**vars(v) | x0)
    return recipes.longlive_first_frame(inputs) if v.first else recipes.longlive(inputs)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("masked", [False, True], ids=["whole", "masked"])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("seed", SEEDS)
def test_loss_gradient_log_and_noise(trainer, monkeypatch, capsys, seed, dtype, masked, form):
    monkeypatch.setattr(trainer.module("model.dmd").dist, "get_rank", lambda: 0)
    batch, frames, fake_w = 1 + seed % 2, 7 if form == "first-frame" else 6, 0.5 * (seed % 3 == 0)
    shape, seen = (batch, frames, 4, 3, 5), SimpleNamespace()
    of = velocities(seed, *shape, dtype=dtype)
    model = dmd(trainer, "utils.wan_5b_wrapper", of, seen, fake_w=fake_w, **FORMS[form])
    generator = torch.Generator().manual_seed(seed + 9)
    x = leaf(normal(generator, *shape), dtype)
    initial = normal(generator, batch, 2, *shape[2:]).to(dtype) if form == "i2v" else None
    clean = normal(generator, *shape).to(dtype) if seed == 1 else None
    mask = torch.ones(x.shape[: 2 if seed == 2 and form != "i2v" else 5], dtype=torch.bool) if masked else None
    if masked:
        mask[:, 3:5] = False
    args = x, COND, UNCOND, mask, 0, 100, clean, initial
    theirs, log = seeded(seed, getattr(model, METHOD), [x], *args)
    state, noisy, rest = torch.get_rng_state(), seen.noisy, seen.rest
    assert capsys.readouterr().out
    with trainer.patched():
        ours, our_log = seeded(seed, getattr(model, METHOD), [x], *args)
    assert not capsys.readouterr().out
    assert torch.equal(seen.noisy, noisy) and torch.equal(torch.get_rng_state(), state)
    assert clean is None or torch.equal(seen.rest["clean_x"], rest["clean_x"])
    exact_x, kept = wide(x), torch.ones(batch, frames, dtype=torch.bool)
    student = exact_x
    if mask is not None:
        kept &= mask.reshape(*mask.shape[:2], -1).all(2)
    if initial is not None:
        student, kept[:, :2] = torch.cat([initial.double(), exact_x[:, 2:]], 1), False
    inputs = SimpleNamespace(
        student=student, noisy=noisy.double(), sigma=sigma_of(model.real_score.scheduler, log["timestep"]), mask=kept,
        w=model.real_guidance_scale, fake_w=fake_w, frames_per_block=3, first=form == "first-frame",
        **{name: of[name].double() for name in NAMES},
    )  # fmt: skip
    compare(theirs, ours, run(formula, [exact_x], inputs), dtype)
    assert our_log.keys() == log.keys() and torch.equal(our_log["timestep"], log["timestep"])
    ratio = our_log["dmdtrain_gradient_norm"].item() / log["dmdtrain_gradient_norm"].item()
    assert abs(ratio - 1) < 0.2, ratio  # a ratio of means in place of a mean of ratios


def test_conversions(trainer):
    network = dmd(trainer, "utils.wan_5b_wrapper", {}, SimpleNamespace()).real_score
    check_conversions(trainer, type(network), network.scheduler, torch.bfloat16)


@pytest.mark.parametrize("masked", [False, True], ids=["whole", "masked"])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("seed", SEEDS)
def test_critic_loss(trainer, seed, dtype, masked):
    for dims in (1, 4) if masked else (0,):
        check_critic_loss(trainer.module("utils.loss").FlowPredLoss(), trainer, seed, dtype, dims)


@pytest.mark.parametrize("options", [{}, {"i2v": True}, {"teacher_forcing": True}], ids=["text", "image", "teacher"])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("seed", SEEDS)
def test_critic_step(trainer, monkeypatch, seed, dtype, options):
    context = 3 if "i2v" in options else 0
    check_critic_step(trainer, monkeypatch, "utils.wan_5b_wrapper", seed, dtype, context, **options)
