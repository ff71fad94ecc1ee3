"""The flagship op in eager PyTorch: the specification every other backend is held to. Any device, float64 too.

    s_b  = 1 / (mean_i |x_bi - τ_bi| + eps)            dmd_scale; or `scale`; or 1
    g_bi = h_b · s_b · c_bi · (f_bi - τ_bi)            f, τ the raw predictions
    loss = ½ · Σ g² / N,   ∂loss/∂x = g / N

with x0 = a·x_t + c·prediction. Tensors arrive with the batch first and in the student's memory order.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from fdkernels.divergences import from_kernel
from fdkernels.fdiv.arguments import FdivArguments
from fdkernels.fdiv.weight import WEIGHT_STATS, RatioState, fdiv_weight
from fdkernels.floats import traced


@torch.no_grad()
def fdiv(call: FdivArguments) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The raw op. Returns (loss, gradient, unscale, stats)."""
    call = traced(call)
    batch = call.student.shape[0]
    n = math.prod(call.student.shape[1:])
    shape = (batch, n)
    dtype = call.dtype()
    device = call.student.device

    # Step 1: the weight h_b, and which samples are finite so far.
    if call.logits is not None:
        state = RatioState(call.ratio_mean, call.edges, call.t_min, call.t_max, call.decay, call.update)
        h, weight_stats = fdiv_weight(
            call.logits,
            call.t,
            state,
            from_kernel(call.divergence, call.alpha),
            (call.log_ratio_min, call.log_ratio_max),
            call.normalize_weight,
        )
    else:
        h = torch.ones(batch, dtype=torch.float64, device=device) if call.weight is None else call.weight.double()
        if call.t is not None:
            h = torch.where(torch.isfinite(call.t.double()), h, torch.nan)
        weight_stats = _given_weight_stats(h)

    # Step 2: the elements; masked ones are selected away.
    keep = (
        torch.ones(shape, dtype=torch.bool, device=device)
        if call.mask is None
        else _elements(call.mask, call.mask_inner, shape)
    )
    raw_teacher = _guided(call.teacher, call.teacher_uncond, call.guidance_scale, dtype).reshape(shape)
    raw_fake = _guided(call.fake, call.fake_uncond, call.fake_guidance_scale, dtype).reshape(shape)
    gap = raw_fake - raw_teacher
    finite = torch.isfinite(h)
    for v in (raw_teacher, raw_fake, *((call.student, call.noisy) if call.dmd_scale else ())):
        if v is not None:
            finite = finite & (torch.isfinite(v.reshape(shape)) | ~keep).all(1)
    distance = torch.zeros(batch, dtype=torch.float64, device=device)
    if call.dmd_scale or call.with_stats:
        error = call.student.reshape(shape).to(dtype) - _x0(
            raw_teacher, call.noisy, call.a, call.c, call.coefficient_inner
        )
        distance = torch.where(keep | torch.isfinite(error), error, 0.0).abs().sum(1, dtype=torch.float64)

    # Step 3: everything that multiplies the gap.
    w = h
    if call.dmd_scale:
        w = w / (distance / max(n, 1) + call.eps)
    if call.scale is not None and call.scale.shape[1] == 1:
        w = w * call.scale.double()[:, 0]
        finite = finite & torch.isfinite(call.scale[:, 0])
    per_element = torch.ones((), dtype=dtype, device=device)
    if call.c is not None:
        coefficient = _elements(call.c, call.coefficient_inner, shape)
        finite = finite & (torch.isfinite(coefficient) | ~keep).all(1)
        per_element = per_element * coefficient.to(dtype)
    if call.scale is not None and call.scale.shape[1] > 1:
        s = _elements(call.scale, call.scale_inner, shape)
        finite = finite & (torch.isfinite(s) | ~keep).all(1)
        per_element = per_element * s.to(dtype)
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

    gradient, unscale = _gradient(call.student, w, direction, keep, divisor, call.with_grad)
    stats = torch.empty(0, dtype=torch.float64, device=device)
    if call.with_stats:
        norm = (energy / divisor.square()).sum().sqrt()
        x0_gap = gap if call.c is None else gap * _elements(call.c, call.coefficient_inner, shape).to(dtype)
        x0_gap = torch.where(keep | torch.isfinite(x0_gap), x0_gap, 0.0).abs().sum(1, dtype=torch.float64)
        relative = torch.where(finite, x0_gap, 0.0).sum() / torch.where(finite, distance, 0.0).sum()
        stats = torch.cat((weight_stats, torch.stack((norm, relative, (~finite).sum().double())), h))
    return loss.to(dtype if call.student.dtype == torch.float64 else torch.float32), gradient, unscale, stats


@torch.no_grad()
def fdiv_backward(gradient: Tensor, upstream: Tensor, unscale: Tensor) -> Tensor:
    """upstream · gradient, rounded once; `unscale` takes float16's power of two out again."""
    wide = torch.float64 if gradient.dtype == torch.float64 else torch.float32
    factor = upstream.to(wide) * unscale.to(wide) if unscale.numel() else upstream.to(wide)
    if factor.dim():
        factor = factor.view(-1, *(1,) * (gradient.dim() - 1))
    return (gradient.to(wide) * factor).to(gradient.dtype)


def _elements(table: Tensor, inner: int, shape: tuple[int, int]) -> Tensor:
    """A (B or 1, R) table at every element: entry (i // inner) % R."""
    batch, n = shape
    entries = table.shape[1]
    repeats = n // (entries * inner)
    return table[:, None, :, None].expand(batch, repeats, entries, inner).reshape(shape)


def _guided(cond: Tensor, uncond: Tensor | None, guidance_scale: float, dtype: torch.dtype) -> Tensor:
    if uncond is None:
        return cond.to(dtype)
    base = uncond.to(dtype)
    return base + guidance_scale * (cond.to(dtype) - base)


def _x0(raw: Tensor, noisy: Tensor | None, a: Tensor | None, c: Tensor | None, inner: int) -> Tensor:
    if noisy is None or a is None or c is None:
        return raw
    shape = (raw.shape[0], raw.shape[1])
    # In float64: rounding a and c would shift a whole sample the same way, which no mean averages out.
    return _elements(a, inner, shape) * noisy.reshape(shape).double() + _elements(c, inner, shape) * raw.double()


def _given_weight_stats(h: Tensor) -> Tensor:
    stats = h.new_full((WEIGHT_STATS,), torch.nan)
    if h.numel():
        finite = torch.isfinite(h)
        used, count = torch.where(finite, h, 0.0), finite.sum()
        stats[0] = torch.where(finite, h, torch.inf).amin()
        stats[1] = used.sum() / count
        stats[2] = torch.where(finite, h, -torch.inf).amax()
        stats[3] = used.sum().square() / (h.numel() * used.square().sum())
        stats[:4] += torch.where(finite.any(), 0.0, torch.nan)
    return stats


def _gradient(
    student: Tensor, w: Tensor, direction: Tensor, keep: Tensor, divisor: Tensor, with_grad: bool
) -> tuple[Tensor, Tensor]:
    """(g/N, empty); for float16, where g/N underflows, (g/N·2^k, 2^-k) with k = floor(log2 N)."""
    unscale = torch.empty(0, dtype=torch.float32, device=student.device)
    if not with_grad:
        return student.new_empty(0), unscale
    coefficient = w / divisor
    if student.dtype == torch.float16:
        power = torch.ldexp(torch.ones_like(divisor), torch.frexp(divisor).exponent - 1)
        coefficient = coefficient * power
        unscale = power.reciprocal().float()
    gradient = torch.where(keep, coefficient.to(direction.dtype)[:, None] * direction, 0.0)
    return gradient.to(student.dtype).reshape(student.shape), unscale
