"""Model-Optimizer: fdkernels' student step in place of its own, with networks that return given flows."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from torch import nn

from tests.fdkernels import recipes
from tests.integrations.parity import DTYPES, SEEDS, Outcome, compare, normal

TRAINER = "model_optimizer_step"
DMD = "modelopt.torch.fastgen.methods.dmd"
GUIDANCE = 4.0
SHAPE = (4, 3, 5, 7)


class Network(nn.Module):
    """Returns a given flow, that of the text if it is given one, and keeps what it was called with."""

    def __init__(self, flow, uncond=None, captures=False):
        super().__init__()
        self.flow, self.uncond = flow, uncond
        self.calls = []
        if captures:
            self._fastgen_captured = []

    def forward(self, hidden_states, timestep, encoder_hidden_states=None, **others):
        self.calls.append((hidden_states.detach(), timestep, encoder_hidden_states, sorted(others)))
        if hasattr(self, "_fastgen_captured"):
            self._fastgen_captured.append(hidden_states.flatten(1).mean(1, keepdim=True))
        return self.uncond if encoder_hidden_states == "nothing" else self.flow


def pipeline(module, seed, dtype, gan: bool, shape=SHAPE, cls=None, kind="flow"):
    """(the student's flow, the three networks, a student step of the trainer's pipeline with them)"""
    generator = torch.Generator().manual_seed(seed)
    noise, x = (normal(generator, *shape).to(dtype) for _ in range(2))
    flow = (noise - x).detach().requires_grad_()  # at t = 1, x0 = noise - flow
    target, uncond, fake = ((flow + 0.3 * normal(generator, *shape)).detach().to(dtype) for _ in range(3))
    networks = Network(flow), Network(target, uncond, captures=gan), Network(fake)
    config = SimpleNamespace(
        pred_type=kind, num_train_timesteps=None, student_sample_steps=1, gan_loss_weight_gen=0.5 if gan else 0.0,
        guidance_scale=GUIDANCE, ema=None,
        sample_t_cfg=SimpleNamespace(min_t=0.1, max_t=0.9 if kind == "eps" else 1.0, time_dist_type="uniform"),
    )  # fmt: skip
    discriminator = nn.Module() if gan else None
    if gan:
        discriminator.forward = lambda features: features[0]
    found = (cls or module.DMDPipeline)(*networks, config, discriminator=discriminator)
    latents, texts = torch.zeros(shape, dtype=dtype), {"negative_encoder_hidden_states": "nothing", "extra": 1}
    return flow, networks, lambda: found.compute_student_loss(latents, noise, "text", **texts)


def step(module, seed, dtype, gan: bool, **options):
    """(outcome, losses, the calls of the three networks, the random numbers after it)"""
    flow, networks, compute = pipeline(module, seed, dtype, gan, **options)
    torch.manual_seed(seed)
    losses = compute()
    (gradient,) = torch.autograd.grad(losses["total"], [flow])
    calls = [call for network in networks for call in network.calls]
    return Outcome(losses["vsd"].detach(), [gradient]), losses, calls, torch.get_rng_state()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("seed", SEEDS)
def test_student_step(trainer, seed, dtype):
    module = trainer.module(DMD)
    theirs, _, calls, state = step(module, seed, dtype, gan=False)
    with trainer.patched():
        ours, losses, our_calls, our_state = step(module, seed, dtype, gan=False)
    assert losses["total"] is losses["vsd"] and set(losses) == {"vsd", "total"}
    assert [call[2:] for call in our_calls] == [call[2:] for call in calls]  # the texts and other arguments
    rtol = 8e-3 if dtype == torch.bfloat16 else 1e-6  # x_t may be rounded the other way
    torch.testing.assert_close([call[:2] for call in our_calls], [call[:2] for call in calls], rtol=rtol, atol=1e-6)
    assert torch.equal(our_state, state)
    compare(theirs, ours, exact(seed, dtype, our_calls), dtype)


@pytest.mark.parametrize("kind", ["x0", "eps", "v"])
def test_student_step_of_other_predictions(trainer, kind):
    module = trainer.module(DMD)
    theirs, *_ = step(module, 0, torch.float32, gan=False, kind=kind)
    with trainer.patched():
        ours, *_ = step(module, 0, torch.float32, gan=False, kind=kind)
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)


def exact(seed, dtype, calls):
    """The formula in float64 from the numbers that the networks returned and were given."""
    generator = torch.Generator().manual_seed(seed)
    noise, x = (normal(generator, *SHAPE).to(dtype) for _ in range(2))
    flow = (noise - x).detach()
    target, uncond, fake = ((flow + 0.3 * normal(generator, *SHAPE)).to(dtype).double() for _ in range(3))
    noisy, t = calls[1][0].double(), recipes.frames(calls[1][1].double(), len(SHAPE))
    x = (noise - flow).double().requires_grad_()
    tau = noisy - t * (uncond + GUIDANCE * (target - uncond))
    loss = recipes.vsd_loss(x, tau, noisy - t * fake)
    return Outcome(loss.detach(), [-torch.autograd.grad(loss, [x])[0]])


@pytest.mark.parametrize("seed", SEEDS)
def test_student_step_with_a_discriminator(trainer, seed):
    module = trainer.module(DMD)
    theirs, losses, *_ = step(module, seed, torch.float32, gan=True)
    with trainer.patched():
        ours, our_losses, *_ = step(module, seed, torch.float32, gan=True)
    torch.testing.assert_close(our_losses, losses, rtol=1e-5, atol=1e-7)
    torch.testing.assert_close(ours.gradients, theirs.gradients, rtol=1e-5, atol=1e-7)


def test_guidance_without_a_negative_text_is_refused(trainer):
    with trainer.patched():
        pipeline = trainer.module(DMD).DMDPipeline.__new__(trainer.module(DMD).DMDPipeline)
        pipeline.discriminator, pipeline.config = None, SimpleNamespace(guidance_scale=2.0, gan_loss_weight_gen=0.0)
        with pytest.raises(ValueError, match="negative_encoder_hidden_states"):
            pipeline.compute_student_loss(torch.zeros(SHAPE), torch.zeros(SHAPE))


def test_a_pipeline_with_its_own_conversion_keeps_its_step(trainer):
    module = trainer.module(DMD)
    own = type("Own", (module.DMDPipeline,), {"_raw_to_x0": staticmethod(lambda raw, x_t, t, **_: raw)})
    _, _, compute = pipeline(module, 0, torch.float32, gan=False, cls=own)
    torch.manual_seed(0)
    theirs = compute()
    torch.manual_seed(0)
    with trainer.patched(), pytest.warns(UserWarning, match="Own._raw_to_x0 is not what"):
        torch.testing.assert_close(compute(), theirs)
