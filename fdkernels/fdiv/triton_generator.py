"""The generator's term of the op `fdiv` in Triton, gan_weight · Σ softplus(-ℓ) / divisor, and the gradient of ℓ."""

from __future__ import annotations

from typing import Any, NamedTuple

import triton
import triton.language as tl

from fdkernels._triton.elements import float16_power, float64, is_finite, store_rounded
from fdkernels._triton.logistic import softplus_with_slope
from fdkernels._triton.sums import load_stored


class Generator(NamedTuple):
    """The tensors of the generator's term; logits=None: the call has no such term."""

    logits: Any
    """(B, heads), contiguous."""
    heads: int
    head_chunks: int
    gradient: Any
    """Shaped like the logits; None: not asked for. The same holds for unscale, which has the loss's shape."""
    unscale: Any
    sums: Any
    """(B,) float64: each sample's sum over heads, for the last program."""


@triton.jit
def _stored_power(divisor):
    """What a float16 gradient is stored times, without the weight, which may be small; sigmoid leaves room for 2^15."""
    return float16_power(divisor) * 32768.0


@triton.jit
def sample_generator(generator, b, weight, divisor, ZERO: tl.constexpr, HEADS: tl.constexpr):
    """Stores the gradient of sample b's logits and their sum, and returns the sample's term."""
    weight, divisor = float64(weight), float64(divisor)
    factor = -weight / divisor
    if generator.unscale is not None:
        factor = -_stored_power(divisor) / divisor
    k = tl.arange(0, HEADS)
    row = b.to(tl.int64) * generator.heads
    used = k >= 0
    if ZERO:
        combined = tl.zeros((HEADS,), tl.float64)
        for chunk in range(generator.head_chunks):
            head = chunk * HEADS + k
            combined += tl.load(generator.logits + row + head, mask=head < generator.heads, other=0.0).to(tl.float64)
        used = is_finite(tl.zeros((HEADS,), tl.float64) + tl.sum(combined))
    total = tl.zeros((HEADS,), tl.float64)
    for chunk in range(generator.head_chunks):
        head = chunk * HEADS + k
        inside = head < generator.heads
        logit = tl.load(generator.logits + row + head, mask=inside, other=0.0).to(tl.float64)
        value, slope = softplus_with_slope(-logit)
        total += tl.where(inside & used, value, 0.0)
        if generator.gradient is not None:
            store_rounded(generator.gradient, row + head, tl.where(used, factor * slope, 0.0), inside)
    own = tl.sum(total)
    tl.store(generator.sums + b, own)
    return weight * own / divisor


@triton.jit
def added_generator(generator, batch, weight, divisor, REDUCTION: tl.constexpr, SAMPLES: tl.constexpr):
    """The term before its weight, from every sample's sum; with "none" the mean over samples. Run by the last program,
    which also stores `unscale`."""
    weight, divisor = float64(weight), float64(divisor)
    total = tl.zeros((SAMPLES,), tl.float64)
    for start in range(0, batch, SAMPLES):
        b = start + tl.arange(0, SAMPLES)
        total += load_stored(generator.sums + b, b < batch)
        if generator.unscale is not None:
            own = b < batch if REDUCTION == "none" else b == 0
            inverse = tl.zeros((SAMPLES,), tl.float64) + weight / _stored_power(divisor)
            tl.store(generator.unscale + b, inverse.to(tl.float32), mask=own)
    term = tl.sum(total) / divisor
    if REDUCTION == "none":
        term = term / batch
    return term
