"""The flagship op in Triton: from logits to the student's gradient.

    s_b  = 1 / (mean_i |x_bi - τ_bi| + eps)            dmd_scale; else 1
    g_bi = h_b · s_b · m_bi · c_bi · (f_bi - τ_bi)     f, τ the raw predictions, m the multiplier
    loss = ½ · Σ g² / N,   ∂loss/∂x = g / N

One launch where a program can hold a sample (`fdiv_fwd_kernel`), else two (`fdiv_reduce_kernel`, `fdiv_apply_kernel`);
`triton_launch.py` picks. Programs add their sums in a fixed order: each stores its own and draws a ticket, and the one
that draws the last adds them all, by index, and writes loss, figures and the normalizer's state, which no other program
will read again.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import triton
import triton.language as tl

from fdkernels.fdiv.triton_elements import (
    checked_sums,
    counted,
    float16_power,
    program_scalars,
    sample_weight,
    scaled_direction,
    tile,
)
from fdkernels.fdiv.triton_weight import (
    bin_means,
    float64_constants,
    given_weights,
    store_bin_means,
    store_given_weight_stats,
    store_weight_stats,
    summarize,
    weights,
)


class Written(NamedTuple):
    """What a forward writes; None for what a call does not ask for."""

    loss: Any
    gradient: Any
    unscale: Any
    stats: Any
    partials: Any
    """(5, B, programs) float64: what each program leaves for the last one."""
    coefficients: Any
    """(B,) float64, of the split schedule: what multiplies a sample's direction."""
    ticket: Any


STATS_OF_ELEMENTS: tl.constexpr = tl.constexpr(7)  # gradient norm, relative gap, non-finite samples follow


@triton.jit
def _is_last(ticket):
    """Whether all other programs have drawn their ticket: what they stored before is visible then, to every thread.

    The barrier puts all of a program's stores before its draw, acq_rel puts all draws before the last one, and Triton's
    own barrier behind a scalar atomic puts the last one before what each thread loads next. The `.cv` of those loads
    asks to bypass caches as well; nothing depends on it, and Triton 3.6 drops it.
    """
    tl.debug_barrier()
    last = tl.atomic_add(ticket, 1, sem="acq_rel", scope="gpu") == tl.num_programs(0) - 1
    if last:
        tl.store(ticket, 0)
    return last


@triton.jit
def _given_count(count):
    """At least 1; NaN stays NaN."""
    given = tl.load(count).to(tl.float64)
    return tl.where(given < 1.0, 1.0, given)


@triton.jit
def _divisor(mask, given, b, batch, elements, REDUCTION: tl.constexpr, SHARED_MASK: tl.constexpr):
    """N of the loss, where it can be known before the elements: the mask's own entries are counted."""
    one = tl.zeros_like(b).to(tl.float64) + 1.0
    if REDUCTION == "sum":
        divisor = one
    elif REDUCTION == "none":
        divisor = one * elements
        if mask is not None:
            divisor = tl.maximum(counted(mask, b, 1, elements, 1024), 1.0)
    elif given is not None:
        divisor = one * _given_count(given)
    else:
        divisor = one * elements * batch
        if mask is not None:
            if SHARED_MASK:
                divisor = tl.maximum(counted(mask, 0 * b, 1, elements, 1024) * batch, 1.0)
            else:
                divisor = tl.maximum(counted(mask, 0 * b, batch, elements, 1024), 1.0)
    return divisor


@triton.jit
def _store_weights(written, b, h, inside):
    """h, behind the figures."""
    tl.store(written.stats + STATS_OF_ELEMENTS + 3 + b, h, mask=inside)


@triton.jit
def _store_figures(written, norm, gap, distance, nonfinite):
    tl.store(written.stats + STATS_OF_ELEMENTS, tl.sqrt(norm))
    tl.store(written.stats + STATS_OF_ELEMENTS + 1, gap / distance)
    tl.store(written.stats + STATS_OF_ELEMENTS + 2, nonfinite)


# One program holds sample b: [TILE] elements in registers between their reduction and their store.
# Reads x, τ, f (x_t, unconditional predictions, mask) once, writes g / N once: 8 bytes an element in bfloat16, 16 in
# float32. The weights of the whole batch are computed in every program, in float64.
@triton.jit
def fdiv_fwd_kernel(
    operands, weighting, written, batch, elements,
    guidance_scale: tl.float64, fake_guidance_scale: tl.float64, fixed_alpha: tl.float64, fixed_sigma: tl.float64,
    sigma_data: tl.float64, eps: tl.float64, log_ratio_min: tl.float64, log_ratio_max: tl.float64, t_min: tl.float64,
    t_max: tl.float64, bin_width: tl.float64, decay: tl.float64, amari_alpha: tl.float64,
    KIND: tl.constexpr, RUN: tl.constexpr, DIVERGENCE: tl.constexpr, NORMALIZE: tl.constexpr, UPDATE: tl.constexpr,
    DMD: tl.constexpr, ZERO: tl.constexpr,
    REDUCTION: tl.constexpr, WITH_ERROR: tl.constexpr, WEIGHT_STATS: tl.constexpr, SHARED_MASK: tl.constexpr,
    SAMPLES: tl.constexpr, BINS: tl.constexpr, HEADS: tl.constexpr, TILE: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    b = tl.program_id(0)
    i = tl.arange(0, TILE)
    scalars = program_scalars(operands, b, guidance_scale, fake_guidance_scale, fixed_alpha, fixed_sigma, sigma_data)
    direction, gaps, errors, keep = tile(operands, scalars, b, 0, elements, KIND, RUN, WITH_ERROR, TILE, WIDE)

    energy, gap, distance, bad = checked_sums(
        operands, scalars, b, 0, elements,
        tl.sum(direction * direction), tl.sum(gaps), tl.sum(errors), tl.max(keep.to(tl.int32)),
        KIND, RUN, WITH_ERROR, DMD, WIDE,
    )  # fmt: skip

    constants = float64_constants(log_ratio_min, log_ratio_max, t_min, t_max, bin_width, decay, amari_alpha)
    if weighting.logits is None:
        h = given_weights(weighting, b, b < batch)
    else:
        mean = bin_means(weighting, constants, batch, 1, UPDATE, SAMPLES, BINS, HEADS)
        summary = summarize(weighting, constants, mean, batch, 1, DIVERGENCE, SAMPLES, BINS, HEADS)
        samples = tl.arange(0, SAMPLES)
        all_h = weights(
            weighting, constants, mean, summary, samples, samples < batch, NORMALIZE, DIVERGENCE, SAMPLES, BINS, HEADS
        )
        h = tl.sum(tl.where(samples == b, all_h, 0.0))

    w, nonfinite = sample_weight(operands, h, distance, bad, b, b < batch, elements, eps, DMD, ZERO)
    divisor = _divisor(operands.mask, operands.count, b, batch, elements, REDUCTION, SHARED_MASK)
    coefficient = w / divisor
    if written.unscale is not None:
        power = float16_power(divisor)
        coefficient = coefficient * power
        if REDUCTION == "none":
            tl.store(written.unscale + b, (1.0 / power).to(tl.float32))
        else:
            tl.store(written.unscale, (1.0 / power).to(tl.float32), mask=b == 0)
    if written.gradient is not None:
        g = scaled_direction(direction, coefficient, keep, WIDE)
        tl.store(written.gradient + b.to(tl.int64) * elements + i, g, mask=i < elements)

    energy = tl.where(w == 0.0, 0.0, w * w * energy)
    if REDUCTION == "none":
        tl.store(written.loss + b, 0.5 * energy / divisor)
    tl.store(written.partials + b, energy)
    if written.stats is not None:
        _store_weights(written, b, h, b < batch)
        field = tl.full((), batch, tl.int64)
        tl.store(written.partials + field + b, energy / (divisor * divisor))
        tl.store(written.partials + 2 * field + b, tl.where(nonfinite, 0.0, gap))
        tl.store(written.partials + 3 * field + b, tl.where(nonfinite, 0.0, distance))
        tl.store(written.partials + 4 * field + b, nonfinite.to(tl.float64))
    if _is_last(written.ticket):
        total, norm, gap, distance, count = _added(written, batch, SAMPLES)
        if REDUCTION != "none":
            tl.store(written.loss, 0.5 * total / divisor)
        if written.stats is not None:
            _store_figures(written, norm, gap, distance, count)
            if WEIGHT_STATS:
                if weighting.logits is None:
                    store_given_weight_stats(written.stats, weighting, batch, SAMPLES)
                else:
                    store_weight_stats(written.stats, weighting, summary, batch)
        if UPDATE:
            store_bin_means(weighting, mean, BINS)


@triton.jit
def _added(written, batch, SAMPLES: tl.constexpr):
    """Sums over all samples of what each left in `partials`; the figures' where they are wanted."""
    total = tl.sum(tl.zeros((SAMPLES,), tl.float64))
    norm, gap, distance, count = total, total, total, total
    field = tl.full((), batch, tl.int64)
    for start in range(0, batch, SAMPLES):
        b = start + tl.arange(0, SAMPLES)
        at = written.partials + b
        total += tl.sum(tl.load(at, mask=b < batch, other=0.0, cache_modifier=".cv"))
        if written.stats is not None:
            norm += tl.sum(tl.load(at + field, mask=b < batch, other=0.0, cache_modifier=".cv"))
            gap += tl.sum(tl.load(at + 2 * field, mask=b < batch, other=0.0, cache_modifier=".cv"))
            distance += tl.sum(tl.load(at + 3 * field, mask=b < batch, other=0.0, cache_modifier=".cv"))
            count += tl.sum(tl.load(at + 4 * field, mask=b < batch, other=0.0, cache_modifier=".cv"))
    return total, norm, gap, distance, count


# Program `piece` of sample b reduces up to `tiles` tiles of it; the last program of all weighs the batch and leaves
# each sample's coefficient. Reads every input once and writes nothing of size N.
@triton.jit
def fdiv_reduce_kernel(
    operands, weighting, written, batch, elements, programs, tiles, chunks,
    guidance_scale: tl.float64, fake_guidance_scale: tl.float64, fixed_alpha: tl.float64, fixed_sigma: tl.float64,
    sigma_data: tl.float64, eps: tl.float64, log_ratio_min: tl.float64, log_ratio_max: tl.float64, t_min: tl.float64,
    t_max: tl.float64, bin_width: tl.float64, decay: tl.float64, amari_alpha: tl.float64,
    KIND: tl.constexpr, RUN: tl.constexpr, DIVERGENCE: tl.constexpr, NORMALIZE: tl.constexpr, UPDATE: tl.constexpr,
    DMD: tl.constexpr, ZERO: tl.constexpr,
    REDUCTION: tl.constexpr, WITH_ERROR: tl.constexpr, SAMPLES: tl.constexpr, BINS: tl.constexpr,
    HEADS: tl.constexpr, PIECES: tl.constexpr, TILE: tl.constexpr, OFFSET: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    b = tl.program_id(0) // programs
    piece = tl.program_id(0) % programs
    scalars = program_scalars(operands, b, guidance_scale, fake_guidance_scale, fixed_alpha, fixed_sigma, sigma_data)
    begin = piece.to(OFFSET) * tiles * TILE
    end = tl.minimum(begin + tiles * TILE, elements)
    energies = tl.zeros((TILE,), WIDE)
    gaps = tl.zeros((TILE,), WIDE)
    errors = tl.zeros((TILE,), WIDE)
    kept = tl.zeros((TILE,), tl.int32)
    for start in range(begin, end, TILE):
        direction, gap, error, keep = tile(operands, scalars, b, start, end, KIND, RUN, WITH_ERROR, TILE, WIDE)
        energies += direction * direction
        gaps += gap
        errors += error
        kept += keep.to(tl.int32)
    count = tl.sum(kept)
    energy, gap, distance, bad = checked_sums(
        operands, scalars, b, begin, end,
        tl.sum(energies), tl.sum(gaps), tl.sum(errors), count, KIND, RUN, WITH_ERROR, DMD, WIDE,
    )  # fmt: skip
    at = written.partials + tl.program_id(0)
    field = tl.full((), batch, tl.int64) * programs
    tl.store(at, energy)
    tl.store(at + field, gap)
    tl.store(at + 2 * field, distance)
    tl.store(at + 3 * field, bad)
    tl.store(at + 4 * field, count.to(tl.float64))
    if _is_last(written.ticket):
        constants = float64_constants(log_ratio_min, log_ratio_max, t_min, t_max, bin_width, decay, amari_alpha)
        _weigh_all(
            operands, weighting, constants, written, batch, elements, programs, chunks, eps,
            DIVERGENCE, NORMALIZE, UPDATE, DMD, ZERO, REDUCTION, SAMPLES, BINS, HEADS, PIECES,
        )  # fmt: skip


@triton.jit
def _pieces(written, field, b, batch, programs, SAMPLES: tl.constexpr, PIECES: tl.constexpr):
    """A field of `partials` [SAMPLES], added over each sample's pieces in their order."""
    # Blocks are added before they are reduced: `total += tl.sum(block, 1)` in a loop trips an assertion in Triton 3.8's
    # OptimizeThreadLocality where the total is used twice.
    total = tl.zeros((SAMPLES, PIECES), tl.float64)
    row = written.partials + tl.full((), batch, tl.int64) * field * programs + b.to(tl.int64) * programs
    for start in range(0, programs, PIECES):
        piece = start + tl.arange(0, PIECES)
        inside = (b < batch)[:, None] & (piece < programs)[None, :]
        total += tl.load(row[:, None] + piece[None, :], mask=inside, other=0.0, cache_modifier=".cv")
    return tl.sum(total, 1)


@triton.jit
def _weigh_all(
    operands, weighting, constants, written, batch, elements, programs, chunks, eps,
    DIVERGENCE: tl.constexpr, NORMALIZE: tl.constexpr, UPDATE: tl.constexpr, DMD: tl.constexpr, ZERO: tl.constexpr,
    REDUCTION: tl.constexpr, SAMPLES: tl.constexpr, BINS: tl.constexpr, HEADS: tl.constexpr, PIECES: tl.constexpr,
):  # fmt: skip
    """From every program's sums to each sample's coefficient, the loss, the figures and the normalizer's state."""
    zero = tl.sum(tl.zeros((SAMPLES,), tl.float64))
    total, norm, gap, distance, count, kept = zero, zero, zero, zero, zero, zero
    if weighting.logits is not None:
        mean = bin_means(weighting, constants, batch, chunks, UPDATE, SAMPLES, BINS, HEADS)
        summary = summarize(weighting, constants, mean, batch, chunks, DIVERGENCE, SAMPLES, BINS, HEADS)
    if REDUCTION == "mean" and operands.count is not None:
        kept = _given_count(operands.count)
    elif REDUCTION == "mean":
        for chunk in range(chunks):
            b = chunk * SAMPLES + tl.arange(0, SAMPLES)
            kept += tl.sum(_pieces(written, 4, b, batch, programs, SAMPLES, PIECES))
        kept = tl.maximum(kept, 1.0)
    for chunk in range(chunks):
        b = chunk * SAMPLES + tl.arange(0, SAMPLES)
        inside = b < batch
        if weighting.logits is None:
            h = given_weights(weighting, b, inside)
        else:
            h = weights(weighting, constants, mean, summary, b, inside, NORMALIZE, DIVERGENCE, SAMPLES, BINS, HEADS)
        sample_distance = _pieces(written, 2, b, batch, programs, SAMPLES, PIECES)
        bad = _pieces(written, 3, b, batch, programs, SAMPLES, PIECES)
        w, nonfinite = sample_weight(operands, h, sample_distance, bad, b, inside, elements, eps, DMD, ZERO)
        divisor = tl.full((SAMPLES,), 1.0, tl.float64)
        if REDUCTION == "none":
            divisor = tl.maximum(_pieces(written, 4, b, batch, programs, SAMPLES, PIECES), 1.0)
        elif REDUCTION == "mean":
            divisor = divisor * kept
        coefficient = w / divisor
        if written.unscale is not None:
            power = float16_power(divisor)
            coefficient = coefficient * power
            if REDUCTION == "none":
                tl.store(written.unscale + b, (1.0 / power).to(tl.float32), mask=inside)
            else:
                tl.store(written.unscale + b, (1.0 / power).to(tl.float32), mask=b == 0)
        tl.store(written.coefficients + b, coefficient, mask=inside)
        energy = w * w * _pieces(written, 0, b, batch, programs, SAMPLES, PIECES)
        energy = tl.where(inside & (w != 0.0), energy, 0.0)
        if REDUCTION == "none":
            tl.store(written.loss + b, 0.5 * energy / divisor, mask=inside)
        else:
            total += tl.sum(energy / divisor)
        if written.stats is not None:
            _store_weights(written, b, h, inside)
            used = inside & (nonfinite == 0)
            norm += tl.sum(energy / (divisor * divisor))
            gap += tl.sum(tl.where(used, _pieces(written, 1, b, batch, programs, SAMPLES, PIECES), 0.0))
            distance += tl.sum(tl.where(used, sample_distance, 0.0))
            count += tl.sum(tl.where(inside & nonfinite, 1.0, 0.0).to(tl.float64))
    if REDUCTION != "none":
        tl.store(written.loss, 0.5 * total)
    if written.stats is not None:
        _store_figures(written, norm, gap, distance, count)
        if weighting.logits is None:
            store_given_weight_stats(written.stats, weighting, batch, SAMPLES)
        else:
            store_weight_stats(written.stats, weighting, summary, batch)
    if UPDATE:
        tl.debug_barrier()  # every thread has read the old state
        store_bin_means(weighting, mean, BINS)


# Program `piece` of sample b stores the gradient of its tiles. From the last sample to the first: what the reduction
# read last is still in the cache. Reads τ, f (unconditional predictions, mask) again, writes g / N.
@triton.jit
def fdiv_apply_kernel(
    operands, written, batch, elements, programs, tiles, guidance_scale: tl.float64, fake_guidance_scale: tl.float64,
    fixed_alpha: tl.float64, fixed_sigma: tl.float64, sigma_data: tl.float64, KIND: tl.constexpr, RUN: tl.constexpr,
    TILE: tl.constexpr, OFFSET: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    program = tl.num_programs(0) - 1 - tl.program_id(0)
    b = program // programs
    scalars = program_scalars(operands, b, guidance_scale, fake_guidance_scale, fixed_alpha, fixed_sigma, sigma_data)
    begin = (program % programs).to(OFFSET) * tiles * TILE
    end = tl.minimum(begin + tiles * TILE, elements)
    coefficient = tl.load(written.coefficients + b)
    row = written.gradient + b.to(tl.int64) * elements
    for start in range(begin, end, TILE):
        i = start + tl.arange(0, TILE)
        direction, _, _, keep = tile(operands, scalars, b, start, end, KIND, RUN, False, TILE, WIDE)
        tl.store(row + i, scaled_direction(direction, coefficient, keep, WIDE), mask=i < end)
