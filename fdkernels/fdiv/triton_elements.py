"""Device functions of the op `fdiv` on a sample's elements: loads, the direction of the gradient, sums."""

from __future__ import annotations

from typing import Any, NamedTuple

import triton
import triton.language as tl

from fdkernels._triton.elements import float64, guided, is_finite, kept_elements, load_samples, table_entry
from fdkernels._triton.predictions import level, tile_coefficients


class Operands(NamedTuple):
    """The inputs of a call's elements; None for an input that the call does not have."""

    student: Any
    teacher: Any
    fake: Any
    teacher_uncond: Any
    fake_uncond: Any
    noisy: Any
    alpha: Any
    """A Table, or None if `fixed_alpha` takes its place. The same holds for sigma."""
    sigma: Any
    multiplier: Any
    """A Table with one entry per sample. One with several entries is `multiplier_table` instead."""
    multiplier_table: Any
    mask: Any
    """A Table."""
    count: Any
    """One value: the N of a mean that the caller gives."""
    end: None = None
    """Keep this None last: Triton 3.6 fails if the last member is a tuple that holds a compile-time number (an int of
    1)."""


class Scalars(NamedTuple):
    """The numbers of a program. Build them inside a kernel: in a tuple argument they would arrive as float32."""

    guidance_scale: Any
    fake_guidance_scale: Any
    alpha: Any
    """The level of the sample's first element, and of all its elements if RUN is 0. The same holds for sigma."""
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
    """|x - τ|, from the raw prediction `tau`.

    At high noise a·x_t and c·τ are large and cancel, so neither product may lose its rounding error. One product keeps
    it in `lost`, the other is not rounded (Kahan's ab + cd: within two roundings of the result, and a compiler's
    contraction can't change it). The parts of a and c that float32 cuts off are added too: without them a whole sample
    would shift in one direction, which no mean averages out.
    """
    x = load_samples(operands.student, b, i, inside, WIDE)
    if operands.noisy is None:
        error = x - tau
    else:
        noisy = load_samples(operands.noisy, b, i, inside, WIDE)
        if tl.float32 == WIDE:
            # `+ zeros` makes blocks: tl.fma takes operands of one shape.
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
    """Which elements enter the means of |x-τ| and |c·(f-τ)|: all kept ones, and unless KEPT_ONLY finite masked ones."""
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
    """(m·c·(f-τ), |c·(f-τ)|, |x-τ|, kept) of [TILE] elements. For a masked element the first is 0, and the next two are
    0 unless they count (`_counts`)."""
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


CAREFUL: tl.constexpr = tl.constexpr(1024)  # elements at a time in `_careful_sums`: few, to take few registers


@triton.jit
def _careful_sums(
    operands, scalars, b, begin, end,
    KIND: tl.constexpr, RUN: tl.constexpr, WITH_ERROR: tl.constexpr, KEPT_ONLY: tl.constexpr, DMD: tl.constexpr,
    WIDE: tl.constexpr,
):  # fmt: skip
    """(energy, gap, distance, bad) of elements [begin, end), all in float64, with a finite check of each element. Runs
    after a float32 sum overflowed, underflowed or met a NaN, and finds out which."""
    zeros = tl.zeros((CAREFUL,), tl.float64)  # `+ zeros` makes a block of a number
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
    """A program's sums in float64, and how many of its elements are not finite. Healthy data skips the branch."""
    energy, gap, distance = energy.to(tl.float64), gap.to(tl.float64), distance.to(tl.float64)
    bad = tl.zeros_like(energy)
    # The float32 sums hold if they are finite, and if the squares are so large that underflow does not matter, or there
    # is no energy: f = τ (a fake score that starts as the teacher), or all elements are masked.
    held = is_finite(energy) & is_finite(gap) & ((energy > 1e-28) | (gap == 0.0) | (any_kept == 0))
    if (held & is_finite(distance)) == 0:
        first_energy, first_gap = energy, gap
        energy, gap, distance, bad = _careful_sums(
            operands, scalars, b, begin, end, KIND, RUN, WITH_ERROR, KEPT_ONLY, DMD, WIDE
        )
        if not DMD:  # x is read only for statistics then: it must not change a bit of the loss
            energy, gap = tl.where(held, first_energy, energy), tl.where(held, first_gap, gap)
    return energy, gap, distance, bad


@triton.jit
def sample_weight(operands, h, distance, bad, b, inside, count, eps, floor, DMD: tl.constexpr, ZERO: tl.constexpr):
    """(w_b, whether the sample is non-finite). w_b is all that multiplies a sample's direction. `b` is one sample or a
    block; `count` is the number of elements in the mean of `distance`."""
    w = h
    if DMD:
        mean = distance / tl.maximum(count, 1)
        # NaN stays NaN. If nothing is kept, there is no mean, and w is not divided.
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
    """coefficient · direction; 0 for masked elements and for dropped samples, even if their direction is not finite."""
    g = tl.where(coefficient == 0.0, 0.0, coefficient.to(WIDE) * direction)
    return tl.where(keep, g, 0.0)
