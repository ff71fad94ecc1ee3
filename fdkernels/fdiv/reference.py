"""The op `fdiv` in eager PyTorch: the specification of every other backend. Runs on any device, also in float64.

    s_b  = 1 / (max(mean_i |x_bi - τ_bi|, floor) + eps)            dmd_scale; else 1
    g_bi = h_b · s_b · m_bi · c_bi · (f_bi - τ_bi)     f, τ the raw predictions, m the multiplier
    loss = ½ · Σ g² / N + gan_weight · Σ softplus(-ℓ) / (B·H),   ∂loss/∂x = g / N

with x0 = a·x_t + c·prediction. Tensors arrive with the batch first and in the student's memory order.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from fdkernels._op.floats import float16_power
from fdkernels._op.views import column_or_expanded, expanded
from fdkernels.fdiv.arguments import FDIV, FdivArguments, FdivResults
from fdkernels.fdiv.weight import fdiv_weight, given_weight, given_weight_stats
from fdkernels.prediction import coefficients


@torch.no_grad()
def fdiv(call: FdivArguments) -> FdivResults:
    """The raw op."""
    call = FDIV.traced(call)
    batch = call.student.shape[0]
    n = math.prod(call.student.shape[1:])
    shape = (batch, n)
    dtype = call.dtype()
    device = call.student.device

    # Step 1: the weight h_b, and which samples are finite so far.
    if call.weighting.logits is not None:
        h, weight_stats = fdiv_weight(call.weighting)
    else:
        h = given_weight(call.weight, call.weighting.t, call.student)
        weight_stats = given_weight_stats(h)

    # Step 2: the elements. Masked elements are replaced by 0, not multiplied with 0: they may be NaN.
    keep = (
        torch.ones(shape, dtype=torch.bool, device=device) if call.mask.entries is None else expanded(call.mask, shape)
    )
    raw_teacher = _guided(call.teacher, call.teacher_uncond, call.guidance_scale, dtype).reshape(shape)
    raw_fake = _guided(call.fake, call.fake_uncond, call.fake_guidance_scale, dtype).reshape(shape)
    gap = raw_fake - raw_teacher
    finite = torch.isfinite(h)
    for v in (raw_teacher, raw_fake, *((call.student, call.noisy) if call.dmd_scale else ())):
        if v is not None:
            finite = finite & (torch.isfinite(v.reshape(shape)) | ~keep).all(1)
    a, c = coefficients(call, call.prediction, shape, device)
    if call.dmd_scale and call.noisy is not None:
        finite = finite & (torch.isfinite(a) | ~keep).all(1)
    distance = torch.zeros(batch, dtype=torch.float64, device=device)
    if call.dmd_scale or call.with_stats:
        error = call.student.reshape(shape).to(dtype) - _x0(raw_teacher, call.noisy, a, c)
        distance = torch.where(_counts(error, keep, call), error, 0.0).abs().sum(1, dtype=torch.float64)

    # Step 3: everything that multiplies the gap.
    w = h
    if call.dmd_scale:
        counted = keep.sum(1) if call.kept_only else torch.full((batch,), n, device=device)
        mean = distance / counted.clamp(min=1)
        # NaN stays NaN. If nothing is kept, there is no mean, and w is not divided.
        w = w / torch.where(counted > 0, torch.where(mean < call.floor, call.floor, mean) + call.eps, 1.0)
    multiplier = column_or_expanded(call.multiplier, shape)
    per_element = torch.ones((), dtype=dtype, device=device)
    if call.prediction != "sample":
        finite = finite & (torch.isfinite(c) | ~keep).all(1)
        per_element = per_element * c.to(dtype)
    if multiplier is not None and multiplier.shape[1] == 1:
        w = w * multiplier[:, 0]
        finite = finite & torch.isfinite(multiplier[:, 0])
    elif multiplier is not None:
        finite = finite & (torch.isfinite(multiplier) | ~keep).all(1)
        per_element = per_element * multiplier.to(dtype)
    finite = finite & torch.isfinite(w)
    w = torch.where(finite, w, 0.0 if call.zero_nonfinite else torch.nan)
    used = keep & (finite[:, None] | (not call.zero_nonfinite))
    direction = torch.where(used, per_element * gap, 0.0)

    # Step 4: the loss over the N unmasked elements (each sample's own n for "none").
    count = keep.sum(1).double()
    if call.reduction != "none":
        count = count.sum()
    if call.divisor is not None:
        count = call.divisor.to(device, torch.float64).reshape(())
    divisor = count.clamp(min=1) if call.reduction != "sum" else torch.ones_like(count)
    energy = w.square() * direction.double().square().sum(1)
    loss = 0.5 * (energy if call.reduction == "none" else energy.sum()) / divisor
    generator_loss, gan_gradient, gan_unscale = _generator_term(call)
    loss = loss if generator_loss is None else loss + call.gan_weight * generator_loss

    gradient, unscale = _gradient(call.student, w, direction, keep, divisor, call.with_grad)
    stats = torch.empty(0, dtype=torch.float64, device=device)
    if call.with_stats:
        norm = (energy / divisor.square()).sum().sqrt()
        x0_gap = gap if call.prediction == "sample" else gap * c.to(dtype)
        x0_gap = torch.where(_counts(x0_gap, keep, call), x0_gap, 0.0).abs().sum(1, dtype=torch.float64)
        relative = torch.where(finite, x0_gap, 0.0).sum() / torch.where(finite, distance, 0.0).sum()
        generator = norm * torch.nan if generator_loss is None else generator_loss
        generator = generator.mean() if call.reduction == "none" else generator
        stats = torch.cat((weight_stats, torch.stack((norm, relative, (~finite).sum().double(), generator)), h))
    wide = torch.float64 if call.student.dtype == torch.float64 else torch.float32
    return loss.to(wide), gradient, unscale, gan_gradient, gan_unscale, stats


def _counts(v: Tensor, keep: Tensor, call: FdivArguments) -> Tensor:
    """Which elements enter the means of |x-τ| and |c·(f-τ)|: all kept ones, and unless kept_only finite masked ones."""
    return keep if call.kept_only else keep | torch.isfinite(v)


def _guided(cond: Tensor, uncond: Tensor | None, guidance_scale: float | Tensor, dtype: torch.dtype) -> Tensor:
    if uncond is None:
        return cond.to(dtype)
    base = uncond.to(dtype)
    return base + guidance_scale * (cond.to(dtype) - base)


def _x0(raw: Tensor, noisy: Tensor | None, a: Tensor, c: Tensor) -> Tensor:
    if noisy is None:
        return raw
    # In float64: rounded a and c would shift a whole sample in one direction, which no mean averages out.
    return a * noisy.reshape(raw.shape).double() + c * raw.double()


def _gradient(
    student: Tensor, w: Tensor, direction: Tensor, keep: Tensor, divisor: Tensor, with_grad: bool
) -> tuple[Tensor, Tensor]:
    """(g/N, empty); for float16, in which g/N underflows, (g/N·2^k, 2^-k) with k = floor(log2 N)."""
    unscale = student.new_empty((0,), dtype=torch.float32)
    if not with_grad:
        return student.new_empty(0), unscale
    coefficient = w / divisor
    if student.dtype == torch.float16:
        power = float16_power(divisor)
        coefficient = coefficient * power
        unscale = power.reciprocal().float()
    gradient = torch.where(keep, coefficient.to(direction.dtype)[:, None] * direction, 0.0)
    return gradient.to(student.dtype).reshape(student.shape), unscale


def _generator_term(call: FdivArguments) -> tuple[Tensor | None, Tensor, Tensor]:
    """(mean softplus(-ℓ) before gan_weight, the gradient of ℓ, unscale)"""
    logits, like = call.gan_logits, call.student if call.gan_logits is None else call.gan_logits
    nothing = like.new_empty((0,)), like.new_empty((0,), dtype=torch.float32)
    if logits is None:
        return None, *nothing
    wide = logits.double().view(len(logits), -1)
    used = torch.isfinite(wide.mean(1, keepdim=True)) | (not call.zero_nonfinite)
    terms = torch.where(used, -logsigmoid(wide), 0.0).sum(1)
    elements = {"mean": wide.numel(), "none": wide.shape[1], "sum": 1}[call.reduction]
    divisor = torch.full((), max(1, elements), dtype=torch.float64, device=logits.device)
    loss = (terms if call.reduction == "none" else terms.sum()) / divisor
    if not call.gan_grad:
        return loss, *nothing
    factor, unscale = call.gan_weight / divisor, nothing[1]
    if logits.dtype == torch.float16:  # without the weight, which may be small; sigmoid leaves room for 2^15
        power = float16_power(divisor) * 32768.0
        factor, unscale = power / divisor, (call.gan_weight / power).float().expand(loss.shape).clone()
    gradient = torch.where(used, torch.sigmoid(-wide) * -factor, 0.0)
    return loss, gradient.to(logits.dtype).view(logits.shape), unscale
