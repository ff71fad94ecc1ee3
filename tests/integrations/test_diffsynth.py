"""DiffSynth-Studio: fdkernels' losses in place of its own, against them and against float64."""

from __future__ import annotations

import pytest
import torch

from tests.fdkernels import recipes
from tests.integrations.parity import DTYPES, FP32, SEEDS, compare, leaf, normal, predictions, run, wide

TRAINER = "diffsynth"
LOSSES = "diffsynth.diffusion.dmd2"


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("seed", SEEDS)
def test_variational_score_distillation_loss(trainer, seed, dtype):
    x, tau, fake = (leaf(v, dtype) for v in predictions(seed, 4, 3, 5, 7))
    module, args = trainer.module(LOSSES), (x, tau.detach(), fake.detach())
    theirs = run(module._variational_score_distillation_loss, [x], *args)
    with trainer.patched():
        ours = run(module._variational_score_distillation_loss, [x], *args)
    exact = [wide(each) for each in args]
    compare(theirs, ours, run(recipes.vsd_loss, [exact[0]], *exact), dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("seed", SEEDS)
def test_adversarial_losses(trainer, seed, dtype):
    generator = torch.Generator().manual_seed(seed)
    real, fake = (leaf(3 * normal(generator, 6, 2), dtype) for _ in range(2))
    module, exact_real, exact_fake = trainer.module(LOSSES), wide(real), wide(fake)

    def both():
        yield run(module._gan_loss_generator, [fake], fake)
        yield run(module._gan_loss_discriminator, [real, fake], real, fake)

    theirs = list(both())
    with trainer.patched():
        ours = list(both())

    def softplus(v):
        return torch.log1p(torch.exp(v))

    exact = (
        run(lambda v: softplus(-v).mean(), [exact_fake], exact_fake),
        run(lambda: softplus(exact_fake).mean() + softplus(-exact_real).mean(), [exact_real, exact_fake]),
    )
    tolerance = FP32 if dtype == torch.float32 else 8e-3  # one rounding of bfloat16
    for mine, peer, true in zip(ours, theirs, exact, strict=True):
        assert mine.loss.dtype == peer.loss.dtype
        torch.testing.assert_close(mine.loss, true.loss.to(dtype), rtol=tolerance, atol=0)
        for a, b in zip(mine.gradients, true.gradients, strict=True):
            torch.testing.assert_close(a, b.to(dtype), rtol=tolerance, atol=0)
