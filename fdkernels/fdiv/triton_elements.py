"""What the flagship's Triton kernels do with a sample's elements: loads, the direction of the gradient, sums."""

from __future__ import annotations

from typing import Any, NamedTuple

import triton
import triton.language as tl

from fdkernels._triton.elements import float64, guided, is_finite, kept_elements, load_samples, table_entry
from fdkernels._triton.predictions import level, tile_coefficients


class Operands(NamedTuple):
    """What the elements of a call are made of; None for what it has not."""

    student: Any
    teacher: Any
    fake: Any
    teacher_uncond: Any
    fake_uncond: Any
    noisy: Any
    alpha: Any
    """A Table, or None and a number in its place; so is sigma."""
    sigma: Any
    multiplier: Any
    """A Table of one entry a sample, or, in its place, `multiplier_table` of several."""
    multiplier_table: Any
    mask: Any
    """A Table."""
    count: Any
    """One value: N of a mean, where the caller gives it."""
    end: None = None
    """Triton 3.6 fails on a call whose last member is a tuple with a compile-time number (an int of 1) in it."""


class Scalars(NamedTuple):
    """What is one number for a program. Built inside a kernel: in a tuple argument they would arrive as float32."""

    guidance_scale: Any
    fake_guidance_scale: Any
    alpha: Any
    """Of the sample's first element: of all of them where RUN is 0. So is sigma."""
    sigma: Any
    sigma_data: Any


@triton.jit
def program_scalars(operands, b, guidance_scale, fake_guidance_scale, fixed_alpha, fixed_sigma, sigma_data):
    first = tl.zeros_like(b)
    alpha, sigma = level(operands.alpha, fixed_alpha, b, first), level(operands.sigma, fixed_sigma, b, first)
    return Scalars(float64(guidance_scale), float64(fake_guidance_scale), alpha, sigma, float64(sigma_data))


@triton.jit
def _predictions(operands, scalars, b, i, inside, WIDE: tl.constexpr):
    """(τ, f), guided."""
    tau = guided(operands.teacher, operands.teacher_uncond, scalars.guidance_scale, b, i, inside, WIDE)
    f = guided(operands.fake, operands.fake_uncond, scalars.fake_guidance_scale, b, i, inside, WIDE)
    return tau, f


@triton.jit
def _error(operands, tau, a, c, b, i, inside, WIDE: tl.constexpr):
    """|x - τ|, τ raw.

    To the last place: at high noise a·x_t and c·τ are large and cancel. One product keeps what its rounding lost, the
    other is not rounded (Kahan's ab + cd: within two roundings of the result, and no contraction by a compiler can
    change it). The float32 rests of a and c count as well: rounded away, they would shift a whole sample the same way,
    which no mean averages out.
    """
    x = load_samples(operands.student, b, i, inside, WIDE)
    if operands.noisy is None:
        error = x - tau
    else:
        noisy = load_samples(operands.noisy, b, i, inside, WIDE)
        if tl.float32 == WIDE:
            # Blocks: a fused multiply-add takes operands of one shape.
            a_high, c_high = a.to(WIDE) + tl.zeros_like(x), c.to(WIDE) + tl.zeros_like(x)
            a_low, c_low = (a - a.to(WIDE).to(tl.float64)).to(WIDE), (c - c.to(WIDE).to(tl.float64)).to(WIDE)
            product = c_high * tau
            lost = tl.fma(c_high, tau, -product)
            error = (x - tl.fma(a_high, noisy, product)) - (lost + (a_low * noisy + c_low * tau))
        else:
            error = x - a.to(WIDE) * noisy - c.to(WIDE) * tau
    return tl.abs(error)


@triton.jit
def _counts(v, keep, KEPT_ONLY: tl.constexpr):
    """Where |x-τ| and |c·(f-τ)| take part in their means: masked elements too, unless they are not finite."""
    counts = keep
    if not KEPT_ONLY:
        counts = keep | is_finite(v)
    return counts


@triton.jit
def tile(
    operands, scalars, b, start, end,
    KIND: tl.constexpr, RUN: tl.constexpr, WITH_ERROR: tl.constexpr, KEPT_ONLY: tl.constexpr,
    TILE: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    """(m·c·(f-τ), |c·(f-τ)|, |x-τ|, kept) of some elements. The first is 0 where masked, so are the others if not
    `_counts`."""
    i = start + tl.arange(0, TILE)
    inside = i < end
    tau, f = _predictions(operands, scalars, b, i, inside, WIDE)
    gap = f - tau
    a, c = tile_coefficients(operands, scalars, b, start, KIND, RUN, TILE)
    if KIND != "sample":
        gap = c.to(WIDE) * gap
    direction = gap
    if operands.multiplier_table is not None:
        direction = tl.load(table_entry(operands.multiplier_table, b, i)).to(WIDE) * gap
    gap = tl.abs(gap)
    error = tl.zeros_like(gap)
    if WITH_ERROR:
        error = _error(operands, tau, a, c, b, i, inside, WIDE)
    keep = kept_elements(operands.mask, b, i, inside)
    if operands.mask is not None:
        direction = tl.where(keep, direction, 0.0)
        gap = tl.where(_counts(gap, keep, KEPT_ONLY), gap, 0.0)
        error = tl.where(_counts(error, keep, KEPT_ONLY), error, 0.0)
    return direction, gap, error, keep


CAREFUL: tl.constexpr = tl.constexpr(1024)  # elements at a time where speed is no concern: few registers


@triton.jit
def _careful_sums(
    operands, scalars, b, begin, end,
    KIND: tl.constexpr, RUN: tl.constexpr, WITH_ERROR: tl.constexpr, KEPT_ONLY: tl.constexpr, DMD: tl.constexpr,
    WIDE: tl.constexpr,
):  # fmt: skip
    """(energy, gap, distance, bad) of elements [begin, end), one by one in float64: where a float32 sum overflowed,
    underflowed or met a NaN, this finds out which."""
    zeros = tl.zeros((CAREFUL,), tl.float64)  # makes a block of a table's single entry
    zero = tl.sum(zeros)
    energy, gaps, distance, bad = zero, zero, zero, zero
    for start in range(begin, end, CAREFUL):
        i = start + tl.arange(0, CAREFUL)
        inside = i < end
        keep = kept_elements(operands.mask, b, i, inside)
        tau, f = _predictions(operands, scalars, b, i, inside, WIDE)
        tau, f = tau.to(tl.float64), f.to(tl.float64)
        finite = is_finite(tau) & is_finite(f)
        gap = f - tau
        a, c = tile_coefficients(operands, scalars, b, start, KIND, RUN, CAREFUL)
        if KIND != "sample":
            finite = finite & is_finite(c + zeros)
            gap = c * gap
        direction = gap
        if operands.multiplier_table is not None:
            multiplier = tl.load(table_entry(operands.multiplier_table, b, i)).to(tl.float64)
            finite = finite & is_finite(multiplier)
            direction = multiplier * gap
        energy += tl.sum(tl.where(keep, direction * direction, 0.0))
        gaps += tl.sum(tl.where(inside & _counts(gap, keep, KEPT_ONLY), tl.abs(gap), 0.0))
        if WITH_ERROR:
            error = _error(operands, tau, a, c, b, i, inside, tl.float64)
            distance += tl.sum(tl.where(inside & _counts(error, keep, KEPT_ONLY), error, 0.0))
        if DMD:
            finite = finite & is_finite(load_samples(operands.student, b, i, inside, tl.float64))
            if operands.noisy is not None:
                finite = finite & is_finite(load_samples(operands.noisy, b, i, inside, tl.float64))
                finite = finite & is_finite(a + zeros)
        bad += tl.sum(tl.where(keep & (finite == 0), 1.0, 0.0).to(tl.float64))
    return energy, gaps, distance, bad


@triton.jit
def checked_sums(
    operands, scalars, b, begin, end, energy, gap, distance, any_kept,
    KIND: tl.constexpr, RUN: tl.constexpr, WITH_ERROR: tl.constexpr, KEPT_ONLY: tl.constexpr, DMD: tl.constexpr,
    WIDE: tl.constexpr,
):  # fmt: skip
    """The sums of a program in float64, and how many elements were not finite. Healthy data takes the first branch."""
    energy, gap, distance = energy.to(tl.float64), gap.to(tl.float64), distance.to(tl.float64)
    bad = tl.zeros_like(energy)
    # Squares that float32 can hold, and either large enough that what underflowed in them is nothing, or of elements
    # without energy: f = τ (a fake score that starts as the teacher), or all masked.
    held = is_finite(energy) & is_finite(gap) & is_finite(distance)
    if (held & ((energy > 1e-28) | (gap == 0.0) | (any_kept == 0))) == 0:
        energy, gap, distance, bad = _careful_sums(
            operands, scalars, b, begin, end, KIND, RUN, WITH_ERROR, KEPT_ONLY, DMD, WIDE
        )
    return energy, gap, distance, bad


@triton.jit
def sample_weight(operands, h, distance, bad, b, inside, count, eps, floor, DMD: tl.constexpr, ZERO: tl.constexpr):
    """(w_b, whether the sample is non-finite): everything that multiplies a sample's direction. `b` one or a block.

    count: of the elements that `distance` adds up.
    """
    w = h
    if DMD:
        mean = distance / tl.maximum(count, 1)
        # NaN stays NaN. Where nothing is kept there is no mean, and nothing to divide.
        w = w / tl.where(count > 0, tl.where(mean < floor, floor, mean) + eps, 1.0)
    nonfinite = bad > 0
    if operands.multiplier is not None:
        entry = table_entry(operands.multiplier, b, tl.zeros_like(b))
        multiplier = tl.load(entry, mask=inside, other=1.0).to(tl.float64)
        nonfinite = nonfinite | (is_finite(multiplier) == 0)
        w = w * multiplier
    nonfinite = nonfinite | (is_finite(w) == 0)
    return tl.where(nonfinite, 0.0 if ZERO else float("nan"), w), nonfinite


@triton.jit
def scaled_direction(direction, coefficient, keep, WIDE: tl.constexpr):
    """coefficient · direction; 0 where masked, and of a dropped sample, whatever its direction is."""
    g = tl.where(coefficient == 0.0, 0.0, coefficient.to(WIDE) * direction)
    return tl.where(keep, g, 0.0)
