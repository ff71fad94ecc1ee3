"""The op `fdiv` in Triton: from logits to the student's gradient.

    s_b  = 1 / (max(mean_i |x_bi - τ_bi|, floor) + eps)            dmd_scale; else 1
    g_bi = h_b · s_b · m_bi · c_bi · (f_bi - τ_bi)     f, τ the raw predictions, m the multiplier
    loss = ½ · Σ g² / N + the generator's term (`triton_generator.py`),   ∂loss/∂x = g / N

One launch if a program can hold a sample (`fdiv_fwd_kernel`), else two (`fdiv_reduce_kernel`, `fdiv_apply_kernel`);
`triton_plan.py` decides. Each program stores its sums and draws a ticket. The program with the last ticket adds all
sums by index. It also writes loss, figures and the normalizer's state, which no other program reads after that.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import triton
import triton.language as tl

from fdkernels._triton.elements import count_kept, float16_power, float64, given_count
from fdkernels._triton.sums import is_last, load_stored, sum_of_pieces
from fdkernels.fdiv import arguments
from fdkernels.fdiv.triton_elements import checked_sums, program_scalars, sample_weight, scaled_direction, tile
from fdkernels.fdiv.triton_generator import added_generator, sample_generator
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
    """The tensors that a forward writes; None for one that the call does not ask for."""

    loss: Any
    gradient: Any
    unscale: Any
    stats: Any
    partials: Any
    """(5, B, programs) float64: the sums that each program stores for the last one."""
    coefficients: Any
    """(B,) float64, in the split schedule: the factor of each sample's direction."""
    ticket: Any


# Order of the figures: those of the weights, then gradient norm, relative gap and non-finite samples, then each h.
WEIGHT_STATS: tl.constexpr = tl.constexpr(arguments.WEIGHT_STATS)
STATS: tl.constexpr = tl.constexpr(arguments.STATS)


@triton.jit
def _divisor(mask, count, b, batch, elements, REDUCTION: tl.constexpr, SHARED_MASK: tl.constexpr):
    """N of the loss, found without reading the elements: it counts the mask's own entries."""
    one = tl.zeros_like(b).to(tl.float64) + 1.0
    if REDUCTION == "sum":
        divisor = one
    elif REDUCTION == "none":
        divisor = one * elements
        if mask is not None:
            divisor = tl.maximum(count_kept(mask, b, 1, elements, 1024), 1.0)
    elif count is not None:
        divisor = one * given_count(count)
    elif mask is None:
        divisor = one * elements * batch
    elif SHARED_MASK:
        divisor = tl.maximum(count_kept(mask, 0 * b, 1, elements, 1024) * batch, 1.0)
    else:
        divisor = tl.maximum(count_kept(mask, 0 * b, batch, elements, 1024), 1.0)
    return divisor


@triton.jit
def _coefficient(written, w, divisor, b, inside, REDUCTION: tl.constexpr):
    """w / N, for float16 times a power of two, whose inverse goes to `unscale`. `b` is one sample or a block."""
    coefficient = w / divisor
    if written.unscale is not None:
        power = float16_power(divisor)
        coefficient = coefficient * power
        own = inside if REDUCTION == "none" else inside & (b == 0)
        tl.store(written.unscale + b, (1.0 / power).to(tl.float32), mask=own)
    return coefficient


@triton.jit
def _store_figures(written, norm, gap, distance, nonfinite, generator_loss):
    tl.store(written.stats + WEIGHT_STATS, tl.sqrt(norm))
    tl.store(written.stats + WEIGHT_STATS + 1, gap / distance)
    tl.store(written.stats + WEIGHT_STATS + 2, nonfinite)
    tl.store(written.stats + WEIGHT_STATS + 3, generator_loss)


# x, τ, f [B, n] -> g / N [B, n], loss and figures in one launch. Program b holds sample b, [TILE] elements, in
# registers from their reduction to their store. Every program computes the weights of the whole batch, in float64.
# Per element: reads x, τ and f (x_t, unconditional predictions, mask) once, writes g / N: 8 bytes in bfloat16, 16 in
# float32.
@triton.jit
def fdiv_fwd_kernel(
    operands, weighting, generator, written, batch, elements,
    guidance_scale: tl.float64, fake_guidance_scale: tl.float64, fixed_alpha: tl.float64, fixed_sigma: tl.float64,
    sigma_data: tl.float64, eps: tl.float64, floor: tl.float64, log_ratio_min: tl.float64, log_ratio_max: tl.float64,
    t_min: tl.float64, t_max: tl.float64, bin_width: tl.float64, decay: tl.float64, amari_alpha: tl.float64,
    gan_weight: tl.float64, gan_divisor: tl.float64,
    KIND: tl.constexpr, RUN: tl.constexpr, DIVERGENCE: tl.constexpr, NORMALIZE: tl.constexpr, UPDATE: tl.constexpr,
    DMD: tl.constexpr, ZERO: tl.constexpr, REDUCTION: tl.constexpr, WITH_ERROR: tl.constexpr,
    KEPT_ONLY: tl.constexpr,
    WITH_WEIGHT_STATS: tl.constexpr, SHARED_MASK: tl.constexpr, SAMPLES: tl.constexpr, BINS: tl.constexpr,
    HEADS: tl.constexpr, GAN_HEADS: tl.constexpr, TILE: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    b = tl.program_id(0)
    i = tl.arange(0, TILE)
    scalars = program_scalars(operands, b, guidance_scale, fake_guidance_scale, fixed_alpha, fixed_sigma, sigma_data)
    direction, gaps, errors, keep = tile(
        operands, scalars, b, 0, elements, KIND, RUN, WITH_ERROR, KEPT_ONLY, TILE, WIDE
    )

    energy, gap, distance, bad = checked_sums(
        operands, scalars, b, 0, elements,
        tl.sum(direction * direction), tl.sum(gaps), tl.sum(errors), tl.max(keep.to(tl.int32)),
        KIND, RUN, WITH_ERROR, KEPT_ONLY, DMD, WIDE,
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

    counted = elements
    if KEPT_ONLY:
        counted = tl.sum(keep.to(tl.int32))
    w, nonfinite = sample_weight(operands, h, distance, bad, b, b < batch, counted, eps, floor, DMD, ZERO)
    divisor = _divisor(operands.mask, operands.count, b, batch, elements, REDUCTION, SHARED_MASK)
    coefficient = _coefficient(written, w, divisor, b, b < batch, REDUCTION)
    if written.gradient is not None:
        g = scaled_direction(direction, coefficient, keep, WIDE)
        tl.store(written.gradient + b.to(tl.int64) * elements + i, g, mask=i < elements)

    energy = tl.where(w == 0.0, 0.0, w * w * energy)
    loss = 0.5 * energy / divisor
    if generator.logits is not None:
        loss += sample_generator(generator, b, gan_weight, gan_divisor, ZERO, GAN_HEADS)
    if REDUCTION == "none":
        tl.store(written.loss + b, loss)
    tl.store(written.partials + b, energy)
    if written.stats is not None:
        tl.store(written.stats + STATS + b, h, mask=b < batch)
        field = tl.full((), batch, tl.int64)
        tl.store(written.partials + field + b, energy / (divisor * divisor))
        tl.store(written.partials + 2 * field + b, tl.where(nonfinite, 0.0, gap))
        tl.store(written.partials + 3 * field + b, tl.where(nonfinite, 0.0, distance))
        tl.store(written.partials + 4 * field + b, nonfinite.to(tl.float64))
    if is_last(written.ticket):
        total, norm, gap, distance, count = _added(written, batch, SAMPLES)
        loss = 0.5 * total / divisor
        term = float64(float("nan"))
        if generator.logits is not None:
            term = added_generator(generator, batch, gan_weight, gan_divisor, REDUCTION, SAMPLES)
            loss += float64(gan_weight) * term
        if REDUCTION != "none":
            tl.store(written.loss, loss)
        if written.stats is not None:
            _store_figures(written, norm, gap, distance, count, term)
            if WITH_WEIGHT_STATS:
                if weighting.logits is None:
                    store_given_weight_stats(written.stats, weighting, batch, SAMPLES)
                else:
                    store_weight_stats(written.stats, weighting, summary, batch)
        if UPDATE:
            store_bin_means(weighting, mean, BINS)


@triton.jit
def _added(written, batch, SAMPLES: tl.constexpr):
    """The sums of `partials` over all samples; those of the figures only if the call asks for figures."""
    total = tl.sum(tl.zeros((SAMPLES,), tl.float64))
    norm, gap, distance, count = total, total, total, total
    field = tl.full((), batch, tl.int64)
    for start in range(0, batch, SAMPLES):
        b = start + tl.arange(0, SAMPLES)
        at = written.partials + b
        total += tl.sum(load_stored(at, b < batch))
        if written.stats is not None:
            norm += tl.sum(load_stored(at + field, b < batch))
            gap += tl.sum(load_stored(at + 2 * field, b < batch))
            distance += tl.sum(load_stored(at + 3 * field, b < batch))
            count += tl.sum(load_stored(at + 4 * field, b < batch))
    return total, norm, gap, distance, count


# Σ (m·c·(f-τ))², Σ |c·(f-τ)|, Σ |x-τ| and counts of x, τ, f [B, n] -> w / N [B], loss and figures. Program `piece` of
# sample b reduces up to `tiles` tiles of it; the program with the last ticket weighs the batch.
# Per element: reads every input once, 6 bytes in bfloat16 (12 in float32), and writes nothing.
@triton.jit
def fdiv_reduce_kernel(
    operands, weighting, generator, written, batch, elements, programs, tiles, chunks,
    guidance_scale: tl.float64, fake_guidance_scale: tl.float64, fixed_alpha: tl.float64, fixed_sigma: tl.float64,
    sigma_data: tl.float64, eps: tl.float64, floor: tl.float64, log_ratio_min: tl.float64, log_ratio_max: tl.float64,
    t_min: tl.float64, t_max: tl.float64, bin_width: tl.float64, decay: tl.float64, amari_alpha: tl.float64,
    gan_weight: tl.float64, gan_divisor: tl.float64,
    KIND: tl.constexpr, RUN: tl.constexpr, DIVERGENCE: tl.constexpr, NORMALIZE: tl.constexpr, UPDATE: tl.constexpr,
    DMD: tl.constexpr, ZERO: tl.constexpr, REDUCTION: tl.constexpr, WITH_ERROR: tl.constexpr,
    KEPT_ONLY: tl.constexpr, SAMPLES: tl.constexpr, BINS: tl.constexpr, HEADS: tl.constexpr, GAN_HEADS: tl.constexpr,
    PIECES: tl.constexpr, TILE: tl.constexpr, OFFSET: tl.constexpr, WIDE: tl.constexpr,
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
        direction, gap, error, keep = tile(
            operands, scalars, b, start, end, KIND, RUN, WITH_ERROR, KEPT_ONLY, TILE, WIDE
        )
        energies += direction * direction
        gaps += gap
        errors += error
        kept += keep.to(tl.int32)
    count = tl.sum(kept)
    energy, gap, distance, bad = checked_sums(
        operands, scalars, b, begin, end,
        tl.sum(energies), tl.sum(gaps), tl.sum(errors), count, KIND, RUN, WITH_ERROR, KEPT_ONLY, DMD, WIDE,
    )  # fmt: skip
    at = written.partials + tl.program_id(0)
    field = tl.full((), batch, tl.int64) * programs
    tl.store(at, energy)
    tl.store(at + field, gap)
    tl.store(at + 2 * field, distance)
    tl.store(at + 3 * field, bad)
    tl.store(at + 4 * field, count.to(tl.float64))
    if generator.logits is not None and piece == 0:
        sample_generator(generator, b, gan_weight, gan_divisor, ZERO, GAN_HEADS)
    if is_last(written.ticket):
        constants = float64_constants(log_ratio_min, log_ratio_max, t_min, t_max, bin_width, decay, amari_alpha)
        _weigh_all(
            operands, weighting, generator, constants, written, batch, elements, programs, chunks, eps, floor,
            gan_weight, gan_divisor,
            DIVERGENCE, NORMALIZE, UPDATE, DMD, KEPT_ONLY, ZERO, REDUCTION, SAMPLES, BINS, HEADS, PIECES,
        )  # fmt: skip


@triton.jit
def _pieces(written, field, b, batch, programs, SAMPLES: tl.constexpr, PIECES: tl.constexpr):
    """[SAMPLES] sums of a field of `partials` over each sample's programs."""
    partials = written.partials + tl.full((), batch, tl.int64) * field * programs
    return sum_of_pieces(partials, b, batch, programs, SAMPLES, PIECES)


@triton.jit
def _weigh_all(
    operands, weighting, generator, constants, written, batch, elements, programs, chunks, eps, floor, gan_weight,
    gan_divisor,
    DIVERGENCE: tl.constexpr, NORMALIZE: tl.constexpr, UPDATE: tl.constexpr, DMD: tl.constexpr,
    KEPT_ONLY: tl.constexpr, ZERO: tl.constexpr, REDUCTION: tl.constexpr, SAMPLES: tl.constexpr, BINS: tl.constexpr,
    HEADS: tl.constexpr, PIECES: tl.constexpr,
):  # fmt: skip
    """From every program's sums to each sample's coefficient, the loss, the figures and the normalizer's state."""
    term = float64(float("nan"))
    if generator.logits is not None:
        term = added_generator(generator, batch, gan_weight, gan_divisor, REDUCTION, SAMPLES)
    zero = tl.sum(tl.zeros((SAMPLES,), tl.float64))
    total, norm, gap, distance, count, kept = zero, zero, zero, zero, zero, zero
    if weighting.logits is not None:
        mean = bin_means(weighting, constants, batch, chunks, UPDATE, SAMPLES, BINS, HEADS)
        summary = summarize(weighting, constants, mean, batch, chunks, DIVERGENCE, SAMPLES, BINS, HEADS)
    if REDUCTION == "mean" and operands.count is not None:
        kept = given_count(operands.count)
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
        counted = elements
        if KEPT_ONLY:
            counted = _pieces(written, 4, b, batch, programs, SAMPLES, PIECES)
        w, nonfinite = sample_weight(operands, h, sample_distance, bad, b, inside, counted, eps, floor, DMD, ZERO)
        divisor = tl.full((SAMPLES,), 1.0, tl.float64)
        if REDUCTION == "none":
            divisor = tl.maximum(_pieces(written, 4, b, batch, programs, SAMPLES, PIECES), 1.0)
        elif REDUCTION == "mean":
            divisor = divisor * kept
        coefficient = _coefficient(written, w, divisor, b, inside, REDUCTION)
        tl.store(written.coefficients + b, coefficient, mask=inside)
        energy = w * w * _pieces(written, 0, b, batch, programs, SAMPLES, PIECES)
        energy = tl.where(inside & (w != 0.0), energy, 0.0)
        if REDUCTION == "none":
            loss = 0.5 * energy / divisor
            if generator.logits is not None:
                sums = load_stored(generator.sums + b, inside)
                loss += float64(gan_weight) * sums / float64(gan_divisor)
            tl.store(written.loss + b, loss, mask=inside)
        else:
            total += tl.sum(energy / divisor)
        if written.stats is not None:
            tl.store(written.stats + STATS + b, h, mask=inside)
            used = inside & (nonfinite == 0)
            norm += tl.sum(energy / (divisor * divisor))
            gap += tl.sum(tl.where(used, _pieces(written, 1, b, batch, programs, SAMPLES, PIECES), 0.0))
            distance += tl.sum(tl.where(used, sample_distance, 0.0))
            count += tl.sum(tl.where(inside & nonfinite, 1.0, 0.0).to(tl.float64))
    loss = 0.5 * total
    if generator.logits is not None:
        loss += float64(gan_weight) * term
    if REDUCTION != "none":
        tl.store(written.loss, loss)
    if written.stats is not None:
        _store_figures(written, norm, gap, distance, count, term)
        if weighting.logits is None:
            store_given_weight_stats(written.stats, weighting, batch, SAMPLES)
        else:
            store_weight_stats(written.stats, weighting, summary, batch)
    if UPDATE:
        tl.debug_barrier()  # until every thread has read the old state
        store_bin_means(weighting, mean, BINS)


# τ, f [B, n] and w / N [B] -> g / N [B, n]. Each program of sample b stores up to `tiles` tiles of it. Samples go from
# the last to the first, because the cache still holds what the reduction read last.
# Per element: reads τ and f (unconditional predictions, mask) again, writes g / N: 6 bytes in bfloat16, 12 in float32.
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
        direction, _, _, keep = tile(operands, scalars, b, start, end, KIND, RUN, False, False, TILE, WIDE)
        tl.store(row + i, scaled_direction(direction, coefficient, keep, WIDE), mask=i < end)
