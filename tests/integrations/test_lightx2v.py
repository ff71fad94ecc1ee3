"""LightX2V: fdkernels' loss in place of its own, against it and against float64."""

from __future__ import annotations

import pytest
import torch

from tests.fdkernels import recipes
from tests.integrations.parity import DTYPES, SEEDS, compare, leaf, predictions, run, wide

TRAINER = "lightx2v"
LOSSES = "lightx2v_train.trainers.dmd.math"


def formula(x, fake, tau, floor=None):
    mean = recipes.over_sample(recipes.distance(x, tau))
    return recipes.dmd(x, tau, fake, mean if floor is None else mean.clamp(min=floor))


@pytest.mark.parametrize("floor", [None, 0.1, 1])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("seed", SEEDS)
def test_loss(trainer, seed, dtype, floor):
    x, tau, fake = (leaf(v, dtype) for v in predictions(seed, 4, 3, 5, 7))
    module, constants = trainer.module(LOSSES), (fake.detach(), tau.detach())
    theirs = run(module.dmd_loss, [x], x, *constants, norm_clip_min=floor)
    with trainer.patched():
        ours = run(module.dmd_loss, [x], x, *constants, norm_clip_min=floor)
    exact_x = wide(x)
    compare(theirs, ours, run(formula, [exact_x], exact_x, *map(wide, constants), floor), dtype)


@pytest.mark.parametrize("seed", SEEDS)
def test_the_pair_calls_ours(trainer, seed):
    video, audio = predictions(seed, 2, 3, 4, 5), predictions(seed + 10, 2, 6, 7)
    pairs = [tuple(leaf(v, torch.bfloat16) for v in pair) for pair in zip(video, audio, strict=True)]
    x, tau, fake = pairs
    module, constants = trainer.module(LOSSES), [[each.detach() for each in pair] for pair in (fake, tau)]
    theirs = run(module.dmd_loss_pair, [*x], x, *constants, 1.0, 0.5)
    with trainer.patched():
        ours = run(module.dmd_loss_pair, [*x], x, *constants, 1.0, 0.5)
    exact_x = [wide(each) for each in x]
    fake, tau = ([wide(each) for each in pair] for pair in constants)
    exact = run(
        lambda: sum(
            w * formula(*part) for w, part in zip((1.0, 0.5), zip(exact_x, fake, tau, strict=True), strict=True)
        ),
        exact_x,
    )
    compare(theirs, ours, exact, torch.bfloat16)
