"""Inputs of docs/recipes.md, and the trainers' losses in float64, each written from its formula with a pseudo-target.

A formula does all that a trainer does: conversion to x0, guidance, normalizer, mask, reduction. It calls nothing of
fdkernels.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

import fdkernels as fdk

SHAPE = (3, 6, 4, 3, 5)
GUIDANCE, FAKE_GUIDANCE = 4.5, 1.5  # in the convention u + g·(c - u)
PARTS = (slice(0, 2), slice(2, 3))  # micro-batches, or ranks
PREDICTIONS = ("teacher", "teacher_uncond", "fake", "fake_uncond")


@dataclass(frozen=True)
class Recipe:
    """A trainer's loss as a function of named inputs, and what these inputs are like."""

    formula: Callable[[SimpleNamespace], Tensor]
    kind: str = "sample"  # prediction kind of teacher and fake
    floor: float = 0.0  # the first sample's mean of |x - tau| stays below it
    mask: tuple[int, ...] = (3, 6)
    frames: int = 6
    block: int = 3  # frames per block
    differs: float = 0.0  # the relative difference that the page states
    value: bool = True  # False: the page claims the gradient alone
    also: tuple[str, ...] = ()  # inputs that get a gradient, beside the students


def mse(x: Tensor, g: Tensor, kept: Tensor | None = None) -> Tensor:
    """Half the mean square of x - sg(x - g), over kept elements."""
    error = x - (x - g).detach()
    return 0.5 * (error if kept is None else error[kept.expand_as(error)]).square().mean()


def over_sample(x: Tensor) -> Tensor:
    return x.mean(tuple(range(1, x.dim())), keepdim=True)


def frames(v: Tensor, rank: int = len(SHAPE)) -> Tensor:
    """Append dimensions of 1 to (B, F) or (B,), up to the student's rank."""
    return v.reshape(*v.shape, *(1,) * (rank - v.dim()))


def cfg(v: SimpleNamespace) -> Tensor:
    return v.teacher_uncond + v.guidance_scale * (v.teacher - v.teacher_uncond)


def cfg_plus(v: SimpleNamespace) -> Tensor:
    return v.teacher + v.w * (v.teacher - v.teacher_uncond)


def distance(x: Tensor, tau: Tensor) -> Tensor:
    return (x - tau).detach().abs()


# FastGen and its descendants: they add an epsilon.


def vsd_loss(x: Tensor, tau: Tensor, fake: Tensor, additional: Tensor | None = None) -> Tensor:
    w = 1 / (over_sample(distance(x, tau)) + 1e-6)
    return mse(x, (fake - tau) * (w if additional is None else w * frames(additional, x.dim())))


def fastgen(v: SimpleNamespace) -> Tensor:
    return vsd_loss(v.student, v.teacher, v.fake, fastgen_h(v.logits, v.t, v.bins, v.decay))


def fastgen_gan(v: SimpleNamespace) -> Tensor:
    constant = SimpleNamespace(**{**vars(v), "logits": v.logits.detach()})
    return fastgen(constant) + v.gan_loss_weight_gen * torch.log1p(torch.exp(-v.logits)).mean()


def fastgen_h(logits: Tensor, t: Tensor, bins: Tensor, decay: float, epsilon: float = 1e-6) -> Tensor:
    ratio = logits.mean(1).exp().clamp(0.1, 20.0)
    index = (t * len(bins)).floor().long().clamp(0, len(bins) - 1)
    count = torch.bincount(index, minlength=len(bins)).double()
    mean = torch.bincount(index, ratio, minlength=len(bins)) / (count + epsilon)
    bins = torch.where(count > 0, decay * bins + (1 - decay) * mean, bins)
    ratio = ratio / (bins[index] + epsilon)
    h = ratio / (1 + ratio)
    return h / (h.mean() + epsilon)


def cosmos_sample(x: Tensor, tau: Tensor, gradient: Tensor, kept: Tensor, reduction: str) -> Tensor:
    kept = kept.expand_as(x).double()
    mean = (distance(x, tau) * kept).sum() / kept.sum().clamp(min=1)
    w = 1 / mean.clamp(min=1e-5) if reduction == "per_instance_sum" else 1 / (mean + 1e-6)
    g = gradient * w
    if reduction == "per_instance_sum":
        g = torch.where(torch.isfinite(g).all(), g, torch.zeros_like(g))
    square = ((x - (x - g).detach()).square() * kept).sum()
    return square if reduction == "per_instance_sum" else 0.5 * square / kept.sum().clamp(min=1)


def cosmos(v: SimpleNamespace) -> Tensor:
    tau = v.teacher + (v.guidance_scale - 1) * (v.teacher - v.teacher_uncond)
    parts = zip(v.student, tau, v.fake - tau, v.mask, strict=True)
    return torch.stack([cosmos_sample(*part, "mean") for part in parts]).mean()


def cosmos_ragged(v: SimpleNamespace) -> Tensor:
    parts = zip(v.students, v.teachers, v.fakes, v.masks, strict=True)
    return torch.stack([cosmos_sample(x, tau, f - tau, kept, "mean") for x, tau, f, kept in parts]).mean()


def cosmos_gradient(v: SimpleNamespace) -> Tensor:
    parts = zip(v.student, v.reference, v.gradient, v.mask, strict=True)
    return torch.stack([cosmos_sample(*part, "per_instance_sum") for part in parts]).mean()


# The Self-Forcing family: no epsilon, nan_to_num.


def dmd(x: Tensor, tau: Tensor, fake: Tensor, normalizer: Tensor, kept: Tensor | None = None) -> Tensor:
    return mse(x, torch.nan_to_num((fake - tau) / normalizer), kept)


def self_forcing(v: SimpleNamespace) -> Tensor:
    tau = cfg_plus(v)
    kept = None if v.mask is None else frames(v.mask, v.student.dim())
    return dmd(v.student, tau, v.fake, over_sample(distance(v.student, tau)), kept)


def self_forcing_velocity(v: SimpleNamespace) -> Tensor:
    x0 = {name: v.noisy - frames(v.sigma) * getattr(v, name) for name in PREDICTIONS}
    fake = x0["fake"] + v.fake_w * (x0["fake"] - x0["fake_uncond"])
    tau = x0["teacher"] + v.w * (x0["teacher"] - x0["teacher_uncond"])
    return dmd(v.student, tau, fake, over_sample(distance(v.student, tau)), frames(v.mask))


def causvid(v: SimpleNamespace) -> Tensor:
    tau = cfg_plus(v)
    return dmd(v.student, tau, v.fake, over_sample(distance(v.student, tau)))


def dmd2(x: Tensor, tau: Tensor, fake: Tensor) -> Tensor:
    p_real, p_fake = (x - tau).detach(), (x - fake).detach()
    return mse(x, torch.nan_to_num((p_real - p_fake) / over_sample(p_real.abs())))


def dmd2_latents(v: SimpleNamespace) -> Tensor:
    alpha, sigma = (frames(level, v.student.dim()) for level in (v.alpha, v.sigma))
    epsilon = v.teacher if v.teacher_uncond is None else cfg(v)
    return dmd2(v.student, *((v.noisy - sigma * e) / alpha for e in (epsilon, v.fake)))


def over_blocks(x: Tensor, size: int) -> Tensor:
    means = x.unflatten(1, (-1, size)).mean((2, 3, 4, 5))
    return frames(means.repeat_interleave(size, 1))


def longlive(v: SimpleNamespace) -> Tensor:
    tau = cfg_plus(v)
    normalizer = over_blocks(distance(v.student, tau), v.frames_per_block)
    return dmd(v.student, tau, v.fake, normalizer, frames(v.mask))


def longlive_first_frame(v: SimpleNamespace) -> Tensor:
    tau = cfg_plus(v)
    normalizer = torch.ones_like(tau)
    tail = over_blocks(distance(v.student, tau)[:, 1:], v.frames_per_block)
    normalizer[:, 1:] = tail.expand_as(normalizer[:, 1:])
    return dmd(v.student, tau, v.fake, normalizer, frames(v.mask))


def fastvideo(v: SimpleNamespace) -> Tensor:
    tau = cfg(v)
    return dmd(v.student, tau, v.fake, distance(v.student, tau).mean())


def fastvideo_streaming(v: SimpleNamespace) -> Tensor:
    tau, x = cfg(v), v.student
    g = torch.nan_to_num((v.fake - tau) / over_sample(distance(x, tau)).clamp(min=1e-6))
    kept = frames(v.chunk_mask).expand_as(x)
    return (0.5 * (x - (x - g).detach()).square() * kept).sum() / kept.sum().clamp(min=1)


# Other trainers.


def rcm_loss(x: Tensor, tau: Tensor, fake: Tensor) -> Tensor:
    g = (fake - tau) / over_sample(distance(x, tau)).clip(min=1e-5)
    bad = g.isnan().flatten(1).any(1)
    return (x - (x - torch.where(frames(bad), 0.0, g)).detach()).square().sum()


def rcm(v: SimpleNamespace) -> Tensor:
    return rcm_loss(v.student, cfg(v), v.fake)


def rcm_velocity(v: SimpleNamespace) -> Tensor:
    cos, sin = frames(v.time.cos()), frames(v.time.sin())
    return rcm_loss(v.student, *((v.noisy - sin * raw) / (cos + sin) for raw in (cfg(v), v.fake)))


def clamp(v: SimpleNamespace) -> Tensor:
    normalizer = over_sample(distance(v.student, v.teacher)).clamp(min=1e-5)
    return mse(v.student, (v.fake - v.teacher) / normalizer)


def lightx2v(v: SimpleNamespace) -> Tensor:
    tau, fake = (v.noisy - frames(v.sigma) * velocity for velocity in (cfg(v), v.fake))
    return dmd(v.student, tau, fake, over_sample(distance(v.student, tau)))


def cdm(v: SimpleNamespace) -> Tensor:
    tau, fake = (v.noisy - frames(v.sigma) * velocity for velocity in (v.teacher, v.fake))
    return v.weight * dmd(v.student, tau, fake, over_sample(distance(v.student, tau)).clamp(min=0.1))


def vsd(v: SimpleNamespace) -> Tensor:
    g = frames(v.sigma) ** 2 * (cfg(v) - v.fake)
    return 0.5 * (v.student - (v.student - g).detach()).square().sum() / len(v.student)


def sid(v: SimpleNamespace) -> Tensor:
    e = v.teacher - v.fake
    return e * ((v.teacher - v.student) - v.sid_alpha * e)


def tdm(v: SimpleNamespace) -> Tensor:
    tau = v.teacher + (v.guidance_scale - 1) * (v.teacher - v.teacher_uncond)
    target = (v.student + (tau - v.fake)).detach()
    return ((v.student - target).square() / over_sample(distance(v.student, tau))).mean()


def whole_batch(v: SimpleNamespace) -> Tensor:
    """The batch in one piece: js without FastGen's epsilons in h, and a mean over all kept elements."""
    h = fastgen_h(v.logits, v.t, v.bins, v.decay, epsilon=0.0)
    g = (v.fake - v.teacher) * frames(h) / (over_sample(distance(v.student, v.teacher)) + 1e-6)
    return mse(v.student, g, frames(v.mask))


RECIPES = {
    "fastgen": Recipe(fastgen, differs=1e-5),
    "fastgen-gan": Recipe(fastgen_gan, differs=1e-5, also=("logits",)),
    "fastgen-weight": Recipe(lambda v: vsd_loss(v.student, v.teacher, v.fake, v.h)),
    "model-optimizer": Recipe(lambda v: vsd_loss(v.student, cfg(v), v.fake)),
    "cosmos": Recipe(cosmos, mask=(3, 1, 4, 1, 1)),
    "cosmos-ragged": Recipe(cosmos_ragged),
    "cosmos-gradient": Recipe(cosmos_gradient, floor=1e-5, mask=(3, 1, 4, 1, 1)),
    "self-forcing": Recipe(self_forcing),
    "self-forcing-velocity": Recipe(self_forcing_velocity, kind="flow per frame"),
    "causvid": Recipe(causvid),
    "dmd2-pixels": Recipe(lambda v: dmd2(v.student, v.teacher, v.fake)),
    "dmd2-latents": Recipe(dmd2_latents, kind="epsilon"),
    "longlive": Recipe(longlive),
    "longlive-first-frame": Recipe(longlive_first_frame, frames=5, block=2),
    "fastvideo": Recipe(fastvideo),
    "fastvideo-streaming": Recipe(fastvideo_streaming, floor=1e-6),
    "rcm": Recipe(rcm, floor=1e-5),
    "rcm-velocity": Recipe(rcm_velocity, kind="trig", floor=1e-5),
    "clamp": Recipe(clamp, floor=1e-5),
    "lightx2v": Recipe(lightx2v, kind="flow"),
    "cdm": Recipe(cdm, kind="flow", floor=0.1),
    "vsd": Recipe(vsd, kind="epsilon"),
    "sid": Recipe(
        lambda v: (sid(v) / over_sample(distance(v.student, v.teacher)).clamp(min=1e-5)).sum(),
        floor=1e-5,
        also=("teacher", "fake"),
    ),
    "self-forcing-sid": Recipe(
        lambda v: (sid(v) / over_sample(distance(v.student, v.teacher))).mean(), also=("teacher", "fake")
    ),
    "tdm-gradient": Recipe(tdm, value=False),
    "accumulation": Recipe(whole_batch),
    "ranks": Recipe(whole_batch),
}


def inputs(recipe: Recipe, dtype: torch.dtype) -> dict[str, Any]:
    """The names that the page's blocks use. Samples and frames are at different distances from the teacher."""
    generator = torch.Generator().manual_seed(7)

    def normal(*size: int) -> Tensor:
        return torch.randn(*size, generator=generator, dtype=torch.float64)

    # With a floor, the whole first sample is small: its small differences must be representable.
    size = frames(torch.tensor([recipe.floor if recipe.floor else 1.0, 1.0, 1.0]).double())
    error = size * frames(torch.tensor([0.05, 0.15, 0.5]).double()[:, None] * torch.arange(1, 7)[None])
    x = size * normal(*SHAPE)
    x0 = {"teacher": x + error * normal(*SHAPE)}
    for name, of, gap in (("teacher_uncond", "teacher", 0.1), ("fake", "teacher", 0.3), ("fake_uncond", "fake", 0.1)):
        x0[name] = x0[of] + gap * error * normal(*SHAPE)
    levels = {"sigma": torch.tensor([0.3, 0.55, 0.8]).to(dtype), "time": torch.tensor([0.4, 0.8, 1.2]).to(dtype)}
    levels["alpha"] = (1 - levels["sigma"].double() ** 2).sqrt().to(dtype)
    if recipe.kind == "flow per frame":
        levels["sigma"] = torch.linspace(0.2, 0.9, 18).view(3, 6).to(dtype)
    noisy = (size * normal(*SHAPE)).to(dtype)
    a, c = coefficients(recipe.kind, {name: frames(level.double()) for name, level in levels.items()})
    given = {name: ((v - a * noisy.double()) / c).to(dtype) for name, v in x0.items()}
    student, reference = x.to(dtype), x0["teacher"].to(dtype)
    history = fdk.RatioNormalizer(2, decay=0.75)
    history.mean.copy_(torch.tensor([0.6, 1.7]))
    found = {
        "student": student, "noisy": noisy, "reference": reference, **given, **levels, **ragged(student, given),
        "gradient": (x0["fake"] - x0["teacher"]).to(dtype),
        "mask": mask(recipe.mask), "chunk_mask": mask((3, 6)).float(),
        "guidance_scale": GUIDANCE, "w": GUIDANCE - 1, "fake_w": FAKE_GUIDANCE - 1,
        "frames_per_block": recipe.block, "micro_batches": PARTS,
        "weight": 0.35, "h": torch.tensor([0.4, 0.9, 1.7]).to(dtype), "t": torch.tensor([0.1, 0.4, 0.9]).to(dtype),
        "logits": torch.tensor([[0.3, -1.1], [1.2, 0.8], [-0.4, 0.9]]).to(dtype),
        "gan_loss_weight_gen": 0.7, "sid_alpha": 1.2,
        "normalizer": history, "bins": history.mean.double(), "decay": history.decay,
    }  # fmt: skip
    has_frames = {k: isinstance(v, Tensor) and v.shape[:2] == SHAPE[:2] for k, v in found.items()}
    return {k: v[:, : recipe.frames].contiguous() if has_frames[k] else v for k, v in found.items()}


def coefficients(kind: str, level: dict[str, Tensor]) -> tuple[Any, Any]:
    """(a, c) with x0 = a·x_t + c·prediction."""
    if kind == "epsilon":
        return 1 / level["alpha"], -level["sigma"] / level["alpha"]
    if kind.startswith("flow"):
        return 1.0, -level["sigma"]
    if kind == "trig":
        both = level["time"].cos() + level["time"].sin()
        return 1 / both, -level["time"].sin() / both
    return 0.0, 1.0


def mask(shape: tuple[int, ...]) -> Tensor:
    """Leaves out whole frames; a 5-d mask leaves out all frames of one sample."""
    if len(shape) == 2:
        return torch.tensor([[1, 1, 0, 0, 0, 0], [1, 1, 1, 1, 1, 1], [0, 1, 0, 1, 1, 0]]).bool()
    return torch.tensor([[0, 1, 0, 0], [1, 0, 1, 1], [0, 0, 0, 0]]).bool().view(shape)


def ragged(student: Tensor, given: dict[str, Tensor]) -> dict[str, list[Tensor]]:
    """Samples (C, T, H, W) with different T, and masks (T, 1, 1)."""
    lengths = (4, 2, 3)

    def cut(v: Tensor) -> list[Tensor]:
        return [sample[:, :length].contiguous() for sample, length in zip(v, lengths, strict=True)]

    masks = [torch.tensor(kept).bool().view(-1, 1, 1) for kept in ([1, 0, 0, 1], [1, 1], [0, 1, 0])]
    return {"students": cut(student), "teachers": cut(given["teacher"]), "fakes": cut(given["fake"]), "masks": masks}
