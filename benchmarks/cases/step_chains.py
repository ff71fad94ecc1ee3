"""The peers' steps between their networks, in eager PyTorch, with their casts, temporaries, checks and small ops.

Written from the formulas of NVlabs/FastGen (34f30e8: f_distill, dmd2, common_loss, the rectified flow schedule) and
guandeh17/Self-Forcing (33593df: dmd, the flow matching scheduler, wan_wrapper). Noise levels are drawn before the step.
What only their logs show is left out.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import mse_loss, softplus

from benchmarks.cases import networks
from benchmarks.cases.baselines import fastgen_loss, fastgen_weight, per_sample, self_forcing_chain

FASTGEN_GUIDANCE = 5.0  # u + g (c - u)
SELF_FORCING_GUIDANCE = 3.0  # c + w (c - u)
GAN_WEIGHT = 1e-3
R1_WEIGHT, R1_SIGMA = 100.0, 0.1
LARGEST_T = 0.999


# ---- FastGen


def is_valid(t: Tensor) -> Tensor:
    """Whether all t are within the schedule's range, give or take one place. The caller's assert waits for it."""
    low, high = (torch.as_tensor(end, dtype=t.dtype, device=t.device) for end in (0.0, LARGEST_T))
    inf = (torch.tensor(end, dtype=t.dtype, device=t.device) for end in (-torch.inf, torch.inf))
    low, high = (torch.nextafter(end, beyond) for end, beyond in zip((low, high), inf, strict=True))
    return torch.all((low <= t) & (t <= high))


def fastgen_noised(x: Tensor, noise: Tensor, t: Tensor) -> Tensor:
    """(1-t)·x + t·ε in float64, rounded to x's dtype."""
    assert is_valid(t)
    alpha, sigma = per_sample(1 - t.double(), x), per_sample(t.double(), x)
    return x.double().mul(alpha).add(noise.double().mul(sigma)).to(x.dtype)


def fastgen_x0(noisy: Tensor, flow: Tensor, t: Tensor) -> Tensor:
    """x_t - t·u in float64, rounded to x_t's dtype."""
    assert is_valid(t)
    level = per_sample(t.double(), noisy)
    return (noisy.double() - flow.double().mul(level)).to(noisy.dtype)


def drawn(noise: Tensor | None, like: Tensor) -> Tensor:
    return torch.randn_like(like) if noise is None else noise


def fastgen_student(v: Any, bins: Tensor) -> Tensor:
    """f-distill's loss and the generator's term, of the student's raw output."""
    x = fastgen_x0(v.start, v.student, v.start_t)
    noisy = fastgen_noised(x, drawn(v.noise, x), v.t)
    fake, teacher, uncond = networks.outputs((noisy,), v.fake, v.teacher, v.uncond)
    logits = networks.logits(noisy, v.logits, v.sent)
    with torch.no_grad():
        fake = fastgen_x0(noisy, fake, v.t)
        uncond = fastgen_x0(noisy, uncond, v.t)
    teacher = fastgen_x0(noisy, teacher, v.t)
    generator = softplus(-logits).mean()
    teacher = teacher + (FASTGEN_GUIDANCE - 1) * (teacher - uncond)
    return fastgen_loss(x, teacher, fake, fastgen_weight(logits, v.t, bins)) + GAN_WEIGHT * generator


def fastgen_fake_score(v: Any, _: Tensor) -> Tensor:
    """The fake score's denoising loss, the discriminator's loss on noised data, and approximate R1."""
    with torch.no_grad():
        x = fastgen_x0(v.start, v.student, v.start_t)
        noise = drawn(v.noise, x)
        noisy = fastgen_noised(x, noise, v.t)
        real = fastgen_noised(v.real, drawn(v.real_noise, v.real), v.real_t)
    near = v.real.add(R1_SIGMA * drawn(v.near_noise, v.real))
    fake, logits, real_logits, near_logits = networks.outputs(
        (noisy, real, near), v.fake, v.logits, v.real_logits, v.near_logits
    )
    denoising = mse_loss(noise - x, fake)
    discriminator = softplus(logits).mean() + softplus(-real_logits).mean()
    return denoising + discriminator + R1_WEIGHT * mse_loss(real_logits, near_logits)


# ---- Self-Forcing. Its tensors are (B, F, C, H, W), and its levels those of the nearest of 1,000 timesteps.


def nearest(timesteps: Tensor, t: Tensor) -> Tensor:
    return (timesteps.unsqueeze(0) - t.unsqueeze(1)).abs().argmin(1)


def self_forcing_noised(x: Tensor, noise: Tensor, t: Tensor, sigmas: Tensor, timesteps: Tensor) -> Tensor:
    """(1-σ)·x + σ·ε in float32, rounded to the noise's dtype."""
    sigma = sigmas[nearest(timesteps, t.flatten(0, 1))].reshape(-1, 1, 1, 1)
    noisy = (1 - sigma) * x.flatten(0, 1) + sigma * noise.flatten(0, 1)
    return noisy.type_as(noise).unflatten(0, x.shape[:2])


def self_forcing_x0(flow: Tensor, noisy: Tensor, t: Tensor, sigmas: Tensor, timesteps: Tensor) -> Tensor:
    """x_t - σ·u in float64, rounded to the prediction's dtype."""
    wide, x_t, sigmas, timesteps = (w.double() for w in (flow.flatten(0, 1), noisy.flatten(0, 1), sigmas, timesteps))
    sigma = sigmas[nearest(timesteps, t.flatten(0, 1))].reshape(-1, 1, 1, 1)
    return (x_t - sigma * wide).to(flow.dtype).unflatten(0, flow.shape[:2])


def self_forcing_flow(x0: Tensor, noisy: Tensor, t: Tensor, sigmas: Tensor, timesteps: Tensor) -> Tensor:
    """(x_t - x0) / σ in float64, rounded to x0's dtype."""
    wide, x_t, sigmas, timesteps = (w.double() for w in (x0.flatten(0, 1), noisy.flatten(0, 1), sigmas, timesteps))
    sigma = sigmas[nearest(timesteps, t.flatten(0, 1))].reshape(-1, 1, 1, 1)
    return ((x_t - wide) / sigma).to(x0.dtype).unflatten(0, x0.shape[:2])


def self_forcing_student(v: Any, _: Tensor) -> Tensor:
    """DMD's loss of the generator's raw output."""
    grid = v.sigmas, v.timesteps
    x = self_forcing_x0(v.student, v.start, v.start_t, *grid)
    with torch.no_grad():
        noisy = self_forcing_noised(x, drawn(v.noise, x), v.t, *grid)
    found = networks.outputs((noisy,), v.fake, v.teacher, v.uncond)
    with torch.no_grad():
        fake, teacher, uncond = (self_forcing_x0(w, noisy, v.t, *grid) for w in found)
    return self_forcing_chain(x, teacher, uncond, fake, SELF_FORCING_GUIDANCE)


def self_forcing_fake_score(v: Any, _: Tensor) -> Tensor:
    """The critic's flow matching loss: the flow becomes x0, and flow again. There is no discriminator."""
    grid = v.sigmas, v.timesteps
    with torch.no_grad():
        x = self_forcing_x0(v.student, v.start, v.start_t, *grid)
        noise = drawn(v.noise, x)
        noisy = self_forcing_noised(x, noise, v.t, *grid)
    (fake,) = networks.outputs((noisy,), v.fake)
    flow = self_forcing_flow(self_forcing_x0(fake, noisy, v.t, *grid), noisy, v.t, *grid)
    return torch.mean((flow - (noise - x)) ** 2)
