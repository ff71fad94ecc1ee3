"""Steps 1 to 5 (`weight.py`) in Triton: from the discriminator's logits to the weight h, in float64 and log domain.

The functions take samples in blocks, so that one program can weigh a batch of any size. `fdiv_fwd_kernel` inlines them
for a whole batch, because B·H arithmetic is cheaper than a launch. `fdiv_weight_kernel` is the op `fdiv_weight_triton`.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import triton
import triton.language as tl

from fdkernels._triton.divergences import log_weight
from fdkernels._triton.elements import float64, is_finite


class WeightOperands(NamedTuple):
    """The inputs of a batch's weights; None for an input that the call does not have."""

    logits: Any
    """(B, heads), contiguous."""
    heads: int
    head_chunks: int
    """How many blocks of `HEADS` the heads fill. Triton compiles the value 1 in as a constant, without a loop."""
    t: Any
    weight: Any
    """(B,), h itself, in place of logits."""
    ratio_mean: Any
    """(bins,), float32: the normalizer's state."""
    bins: int
    edges: Any
    """(bins - 1,), float64; None: uniform bins."""


class Constants(NamedTuple):
    """The float64 scalars of steps 1 to 5. Build them inside a kernel: a tuple argument would make them float32."""

    log_ratio_min: float
    log_ratio_max: float
    t_min: float
    t_max: float
    bin_width: float
    """(t_max - t_min) / bins"""
    decay: float
    amari_alpha: float


class Summary(NamedTuple):
    """Sums over the finite samples of a batch, with weights relative to the largest so that nothing overflows."""

    count: Any
    """Number of samples with a weight: log h is below infinity."""
    highest: Any
    """max log h"""
    total: Any
    """Σ h / max h"""
    squares: Any
    """Σ (h / max h)²"""
    lowest: Any
    samples: Any
    """Number of samples with finite logits and t, over which ratios, clipped and outside are summed."""
    ratios: Any
    """Σ r"""
    clipped: Any
    outside: Any


@triton.jit
def float64_constants(log_ratio_min, log_ratio_max, t_min, t_max, bin_width, decay, amari_alpha):
    return Constants(
        float64(log_ratio_min), float64(log_ratio_max), float64(t_min), float64(t_max), float64(bin_width),
        float64(decay), float64(amari_alpha),
    )  # fmt: skip


@triton.jit
def _ratio_bin(weighting, constants, t):
    """The bin of each finite noise level, shaped like t."""
    if weighting.edges is None:
        # Clamp in float64: a huge t has no int32.
        position = tl.floor((t - constants.t_min) / constants.bin_width)
        index = tl.minimum(tl.maximum(position, 0.0), weighting.bins - 1).to(tl.int32)
    else:
        index = (t != t).to(tl.int32)
        for j in range(weighting.bins - 1):
            index += (tl.load(weighting.edges + j) <= t).to(tl.int32)
    return index


@triton.jit
def _log_ratios(weighting, constants, b, inside, SAMPLES: tl.constexpr, HEADS: tl.constexpr):
    """Steps 1 and 2: (L clamped, t, whether the sample is finite, whether L was clipped)."""
    k = tl.arange(0, HEADS)
    row = weighting.logits + b.to(tl.int64) * weighting.heads
    logits = tl.zeros((SAMPLES, HEADS), tl.float64)
    for chunk in range(weighting.head_chunks):
        head = chunk * HEADS + k
        there = inside[:, None] & (head < weighting.heads)[None, :]
        logits += tl.load(row[:, None] + head[None, :], mask=there, other=0.0).to(tl.float64)
    L = tl.sum(logits, 1) / weighting.heads
    finite = inside & is_finite(L)
    L = tl.where(finite, L, 0.0)  # before t is read: behind it, Triton 3.7 does not compile the kernel
    t = tl.zeros_like(L)
    if weighting.t is not None:
        t = tl.load(weighting.t + b, mask=inside, other=0).to(tl.float64)
        finite = finite & is_finite(t)
        t = tl.where(finite, t, 0.0)
    clamped = tl.minimum(tl.maximum(L, constants.log_ratio_min), constants.log_ratio_max)
    return clamped, t, finite, finite & (clamped != L)


@triton.jit
def bin_means(
    weighting, constants, batch, chunks,
    UPDATE: tl.constexpr, SAMPLES: tl.constexpr, BINS: tl.constexpr, HEADS: tl.constexpr,
):  # fmt: skip
    """m [BINS] of step 3 after this batch's update, rounded to float32 like the state; ones without a normalizer."""
    i = tl.arange(0, BINS)
    if weighting.ratio_mean is None:
        mean = tl.full((BINS,), 1.0, tl.float64)
    else:
        mean = tl.load(weighting.ratio_mean + i, mask=i < weighting.bins, other=1.0).to(tl.float64)
        if UPDATE:
            count = tl.zeros((BINS,), tl.float64)
            total = tl.zeros((BINS,), tl.float64)
            for chunk in range(chunks):
                b = chunk * SAMPLES + tl.arange(0, SAMPLES)
                L, t, finite, _ = _log_ratios(weighting, constants, b, b < batch, SAMPLES, HEADS)
                member = (_ratio_bin(weighting, constants, t)[:, None] == i[None, :]) & finite[:, None]
                count += tl.sum(tl.where(member, 1.0, 0.0).to(tl.float64), 0)
                total += tl.sum(tl.where(member, tl.exp(L)[:, None], 0.0), 0)
            updated = constants.decay * mean + (1 - constants.decay) * (total / tl.maximum(count, 1.0))
            mean = tl.where(count > 0, updated, mean).to(tl.float32).to(tl.float64)
    return mean


@triton.jit
def _log_weights(
    weighting, constants, mean, b, inside,
    DIVERGENCE: tl.constexpr, SAMPLES: tl.constexpr, BINS: tl.constexpr, HEADS: tl.constexpr,
):  # fmt: skip
    """Steps 1 to 4 of a block of samples: (log h, whether it is a weight, finite, ratio, clipped, out of range), each
    [SAMPLES]. A log h that overflows, for example because the state holds 0 for its bin, is not a weight."""
    L, t, finite, clipped = _log_ratios(weighting, constants, b, inside, SAMPLES, HEADS)
    ratio = tl.exp(L)
    outside = finite & ((t < constants.t_min) | (t > constants.t_max))
    if weighting.ratio_mean is not None:
        member = _ratio_bin(weighting, constants, t)[:, None] == tl.arange(0, BINS)[None, :]
        L = L - tl.sum(tl.where(member, tl.log(mean)[None, :], 0.0), 1)
    log_h = log_weight(L, constants.amari_alpha, DIVERGENCE)
    return log_h, finite & (log_h < float("inf")), finite, ratio, clipped, outside


@triton.jit
def summarize(
    weighting, constants, mean, batch, chunks,
    DIVERGENCE: tl.constexpr, SAMPLES: tl.constexpr, BINS: tl.constexpr, HEADS: tl.constexpr,
):  # fmt: skip
    """The `Summary` of a batch's weights, block by block."""
    zero = tl.sum(tl.zeros((SAMPLES,), tl.float64))
    count, total, squares, samples, ratios, clips, outsides = zero, zero, zero, zero, zero, zero, zero
    highest = zero - float("inf")
    lowest = zero + float("inf")
    for chunk in range(chunks):
        b = chunk * SAMPLES + tl.arange(0, SAMPLES)
        log_h, weighted, finite, ratio, clipped, outside = _log_weights(
            weighting, constants, mean, b, b < batch, DIVERGENCE, SAMPLES, BINS, HEADS
        )
        higher = tl.maximum(highest, tl.max(tl.where(weighted, log_h, -float("inf"))))
        # If all weights so far are 0, the sums are NaN. Drop them: beside a larger weight they add nothing.
        started = highest > -float("inf")
        shrink = tl.where(started, tl.exp(tl.minimum(highest - higher, 0.0)), 0.0)
        relative = tl.where(weighted, tl.exp(log_h - higher), 0.0)
        total = tl.where(started, total * shrink, 0.0) + tl.sum(relative)
        squares = tl.where(started, squares * shrink * shrink, 0.0) + tl.sum(relative * relative)
        count += tl.sum(tl.where(weighted, 1.0, 0.0).to(tl.float64))
        samples += tl.sum(tl.where(finite, 1.0, 0.0).to(tl.float64))
        ratios += tl.sum(tl.where(finite, ratio, 0.0))
        clips += tl.sum(tl.where(clipped, 1.0, 0.0).to(tl.float64))
        outsides += tl.sum(tl.where(outside, 1.0, 0.0).to(tl.float64))
        lowest = tl.minimum(lowest, tl.min(tl.where(weighted, log_h, float("inf"))))
        highest = higher
    return Summary(count, highest, total, squares, lowest, samples, ratios, clips, outsides)


@triton.jit
def store_weight_stats(stats, weighting, summary, batch):
    """Stores weight min, mean, max, effective sample size, ratio mean, clip fraction, out-of-range fraction."""
    count = summary.count
    nan = tl.where(count > 0, 0.0, float("nan")).to(tl.float64)
    tl.store(stats, tl.exp(summary.lowest) + nan)
    tl.store(stats + 1, tl.exp(summary.highest) * (summary.total / count) + nan)
    tl.store(stats + 2, tl.exp(summary.highest) + nan)
    tl.store(stats + 3, summary.total * summary.total / (summary.squares * batch) + nan)
    tl.store(stats + 4, summary.ratios / summary.samples)
    tl.store(stats + 5, summary.clipped / summary.samples)
    if weighting.ratio_mean is None:
        tl.store(stats + 6, float("nan"))
    else:
        tl.store(stats + 6, summary.outside / summary.samples)


@triton.jit
def weights(
    weighting, constants, mean, summary, b, inside,
    NORMALIZE: tl.constexpr, DIVERGENCE: tl.constexpr, SAMPLES: tl.constexpr, BINS: tl.constexpr,
    HEADS: tl.constexpr,
):  # fmt: skip
    """h [SAMPLES] of step 5; NaN where a sample's combined logit or t is not finite, or its log h overflows."""
    log_h, weighted, _, _, _, _ = _log_weights(weighting, constants, mean, b, inside, DIVERGENCE, SAMPLES, BINS, HEADS)
    if NORMALIZE:
        log_h = log_h - (summary.highest + tl.log(summary.total / summary.count))
    return tl.where(weighted, tl.exp(log_h), float("nan"))


@triton.jit
def given_weights(weighting, b, inside):
    """The given h of samples, or 1 if none is given; NaN where t is not finite. `b` is one sample or a block."""
    if weighting.weight is None:
        h = tl.zeros_like(b).to(tl.float64) + 1.0
    else:
        h = tl.load(weighting.weight + b, mask=inside, other=0.0).to(tl.float64)
    if weighting.t is not None:
        t = tl.load(weighting.t + b, mask=inside, other=0).to(tl.float64)
        h = tl.where(is_finite(t), h, float("nan"))
    return h


@triton.jit
def store_given_weight_stats(stats, weighting, batch, BLOCK: tl.constexpr):
    """Stores the first four figures of given weights; the others are NaN."""
    zero = tl.sum(tl.zeros((BLOCK,), tl.float64))
    count, total, squares = zero, zero, zero
    highest = zero - float("inf")
    lowest = zero + float("inf")
    for start in range(0, batch, BLOCK):
        b = start + tl.arange(0, BLOCK)
        h = given_weights(weighting, b, b < batch)
        finite = (b < batch) & is_finite(h)
        used = tl.where(finite, h, 0.0)
        count += tl.sum(tl.where(finite, 1.0, 0.0).to(tl.float64))
        total += tl.sum(used)
        squares += tl.sum(used * used)
        highest = tl.maximum(highest, tl.max(tl.where(finite, h, -float("inf"))))
        lowest = tl.minimum(lowest, tl.min(tl.where(finite, h, float("inf"))))
    nan = tl.where(count > 0, 0.0, float("nan")).to(tl.float64)
    tl.store(stats, lowest + nan)
    tl.store(stats + 1, total / count)
    tl.store(stats + 2, highest + nan)
    tl.store(stats + 3, total * total / (squares * batch) + nan)
    for i in range(4, 7):
        tl.store(stats + i, float("nan"))


@triton.jit
def store_bin_means(weighting, mean, BINS: tl.constexpr):
    i = tl.arange(0, BINS)
    tl.store(weighting.ratio_mean + i, mean.to(tl.float32), mask=i < weighting.bins)


# Logits (B, heads) -> h (B,), figures (7,) and the normalizer's new state (bins,). One program, which passes over the
# logits at most three times. Reads 4 bytes per logit in float32, writes 8 per sample.
@triton.jit
def fdiv_weight_kernel(
    weighting, weight, stats, batch, chunks,
    log_ratio_min: tl.float64, log_ratio_max: tl.float64, t_min: tl.float64, t_max: tl.float64, bin_width: tl.float64,
    decay: tl.float64, amari_alpha: tl.float64,
    DIVERGENCE: tl.constexpr, NORMALIZE: tl.constexpr, UPDATE: tl.constexpr, SAMPLES: tl.constexpr, BINS: tl.constexpr,
    HEADS: tl.constexpr,
):  # fmt: skip
    constants = float64_constants(log_ratio_min, log_ratio_max, t_min, t_max, bin_width, decay, amari_alpha)
    mean = bin_means(weighting, constants, batch, chunks, UPDATE, SAMPLES, BINS, HEADS)
    summary = summarize(weighting, constants, mean, batch, chunks, DIVERGENCE, SAMPLES, BINS, HEADS)
    for chunk in range(chunks):
        b = chunk * SAMPLES + tl.arange(0, SAMPLES)
        h = weights(weighting, constants, mean, summary, b, b < batch, NORMALIZE, DIVERGENCE, SAMPLES, BINS, HEADS)
        tl.store(weight + b, h, mask=b < batch)
    store_weight_stats(stats, weighting, summary, batch)
    if UPDATE:
        tl.debug_barrier()  # until every thread has read the old state
        store_bin_means(weighting, mean, BINS)
