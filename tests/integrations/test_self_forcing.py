"""Self-Forcing and Causal-Forcing: fdkernels' DMD loss in place of theirs, against it and against float64."""

from __future__ import annotations

import contextlib
import copy
import warnings
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from fdkernels import testing
from tests.fdkernels import recipes
from tests.fdkernels.test_peers import record
from tests.integrations.parity import DTYPES, FP32, SEEDS, compare, leaf, normal, run, wide
from tests.integrations.video import (
    COND,
    NAMES,
    SHAPE,
    UNCOND,
    check_conversions,
    check_critic_loss,
    check_critic_step,
    dmd,
    seeded,
    sigma_of,
    velocities,
)

TRAINER = "self_forcing"
WRAPPERS = "utils.wan_wrapper"
METHOD = "compute_distribution_matching_loss"


@pytest.mark.parametrize("masked", [False, True], ids=["whole", "masked"])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("seed", SEEDS)
def test_loss_gradient_log_and_noise(trainer, seed, dtype, masked):
    batch, fake_w, seen = 1 + seed % 2, 0.5 * (seed % 3 == 0), SimpleNamespace()
    of = velocities(seed, batch, *SHAPE, dtype=dtype)
    model = dmd(trainer, WRAPPERS, of, seen, fake_w=fake_w, shift=(1.0, 5.0)[seed % 2])
    x = leaf(normal(torch.Generator().manual_seed(seed + 9), batch, *SHAPE), dtype)
    mask = torch.ones_like(x, dtype=torch.bool) if masked else None
    if masked:
        mask[:, :2] = False
    args = x, COND, UNCOND, mask, 0, 100
    theirs, log = seeded(seed, getattr(model, METHOD), [x], *args)
    state, noisy = torch.get_rng_state(), seen.noisy
    with trainer.patched():
        ours, our_log = seeded(seed, getattr(model, METHOD), [x], *args)
    assert torch.equal(seen.noisy, noisy) and torch.equal(torch.get_rng_state(), state)
    exact_x = wide(x)
    inputs = SimpleNamespace(
        student=exact_x, noisy=noisy.double(), sigma=sigma_of(model.real_score.scheduler, log["timestep"]),
        mask=torch.ones(batch, SHAPE[0], dtype=torch.bool) if mask is None else mask[:, :, 0, 0, 0],
        w=model.real_guidance_scale, fake_w=fake_w, **{name: of[name].double() for name in NAMES},
    )  # fmt: skip
    compare(theirs, ours, run(recipes.self_forcing_velocity, [exact_x], inputs), dtype)
    assert our_log.keys() == log.keys() and torch.equal(our_log["timestep"], log["timestep"])
    ratio = our_log["dmdtrain_gradient_norm"].item() / log["dmdtrain_gradient_norm"].item()
    assert abs(ratio - 1) < (1e-5 if dtype == torch.float32 and batch == 1 else 0.05), ratio


@pytest.mark.parametrize("name", ["dmd_fp32", "dmd_masked_fp32", "dmd_bf16", "dmd_masked_bf16"])
def test_recorded_losses(trainer, name):
    r = record(f"self_forcing_{name}")
    dtype = torch.bfloat16 if name.endswith("bf16") else torch.float32
    x, seen = leaf(r["student"], dtype), SimpleNamespace()
    model = dmd(trainer, WRAPPERS, {}, seen, shift=1.0)
    model.real_guidance_scale = float(r["guidance_w"])

    def velocity(x0):
        return lambda noisy, t, **_: (noisy - r[x0]) / sigma_of(scheduler, t).float().view(-1, 1, 1, 1, 1)

    scheduler = model.real_score.scheduler
    for network, names in ((model.real_score, ("teacher_cond", "teacher_uncond")), (model.fake_score, ("fake",) * 2)):
        of = dict(zip(("cond", "uncond"), map(velocity, names), strict=True))
        network.model = lambda x, t, context, of=of, **_: of[context](x.transpose(1, 2), t).transpose(1, 2)
    with trainer.patched():
        ours, _ = seeded(0, getattr(model, METHOD), [x], x, COND, UNCOND, r.get("mask"))
    inputs = SimpleNamespace(
        student=wide(x), teacher=r["teacher_cond"].double(), teacher_uncond=r["teacher_uncond"].double(),
        fake=r["fake"].double(), w=model.real_guidance_scale, mask=r.get("mask"),
    )  # fmt: skip
    exact = run(recipes.self_forcing, [inputs.student], inputs)
    error, recorded = (testing.relative_l2(each, exact.gradients[0]) for each in (ours.gradients[0], r["grad"]))
    assert error < (FP32 if dtype == torch.float32 else min(2.5e-3, recorded))
    assert abs(ours.loss.item() / exact.loss.item() - 1) < FP32


def test_a_class_with_its_own_gradient_keeps_it(trainer):
    cls = trainer.module("model.dmd").DMD

    class Own(cls):
        def _compute_kl_grad(self, *args, **kwargs):
            return torch.ones(1, *SHAPE), {}

    of = velocities(0, 1, *SHAPE, dtype=torch.float32)
    model = dmd(trainer, WRAPPERS, of, SimpleNamespace())
    x = torch.zeros(1, *SHAPE, requires_grad=True)
    model.__class__ = Own
    with trainer.patched(), pytest.warns(UserWarning, match="Own._compute_kl_grad is not what"):
        loss, log = getattr(model, METHOD)(x, COND, UNCOND)
    assert loss.item() == 0.5 and log == {}


class Holding(nn.Module):
    """Holds networks and runs the first, like DDP without handing their attributes on."""

    def __init__(self, *networks):
        super().__init__()
        self.networks = nn.ModuleList(networks)

    def forward(self, **inputs):
        return self.networks[0](**inputs)


WRAPPERS_OF = {
    "bare": lambda network: network,
    "held": Holding,
    "compiled": lambda network: torch.compile(network, backend="eager"),
    "expert": lambda network: Holding(copy.copy(network), network),
}


@pytest.mark.parametrize("wrapped", WRAPPERS_OF)
def test_with_a_network_that_has_its_own_x0_the_trainers_loss_runs(trainer, wrapped):
    model = dmd(trainer, WRAPPERS, velocities(0, 1, *SHAPE, dtype=torch.float32), SimpleNamespace())
    x = torch.randn(1, *SHAPE, generator=torch.Generator().manual_seed(0), requires_grad=True)
    bare = [model.real_score, model.fake_score]
    model.real_score, model.fake_score = map(WRAPPERS_OF[wrapped], bare)
    with trainer.patched(), warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        ours, log = seeded(0, getattr(model, METHOD), [x], x, COND, UNCOND)
        assert "dmdtrain_gradient_norm" in log
    bare[1].__class__ = type(
        "Clipped", (type(bare[1]),), {"_convert_flow_pred_to_x0": lambda self, flow_pred, xt, timestep: xt.clamp(-1, 1)}
    )
    theirs, _ = seeded(0, getattr(model, METHOD), [x], x, COND, UNCOND)
    assert wrapped == "expert" or theirs.loss != ours.loss
    with trainer.patched(), pytest.warns(UserWarning, match="Clipped._convert_flow_pred_to_x0 is not what"):
        ours, _ = seeded(0, getattr(model, METHOD), [x], x, COND, UNCOND)
    assert abs(ours.loss / theirs.loss - 1) < FP32


@pytest.mark.parametrize("noisy_needs_gradient", [False, True])
@pytest.mark.parametrize("dtype", [*DTYPES, torch.float16])
def test_conversions(trainer, dtype, noisy_needs_gradient):
    network = dmd(trainer, WRAPPERS, {}, SimpleNamespace()).real_score
    check_conversions(trainer, type(network), network.scheduler, dtype, noisy_needs_gradient)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("seed", SEEDS)
def test_critic_loss(trainer, seed, dtype):
    check_critic_loss(trainer.module("utils.loss").FlowPredLoss(), trainer, seed, dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("seed", SEEDS)
def test_critic_step(trainer, monkeypatch, seed, dtype):
    check_critic_step(trainer, monkeypatch, WRAPPERS, seed, dtype)


@pytest.mark.parametrize("kind", ["flow", "noise"])
def test_critic_step_with_another_loss_runs_as_the_trainers(trainer, kind):
    """Of another kind, or a subclass of the trainer's."""
    calls = []

    class Own(trainer.module("utils.loss").FlowPredLoss):
        def __call__(self, **given):
            calls.append({name: v for name, v in given.items() if v is not None})
            return given["x_pred"].sum()

    model = dmd(trainer, WRAPPERS, velocities(0, 1, *SHAPE, dtype=torch.float32), SimpleNamespace())
    model.args.denoising_loss_type, model.denoising_loss_func = kind, Own()
    model.scheduler.alphas_cumprod, model.scheduler.convert_x0_to_noise = None, lambda x0, xt, timestep: xt - x0
    model._run_generator = lambda **_: (torch.ones(1, *SHAPE), None, None, 100)
    for context in (contextlib.nullcontext(), trainer.patched()):
        torch.manual_seed(0)
        with context:
            model.critic_loss((1, *SHAPE), COND, UNCOND, None)
    torch.testing.assert_close(calls[1], calls[0])


def test_tables_that_are_moved_or_written_later_are_read(trainer):
    """A sampler's inference mode leaves tables without a version; set_timesteps writes others."""
    network, timestep = dmd(trainer, WRAPPERS, {}, SimpleNamespace()).real_score, torch.tensor([500.0])
    with trainer.patched():
        for factor in (1, 0.5):
            with torch.inference_mode():
                network.scheduler.sigmas = factor * network.scheduler.sigmas
            x0 = network._convert_flow_pred_to_x0(torch.ones(1, 2, 2, 2), torch.zeros(1, 2, 2, 2), timestep)
            torch.testing.assert_close(-x0[0, 0, 0, 0].double(), sigma_of(network.scheduler, timestep)[0])


def test_scores_with_other_sigmas_are_refused(trainer):
    model = dmd(trainer, WRAPPERS, velocities(0, 1, *SHAPE, dtype=torch.float32), SimpleNamespace())
    model.fake_score.scheduler = model.scheduler
    with trainer.patched(), pytest.raises(RuntimeError, match="different sigmas"):
        getattr(model, METHOD)(torch.zeros(1, *SHAPE), COND, UNCOND)


def test_undo(trainer):
    cls = trainer.module("model.dmd").DMD
    before = getattr(cls, METHOD)
    with trainer.patched() as names:
        assert names == (
            "utils.wan_wrapper.WanDiffusionWrapper._convert_flow_pred_to_x0",
            "utils.wan_wrapper.WanDiffusionWrapper._convert_x0_to_flow_pred",
            "utils.loss.FlowPredLoss.__call__",
            f"model.dmd.DMD.{METHOD}",
            "model.dmd.DMD.critic_loss",
        )
        assert getattr(cls, METHOD) is not before
    assert getattr(cls, METHOD) is before
