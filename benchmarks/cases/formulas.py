"""The formulas that are timed: data, our call, the peer's chain, and the exact result in float64.

All but `weight` run forward + backward, to the student's gradient, at an upstream that exists already. The upstream is
1, where our backward has nothing to do, with two exceptions: fastgen_scaled (like a loss divided for accumulation, or
weighted against other losses), where our backward passes over the gradient once more, and float16, which trains with a
loss scale. All data has the case's dtype (coefficients, logits and t are float32), although a peer may mix dtypes: DMD2
trains in float32 with a teacher in bf16. What the peers compute for their logs (norms fetched with `.item()`) is left
out.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

import fdkernels as fdk
from benchmarks.cases import baselines
from benchmarks.cases.exact import doubles, exact_gradient, exact_weight
from benchmarks.cases.formula import BINS, HEADS, Draw, Formula, Inputs
from benchmarks.cases.logits import LOGITS
from benchmarks.cases.parameters import LISTS
from benchmarks.cases.shapes import DTYPES, Case
from benchmarks.cases.steps import STEPS

GUIDANCE_W = 3.0
SIM_C = 1.0
DISTINCT = 4  # sets of inputs with different values; a longer rotation adds copies of them


# ---- data


def _logits(case: Case, draw: Draw) -> Inputs:
    nothing = torch.empty(0, device=draw.device)
    return Inputs(nothing, nothing, nothing, draw.normal(*case.shape), draw.uniform(case.shape[0]))


def _images(case: Case, draw: Draw) -> Inputs:
    dtype, batch = DTYPES[case.dtype], case.shape[0]
    x = draw.normal(*case.shape)
    teacher = x + 0.5 * draw.normal(*case.shape)
    fake = teacher + 0.25 * draw.normal(*case.shape)
    logits, t = draw.normal(batch, HEADS), draw.uniform(batch)
    return Inputs(x.to(dtype).requires_grad_(), teacher.to(dtype), fake.to(dtype), logits, t)


def _predictions(case: Case, draw: Draw) -> Inputs:
    """Like `_images`, with predictions of epsilon in place of x0."""
    v, dtype = _images(case, draw), DTYPES[case.dtype]
    alpha = draw.uniform(case.shape[0], 0.2, 0.9)
    sigma = (1 - alpha**2).sqrt()
    a, s = baselines.per_sample(alpha, v.student), baselines.per_sample(sigma, v.student)
    noisy = (a * v.student.detach() + s * draw.normal(*case.shape)).to(dtype)
    teacher, fake = (((noisy.float() - a * x0) / s).to(dtype) for x0 in (v.teacher, v.fake))
    return v._replace(teacher=teacher, fake=fake, noisy=noisy, alpha=alpha, sigma=sigma)


def _noised(case: Case, draw: Draw) -> Inputs:
    """`student` is a v prediction of x0 (`teacher`) and noise (`fake`), or just there."""
    dtype = DTYPES[case.dtype]
    x0, noise, error = (draw.normal(*case.shape) for _ in range(3))
    alpha = draw.uniform(case.shape[0], 0.2, 0.9)
    sigma = (1 - alpha**2).sqrt()
    v = baselines.per_sample(alpha, x0) * noise - baselines.per_sample(sigma, x0) * x0 + 0.5 * error
    nothing = torch.empty(0, device=draw.device)
    return Inputs(
        v.to(dtype).requires_grad_(), x0.to(dtype), noise.to(dtype), nothing, nothing, alpha=alpha, sigma=sigma
    )


def _scores(case: Case, draw: Draw) -> Inputs:
    """Like `_images`, with a teacher and a fake score that send gradients back. sigma: SIM's k."""
    v = _images(case, draw)
    teacher, fake = (w.requires_grad_() for w in (v.teacher, v.fake))
    return v._replace(teacher=teacher, fake=fake, sigma=draw.uniform(case.shape[0], 0.5, 2.0))


def _guided_videos(case: Case, draw: Draw) -> Inputs:
    v = _images(case, draw)
    uncond = (v.teacher + 0.1 * draw.normal(*case.shape)).to(v.teacher.dtype)
    frames = torch.ones(*case.shape[:2], *[1] * (len(case.shape) - 2), dtype=torch.bool, device=draw.device)
    frames[:, 0] = False  # the first frame is given
    return v._replace(uncond=uncond, frames=frames, mask=frames.expand(case.shape).contiguous())


def make_inputs(case: Case, device: str, seed: int) -> Any:
    return FORMULAS[case.formula].inputs(case, Draw(device, seed))


def copy_of(v: Any) -> Any:
    """The same values in memory of their own."""
    return type(v)._make(None if w is None else w.detach().clone().requires_grad_(w.requires_grad) for w in v)


def rotation(case: Case, device: str, count: int) -> list[Any]:
    """Sets of inputs, each with its own memory."""
    sets = [make_inputs(case, device, seed) for seed in range(min(count, DISTINCT))]
    return sets + [copy_of(sets[i % DISTINCT]) for i in range(len(sets), count)]


# ---- exact results, in float64


def _exact_fastgen(v: Inputs) -> Tensor:
    x, teacher, fake = doubles(v.student, v.teacher, v.fake)
    return exact_gradient(x, teacher, fake, exact_weight(v), eps=1e-6)


def _exact_dmd2_latent(v: Inputs) -> Tensor:
    x, teacher, fake, noisy, alpha, sigma = doubles(v.student, v.teacher, v.fake, v.noisy, v.alpha, v.sigma)
    a, s = baselines.per_sample(alpha, x), baselines.per_sample(sigma, x)
    return exact_gradient(x, (noisy - s * teacher) / a, (noisy - s * fake) / a)


def _exact_self_forcing(v: Inputs) -> Tensor:
    x, cond, uncond, fake = doubles(v.student, v.teacher, v.uncond, v.fake)
    return exact_gradient(x, cond + GUIDANCE_W * (cond - uncond), fake, mask=v.mask)


def _levels(v: Inputs) -> tuple[Tensor, Tensor]:
    assert v.alpha is not None and v.sigma is not None
    return v.alpha, v.sigma


def _exact_noising(v: Inputs) -> Tensor:
    x0, noise, alpha, sigma = doubles(v.teacher, v.fake, v.alpha, v.sigma)
    return baselines.per_sample(alpha, x0) * x0 + baselines.per_sample(sigma, x0) * noise


def _exact_denoising(v: Inputs) -> Tensor:
    pred, x0, noise, alpha, sigma = doubles(v.student, v.teacher, v.fake, v.alpha, v.sigma)
    a, s = baselines.per_sample(alpha, x0), baselines.per_sample(sigma, x0)
    return 2 * (pred - (a * noise - s * x0)) / pred.numel()


def _exact_sid(v: Inputs) -> Tensor:
    x, teacher, fake = doubles(v.student, v.teacher, v.fake)
    return exact_gradient(x, teacher, fake)  # the student's, which alpha does not enter


def _exact_sim(v: Inputs) -> Tensor:
    teacher, fake, k = doubles(v.teacher, v.fake, v.sigma)
    e, k = teacher - fake, baselines.per_sample(k, v.student)
    root = ((k * e).square().flatten(1).sum(1) + SIM_C**2).sqrt()
    return -(k**2) * e / baselines.per_sample(root, e) / len(e)


# ---- the table

# The peers of rkl add no epsilon to mean|x - τ|.
_RKL: dict[str, Any] = {"divergence": "rkl", "scale": fdk.DmdScale(eps=0.0)}


_FASTGEN: dict[str, Any] = {
    "op": "fused_fdiv_loss", "peer": "fastgen", "chain": baselines.fastgen_chain,
    "call": lambda chain, v, bins: chain(v.student, v.teacher, v.fake, v.logits, v.t, bins),
    "ours": lambda v, normalizer, backend: fdk.fused_fdiv_loss(
        v.student, v.teacher, v.fake, v.logits, v.t, divergence="js", normalizer=normalizer, backend=backend
    ),
    "exact": _exact_fastgen, "inputs": _images, "images": 3, "plan": lambda case: {"heads": HEADS, "bins": BINS},
}  # fmt: skip

_IMPLICIT: dict[str, Any] = {
    "inputs": _scores, "images": 3, "reread": 3, "written": 3, "leaves": ("student", "teacher", "fake")
}  # fmt: skip

FORMULAS = {
    formula.name: formula
    for formula in (
        Formula("fastgen", title="f-distill as FastGen has it: js, normalizer, dmd scale", **_FASTGEN),
        Formula(
            "fastgen_scaled", title="fastgen at an upstream of 1/4, which a backward has to multiply the gradient by",
            upstream=0.25, **_FASTGEN,
        ),
        Formula(
            "dmd2_pixel", "fused_fdiv_loss", "reverse KL as DMD2 has it for EDM: x0 predictions, dmd scale",
            "dmd2", baselines.dmd2_pixel_chain,
            call=lambda chain, v, _: chain(v.student, v.teacher, v.fake),
            ours=lambda v, _, backend: fdk.fused_fdiv_loss(v.student, v.teacher, v.fake, backend=backend, **_RKL),
            exact=lambda v: exact_gradient(*doubles(v.student, v.teacher, v.fake)), inputs=_images, images=3,
        ),
        Formula(
            "dmd2_latent", "fused_fdiv_loss", "reverse KL as DMD2 has it for Stable Diffusion: raw epsilon predictions",
            "dmd2", baselines.dmd2_latent_epsilon_chain,
            call=lambda chain, v, _: chain(v.student, v.teacher, v.fake, v.noisy, v.alpha, v.sigma),
            ours=lambda v, _, backend: fdk.fused_fdiv_loss(
                v.student, v.teacher, v.fake, backend=backend, **_RKL,
                prediction=fdk.Prediction("epsilon", v.noisy, alpha=v.alpha, sigma=v.sigma),
            ),
            exact=_exact_dmd2_latent, inputs=_predictions, images=4,
            plan=lambda case: {"noisy": case.dtype, "raw": True},
        ),
        Formula(
            "self_forcing", "fused_fdiv_loss", "reverse KL as Self-Forcing has it: guided teacher, frames masked (the"
            " peer gathers the elements it keeps in float64, compiled or not)",
            "self_forcing", baselines.self_forcing_chain,
            call=lambda chain, v, _: chain(v.student, v.teacher, v.uncond, v.fake, GUIDANCE_W, v.mask),
            ours=lambda v, _, backend: fdk.fused_fdiv_loss(
                v.student, v.teacher, v.fake, teacher_uncond=v.uncond, guidance_scale=1 + GUIDANCE_W, mask=v.frames,
                backend=backend, **_RKL,
            ),
            exact=_exact_self_forcing, inputs=_guided_videos, images=4, reread=3, video=True,
            plan=lambda case: {"teacher_uncond": case.dtype, "mask": (case.shape[0], case.shape[1])},
        ),
        Formula(
            "noising", "add_noise", "x_t = α·x0 + σ·ε with ε given, forward alone", "diffusers",
            baselines.add_noise_chain,
            call=lambda chain, v, _: chain(v.teacher, v.fake, v.alpha, v.sigma),
            ours=lambda v, _, backend: fdk.add_noise(v.teacher, *_levels(v), v.fake, backend=backend),
            exact=_exact_noising, inputs=_noised, images=2, reread=0, forward=True,
        ),
        Formula(
            "denoising", "denoising_loss", "the fake score's loss as FastGen has it, of a v prediction",
            "fastgen", baselines.fastgen_denoising_loss,
            call=lambda chain, v, _: chain(v.student, v.teacher, v.fake, v.alpha, v.sigma),
            ours=lambda v, _, backend: fdk.denoising_loss(
                v.student, v.teacher, v.fake, "v_prediction", v.alpha, v.sigma, backend=backend
            ),
            exact=_exact_denoising, inputs=_noised, images=3, reread=0,
        ),
        Formula(
            "weight", "fdiv_weight", "FastGen's weight alone, from logits: js, normalizer",
            "fastgen", baselines.fastgen_weight,
            call=lambda chain, v, bins: chain(v.logits, v.t, bins),
            ours=lambda v, normalizer, backend: fdk.fdiv_weight(
                v.logits, v.t, divergence="js", normalizer=normalizer, backend=backend
            ),
            exact=exact_weight, inputs=_logits, images=0,
        ),
        Formula(
            "sid", "score_implicit_loss", "SiD's loss, with the gradients of student, teacher and fake score",
            "sid", baselines.sid_loss,
            call=lambda chain, v, _: chain(v.student, v.teacher, v.fake),
            ours=lambda v, _, backend: fdk.score_implicit_loss(v.student, v.teacher, v.fake, backend=backend),
            exact=_exact_sid, **_IMPLICIT,
        ),
        Formula(
            "sim", "score_implicit_loss", "SIM's loss as its paper has it, with the same three gradients",
            "sim", baselines.sim_loss,
            call=lambda chain, v, _: chain(v.student, v.teacher, v.fake, v.sigma, SIM_C),
            ours=lambda v, _, backend: fdk.score_implicit_loss(
                v.student, v.teacher, v.fake, kind="sim", score_scale=v.sigma, c=SIM_C, backend=backend
            ),
            exact=_exact_sim, **_IMPLICIT,
        ),
        *LOGITS,
        *STEPS,
        *LISTS,
    )
}  # fmt: skip
OPS = tuple(dict.fromkeys(formula.op for formula in FORMULAS.values()))
