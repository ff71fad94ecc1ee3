"""CausVid: fdkernels' DMD loss in place of its own, against it and against float64."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from tests.fdkernels import recipes
from tests.integrations.parity import DTYPES, SEEDS, compare, leaf, normal, predictions, run, wide
from tests.integrations.video import SHAPE, check_conversions, check_critic_loss, seeded

TRAINER = "causvid"
METHOD = "compute_distribution_matching_loss"


def dmd(trainer, of, seen, **options):
    def network(role):
        def predict(noisy_image_or_video, conditional_dict, timestep):
            seen.noisy = noisy_image_or_video
            return of[role + conditional_dict]

        return predict

    cls = trainer.module("causvid.dmd").DMD
    found, schedule = cls.__new__(cls), trainer.module("causvid.models.wan.flow_match").FlowMatchScheduler
    scheduler = schedule(shift=8.0)
    if not trainer.is_stand_in:
        scheduler.sigma_min, scheduler.extra_one_step = 0.0, True
        scheduler.set_timesteps(1000, training=True)
    torch.nn.Module.__init__(found)
    settings = {
        "num_train_timestep": 1000, "min_step": 20, "max_step": 980, "device": "cpu", "scheduler": scheduler,
        "num_frame_per_block": 3, "real_guidance_scale": 3.0, "real_score": network("teacher"),
        "fake_score": network("fake"), **options,
    }  # fmt: skip
    for name, value in settings.items():
        setattr(found, name, value)
    return found


@pytest.mark.parametrize("masked", [False, True], ids=["whole", "masked"])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("seed", SEEDS)
def test_loss_gradient_log_and_noise(trainer, seed, dtype, masked):
    batch, seen = 1 + seed % 2, SimpleNamespace()
    x, tau, fake = (leaf(v, dtype) for v in predictions(seed, batch, *SHAPE))
    uncond = tau + 0.05 * normal(torch.Generator().manual_seed(seed), batch, *SHAPE).to(dtype)
    of = {"teacher": tau.detach(), "fake": fake.detach(), "teacher_uncond": uncond.detach()}
    options = {
        "timestep_shift": (1.0, 8.0)[seed % 2],
        "real_task_type": ("causal_video", "bidirectional_video")[masked],
    }
    model = dmd(trainer, of, seen, **options)
    mask = torch.ones_like(x, dtype=torch.bool) if masked else None
    if masked:
        mask[:, 1:3] = False
    theirs, log = seeded(seed, getattr(model, METHOD), [x], x, "", "_uncond", mask)
    state, noisy = torch.get_rng_state(), seen.noisy
    with trainer.patched():
        ours, our_log = seeded(seed, getattr(model, METHOD), [x], x, "", "_uncond", mask)
    assert torch.equal(seen.noisy, noisy) and torch.equal(torch.get_rng_state(), state)
    inputs = SimpleNamespace(
        student=wide(x), w=3.0, mask=None if mask is None else mask[:, :, 0, 0, 0],
        **{name: v.double() for name, v in of.items()},
    )  # fmt: skip
    compare(theirs, ours, run(recipes.self_forcing, [inputs.student], inputs), dtype)
    assert our_log.keys() == log.keys()
    gap = our_log.pop("dmdtrain_gradient_norm").item() / log.pop("dmdtrain_gradient_norm").item()
    assert abs(gap - 1) < (1e-5 if dtype == torch.float32 and batch == 1 else 0.25), gap
    for name, figure in our_log.items():
        torch.testing.assert_close(figure, log[name], rtol=0.02 if dtype == torch.bfloat16 else 1e-5, atol=0.02)


def test_conversions_and_critic_loss(trainer):
    wrapper = trainer.module("causvid.models.wan.wan_wrapper").WanDiffusionWrapper
    scheduler = dmd(trainer, {}, SimpleNamespace()).scheduler
    check_conversions(trainer, wrapper, scheduler, torch.bfloat16)
    check_critic_loss(trainer.module("causvid.loss").FlowPredLoss(), trainer, 0, torch.bfloat16)
