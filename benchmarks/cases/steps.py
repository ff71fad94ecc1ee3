"""Whole steps of a distillation trainer between its networks (`networks.py`): ours, data, exact results.

The networks predict flow velocity. A student step goes from the student's raw output to its gradient: sample, noise, x0
of teacher and fake score, guidance, loss, backward. A fake score's step goes to the gradients of the fake score's raw
output and of the discriminator's logits. The error is that of the raw output's gradient. What is timed draws its noise;
where results are compared with exact ones, noise is given.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

import fdkernels as fdk
from benchmarks.cases import networks, step_chains
from benchmarks.cases.exact import doubles, exact_gradient, exact_weight
from benchmarks.cases.formula import HEADS, Draw, Formula, loss_scale
from benchmarks.cases.shapes import DTYPES, STEP, Case
from benchmarks.cases.step_chains import (
    FASTGEN_GUIDANCE,
    GAN_WEIGHT,
    LARGEST_T,
    R1_SIGMA,
    R1_WEIGHT,
    SELF_FORCING_GUIDANCE,
)

SHIFT = 5.0  # of Self-Forcing's timesteps


class StudentInputs(NamedTuple):
    student: Tensor
    """The raw output. Like those of the networks on x_t it is a flow velocity."""
    teacher: Tensor
    uncond: Tensor
    fake: Tensor
    start: Tensor
    """What the student has seen, at the level start_t."""
    start_t: Tensor
    t: Tensor
    noise: Tensor | None
    logits: Tensor
    sent: Tensor
    """The gradient that the discriminator sends back to x_t."""
    sigmas: Tensor
    timesteps: Tensor


class FakeScoreInputs(NamedTuple):
    fake: Tensor
    student: Tensor
    teacher: Tensor
    """Not used by the step: the ceiling's third tensor."""
    start: Tensor
    start_t: Tensor
    t: Tensor
    noise: Tensor | None
    sigmas: Tensor
    timesteps: Tensor
    real: Any = None
    real_t: Any = None
    real_noise: Tensor | None = None
    near_noise: Tensor | None = None
    logits: Any = None
    real_logits: Any = None
    near_logits: Any = None


# ---- ours


def sample(v: Any, sigma: float, backend: str) -> Tensor:
    """The student's sample."""
    return fdk.Prediction("flow_prediction", v.start, sigma=sigma).to_x0(v.student, backend=backend)


def our_fastgen_student(v: StudentInputs, normalizer: fdk.RatioNormalizer, backend: str) -> Tensor:
    x = sample(v, LARGEST_T, backend)
    noisy = fdk.add_noise(x, None, v.t, v.noise, backend=backend)
    fake, teacher, uncond = networks.outputs((noisy,), v.fake, v.teacher, v.uncond)
    loss: Tensor = fdk.fused_fdiv_loss(
        x, teacher, fake, networks.logits(noisy, v.logits, v.sent), v.t, divergence="js", normalizer=normalizer,
        prediction=fdk.Prediction("flow_prediction", noisy, sigma=v.t), teacher_uncond=uncond,
        guidance_scale=FASTGEN_GUIDANCE, gan_weight=GAN_WEIGHT, backend=backend,
    )  # fmt: skip
    return loss


def our_fastgen_fake_score(v: FakeScoreInputs, _: fdk.RatioNormalizer, backend: str) -> Tensor:
    x = sample(v, LARGEST_T, backend)
    noisy, noise = fdk.add_noise(x, None, v.t, v.noise, return_noise=True, backend=backend)
    real = fdk.add_noise(v.real, None, v.real_t, v.real_noise, backend=backend)
    near = fdk.add_noise(v.real, 1.0, R1_SIGMA, v.near_noise, backend=backend)
    fake, logits, real_logits, near_logits = networks.outputs(
        (noisy, real, near), v.fake, v.logits, v.real_logits, v.near_logits
    )
    denoising = fdk.denoising_loss(fake, x, noise, "flow_prediction", backend=backend)
    discriminator = fdk.discriminator_loss(logits, real_logits, backend=backend)
    return denoising + discriminator + R1_WEIGHT * fdk.gradient_penalty(real_logits, near_logits, backend=backend)


def sigma_of_timesteps(v: Any) -> Tensor:
    sigma = v.sigmas[step_chains.nearest(v.timesteps, v.t.flatten(0, 1))].view(v.t.shape)
    return sigma.as_subclass(type(v.t))


def our_self_forcing_student(v: StudentInputs, _: fdk.RatioNormalizer, backend: str) -> Tensor:
    sigma = sigma_of_timesteps(v)
    x = sample(v, 1.0, backend)
    noisy = fdk.add_noise(x.detach(), None, sigma, v.noise, backend=backend)
    fake, teacher, uncond = networks.outputs((noisy,), v.fake, v.teacher, v.uncond)
    loss: Tensor = fdk.fused_fdiv_loss(
        x, teacher, fake, divergence="rkl", scale=fdk.DmdScale(eps=0.0), teacher_uncond=uncond,
        guidance_scale=1 + SELF_FORCING_GUIDANCE, backend=backend,
        prediction=fdk.Prediction("flow_prediction", noisy, sigma=sigma),
    )  # fmt: skip
    return loss


def our_self_forcing_fake_score(v: FakeScoreInputs, _: fdk.RatioNormalizer, backend: str) -> Tensor:
    x = sample(v, 1.0, backend)
    noisy, noise = fdk.add_noise(x, None, sigma_of_timesteps(v), v.noise, return_noise=True, backend=backend)
    (fake,) = networks.outputs((noisy,), v.fake)
    return fdk.denoising_loss(fake, x, noise, "flow_prediction", backend=backend)


# ---- data


def grid(device: str) -> tuple[Tensor, Tensor]:
    """Self-Forcing's 1,000 levels, and their timesteps."""
    sigmas = torch.linspace(1, 0, 1001, device=device)[:-1]
    sigmas = SHIFT * sigmas / (1 + (SHIFT - 1) * sigmas)
    return sigmas, 1000 * sigmas


def sigma_of(v: Any, t: Tensor) -> Tensor:
    """Levels in float64, at the samples' rank: FastGen's t (B,) itself; of Self-Forcing's (B, F) the grid's."""
    if t.dim() == 2:
        t = v.sigmas[step_chains.nearest(v.timesteps, t.flatten(0, 1))].view(t.shape)
    return t.double().reshape(*t.shape, *[1] * (v.student.dim() - t.dim()))


def sampled(case: Case, draw: Draw) -> dict[str, Tensor]:
    """What both steps begin with, in float32: a sample x, the student's output that makes it, noise, levels."""
    batch, framed = case.shape[0], case.formula.startswith("self_forcing")
    x, start, noise = (draw.normal(*case.shape) for _ in range(3))
    t = draw.uniform(batch, 0.02, 0.98).double()
    start_t = torch.full_like(t, LARGEST_T)
    if framed:
        frames = case.shape[1]
        t, start_t = ((1000 * w).float()[:, None].repeat(1, frames) for w in (t, torch.ones_like(t)))
    sigmas, timesteps = grid(draw.device)
    student = start - x if framed else (start - x) / LARGEST_T
    return {"student": student, "start": start, "start_t": start_t, "t": t, "noise": noise, "sigmas": sigmas,
            "timesteps": timesteps, "x": x}  # fmt: skip


def in_dtype(found: dict[str, Tensor], case: Case) -> dict[str, Tensor]:
    """N-sized tensors in the case's dtype."""
    return {k: w.to(DTYPES[case.dtype]) if w.shape == case.shape else w for k, w in found.items()}


def student_inputs(case: Case, draw: Draw) -> StudentInputs:
    found = sampled(case, draw)
    x, noise = found.pop("x"), found["noise"]
    sigma = sigma_of(StudentInputs(**found, teacher=x, uncond=x, fake=x, logits=x, sent=x), found["t"]).float()
    noisy = (1 - sigma) * x + sigma * noise
    teacher = x + 0.5 * draw.normal(*case.shape)
    uncond, fake = (teacher + by * draw.normal(*case.shape) for by in (0.1, 0.25))
    for name, x0 in (("teacher", teacher), ("uncond", uncond), ("fake", fake)):
        found[name] = (noisy - x0) / sigma
    found["sent"] = draw.normal(*case.shape) * (0.3 / case.elements * loss_scale(DTYPES[case.dtype]))
    v = StudentInputs(**in_dtype(found, case), logits=draw.normal(case.shape[0], HEADS).requires_grad_())
    v.student.requires_grad_()
    return v


def fake_score_inputs(case: Case, draw: Draw) -> FakeScoreInputs:
    found = sampled(case, draw)
    x = found.pop("x")
    found["fake"] = found["noise"] - x + 0.5 * draw.normal(*case.shape)
    found["teacher"] = x
    if case.formula.startswith("fastgen"):
        found |= {name: draw.normal(*case.shape) for name in ("real", "real_noise", "near_noise")}
        found["real_t"] = draw.uniform(case.shape[0], 0.02, 0.98).double()
    v = FakeScoreInputs(**in_dtype(found, case))
    v.fake.requires_grad_()
    if v.real is None:
        return v
    logits, real, apart = (draw.normal(case.shape[0], HEADS) for _ in range(3))
    near = real + 0.1 * apart
    return v._replace(
        logits=logits.requires_grad_(), real_logits=real.requires_grad_(), near_logits=near.requires_grad_()
    )


# ---- exact results


def exact_sample(v: Any) -> Tensor:
    """The student's sample, rounded to its dtype once, as in every trainer."""
    start, student = doubles(v.start, v.student)
    return (start - sigma_of(v, v.start_t) * student).to(v.student.dtype).double()


def exact_student(v: StudentInputs, guidance: float, h: Tensor | None, eps: float) -> Tensor:
    """The gradient of the raw output from the score difference."""
    x, sigma = exact_sample(v), sigma_of(v, v.t)
    teacher, uncond, fake, noise = doubles(v.teacher, v.uncond, v.fake, v.noise)
    noisy = ((1 - sigma) * x + sigma * noise).to(v.student.dtype).double()
    teacher = noisy - sigma * (uncond + guidance * (teacher - uncond))
    return -sigma_of(v, v.start_t) * exact_gradient(x, teacher, noisy - sigma * fake, h, eps)


def exact_fastgen_student(v: StudentInputs) -> Tensor:
    sent = v.sent.double() / loss_scale(v.sent.dtype) * (1 - sigma_of(v, v.t))
    return exact_student(v, FASTGEN_GUIDANCE, exact_weight(v), eps=1e-6) - sigma_of(v, v.start_t) * sent


def exact_fake_score(v: FakeScoreInputs) -> Tensor:
    fake, noise = doubles(v.fake, v.noise)
    return 2 * (fake - (noise - exact_sample(v))) / fake.numel()


# ---- the formulas

_STUDENT: dict[str, Any] = {"op": STEP, "inputs": student_inputs, "draws": True, "reread": 0}
_FAKE_SCORE: dict[str, Any] = {"op": STEP, "inputs": fake_score_inputs, "draws": True, "reread": 0}


def _called(chain: Any, v: Any, bins: Tensor) -> Any:
    return chain(v, bins)


STEPS = (
    Formula(
        "fastgen_student", peer="fastgen",
        title="FastGen's student step: f-distill with js, normalizer and guidance, the generator's term",
        chain=step_chains.fastgen_student, call=_called, ours=our_fastgen_student, exact=exact_fastgen_student,
        # start, student, teacher, uncond, fake and what is sent to x_t are read, x_t is written.
        images=7, leaves=("student", "logits"), **_STUDENT,
    ),
    Formula(
        "fastgen_fake_score", peer="fastgen", title="FastGen's fake score and discriminator: denoising, logistic, R1",
        chain=step_chains.fastgen_fake_score, call=_called, ours=our_fastgen_fake_score, exact=exact_fake_score,
        # start, student, fake and real data are read, three noised ones are written.
        images=7, leaves=("fake", "logits", "real_logits", "near_logits"), **_FAKE_SCORE,
    ),
    Formula(
        "self_forcing_student", peer="self_forcing", title="Self-Forcing's student step: DMD with guidance",
        chain=step_chains.self_forcing_student, call=_called, ours=our_self_forcing_student,
        exact=lambda v: exact_student(v, 1 + SELF_FORCING_GUIDANCE, None, eps=0.0),
        images=6, leaves=("student",), video=True, **_STUDENT,
    ),
    Formula(
        "self_forcing_fake_score", peer="self_forcing", title="Self-Forcing's fake score step: flow matching",
        chain=step_chains.self_forcing_fake_score, call=_called, ours=our_self_forcing_fake_score,
        exact=exact_fake_score, images=4, leaves=("fake",), video=True, **_FAKE_SCORE,
    ),
)  # fmt: skip
