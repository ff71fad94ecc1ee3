"""Model-Optimizer: fdkernels' losses in place of its own, which are those of FastGen (test_fastgen.py)."""

from __future__ import annotations

import pytest
import torch

from tests.fdkernels import recipes
from tests.integrations.parity import DTYPES, SEEDS, compare, leaf, normal, predictions, run, wide

TRAINER = "model_optimizer"
LOSSES, FLOW = "modelopt.torch.fastgen.losses", "modelopt.torch.fastgen.flow_matching"


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("seed", SEEDS)
def test_vsd_loss(trainer, seed, dtype):
    x, tau, fake = (leaf(v, dtype) for v in predictions(seed, 4, 3, 5, 7))
    losses = trainer.module(LOSSES)
    theirs = run(losses.vsd_loss, [x], x, tau.detach(), fake.detach())
    with trainer.patched():
        ours = run(losses.vsd_loss, [x], x, tau.detach(), fake.detach())
    exact_x = wide(x)
    exact = run(recipes.vsd_loss, [exact_x], exact_x, wide(tau).detach(), wide(fake).detach())
    compare(theirs, ours, exact, dtype)


@pytest.mark.parametrize("seed", SEEDS)
def test_losses_of_logits_and_of_the_fake_score(trainer, seed):
    generator = torch.Generator().manual_seed(seed)
    real, near = (leaf(normal(generator, 6, 2), torch.float32) for _ in range(2))
    pred, x0, eps = (normal(generator, 4, 3, 5, 7).float() for _ in range(3))
    t = torch.rand(4, generator=generator)
    pred.requires_grad_()
    losses = trainer.module(LOSSES)

    def all_of_them():
        levels = {"alpha_fn": lambda t: 1 - t, "sigma_fn": lambda t: t}
        return [
            run(losses.r1_loss, [real, near], real, near),
            run(losses.gan_gen_loss, [real], real),
            run(losses.gan_disc_loss, [real, near], real, near),
            *(run(losses.dsm_loss, [pred], kind, pred, x0=x0, eps=eps) for kind in ("x0", "eps", "flow")),
            run(losses.dsm_loss, [pred], "v", pred, x0=x0, eps=eps, t=t, **levels),
        ]

    theirs = all_of_them()
    with trainer.patched():
        ours = all_of_them()
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("pred_dtype", [*DTYPES, torch.float16])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("t", [torch.tensor([0.1, 0.5, 0.9, 1.0]), torch.tensor([0.3]), torch.tensor(0.3)])
def test_conversion_of_a_flow(trainer, dtype, pred_dtype, t):
    generator = torch.Generator().manual_seed(0)
    pred, (x, upstream) = normal(generator, 4, 3, 5, 7).to(pred_dtype), normal(generator, 2, 4, 3, 5, 7).to(dtype)
    flow = trainer.module(FLOW)
    for noisy in (x, x.clone().requires_grad_()):
        leaves = [pred.requires_grad_(), *([noisy] if noisy.requires_grad else [])]
        theirs = flow.pred_x0_from_flow(pred, noisy, t)
        with trainer.patched():
            ours = flow.pred_x0_from_flow(pred, noisy, t)
        assert ours.dtype == dtype
        torch.testing.assert_close(ours, theirs)
        gradients = (torch.autograd.grad(x0, leaves, upstream) for x0 in (ours, theirs))
        torch.testing.assert_close(*gradients)
