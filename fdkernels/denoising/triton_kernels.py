"""The kernel of the op `denoising` in Triton: each input is read once, the gradient written once, in one launch."""

from __future__ import annotations

from typing import Any, NamedTuple

import triton
import triton.language as tl

from fdkernels._triton.elements import (
    float64,
    given_count,
    is_finite,
    load_samples,
    store_rounded,
    stored_power,
    table_entry,
)
from fdkernels._triton.predictions import level, tile_coefficients
from fdkernels._triton.sums import is_last, write_losses


class Operands(NamedTuple):
    """The inputs of a call's elements; None for an input that the call does not have."""

    pred: Any
    x0: Any
    noise: Any
    alpha: Any
    """A Table, or None if `fixed_alpha` takes its place. The same holds for sigma."""
    sigma: Any
    weight: Any
    """A Table."""
    count: Any
    """One value: the N of a mean that the caller gives."""
    end: None = None
    """Keep this None last, as in `fdiv/triton_elements.py`."""


class Written(NamedTuple):
    loss: Any
    gradient: Any
    unscale: Any
    partials: Any
    ticket: Any
    end: None = None


class Scalars(NamedTuple):
    """The numbers of a program."""

    alpha: Any
    sigma: Any
    sigma_data: Any


@triton.jit
def difference(pred, x0, noise, p, q, WIDE: tl.constexpr):
    """pred - (p·x0 + q·noise), also where these are so near that the sum's last place is not enough: the rounding
    errors of both products and of their sum are kept. Compile without fusing them (`triton_launch.py`)."""
    if tl.float32 == WIDE:
        p_high, q_high = p.to(WIDE) + tl.zeros_like(pred), q.to(WIDE) + tl.zeros_like(pred)
        p_low, q_low = (p - p.to(WIDE).to(tl.float64)).to(WIDE), (q - q.to(WIDE).to(tl.float64)).to(WIDE)
        first, second = p_high * x0, q_high * noise
        lost = tl.fma(p_high, x0, -first) + tl.fma(q_high, noise, -second)
        total = first + second
        most = total - first
        rest = (first - (total - most)) + (second - most)
        near = pred - total
        lost += tl.fma(p_low + tl.zeros_like(x0), x0, q_low * noise)
        d = tl.where(is_finite(near), near - (rest + lost), near)
    else:
        d = pred - (p * x0 + q * noise)
    return d


# loss = Σ w·d² / N, gradient = 2·w·d / N with d = pred - target. Programs share each sample; the last one adds up.
@triton.jit
def denoising_kernel(
    operands, written, batch, elements, programs, tiles, divisor: tl.float64, fixed_alpha: tl.float64,
    fixed_sigma: tl.float64, sigma_data: tl.float64,
    REDUCTION: tl.constexpr, KIND: tl.constexpr, RUN: tl.constexpr, TILE: tl.constexpr, SAMPLES: tl.constexpr,
    PIECES: tl.constexpr, OFFSET: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    b = tl.program_id(0) // programs
    first = tl.zeros_like(b)
    scalars = Scalars(
        level(operands.alpha, fixed_alpha, b, first), level(operands.sigma, fixed_sigma, b, first), float64(sigma_data)
    )
    n = float64(divisor)
    if operands.count is not None:
        n = given_count(operands.count)
    factor = 2.0 / n * stored_power(written.unscale, n, 1.0, programs, REDUCTION == "none")
    row = b.to(tl.int64) * elements
    begin = (tl.program_id(0) % programs).to(OFFSET) * tiles * TILE
    end = tl.minimum(begin + tiles * TILE, tl.full((), elements, OFFSET))
    total = tl.zeros((TILE,), tl.float64)
    for start in range(begin, end, TILE):
        i = start + tl.arange(0, TILE)
        inside = i < elements
        p, q = tile_coefficients(operands, scalars, b, start, KIND, RUN, TILE, True)
        pred = load_samples(operands.pred, b, i, inside, WIDE)
        x0 = load_samples(operands.x0, b, i, inside, WIDE)
        noise = load_samples(operands.noise, b, i, inside, WIDE)
        d = difference(pred, x0, noise, p, q, WIDE)
        wide = d.to(tl.float64)
        if operands.weight is not None:
            w = tl.load(table_entry(operands.weight, b, i)).to(tl.float64)
            total += tl.where(inside, w * wide * wide, 0.0)
            by = (factor * w).to(WIDE)
        else:
            total += tl.where(inside, wide * wide, 0.0)
            by = factor.to(WIDE)
        if written.gradient is not None:
            store_rounded(written.gradient, row + i, by * d, inside)
    tl.store(written.partials + tl.program_id(0), tl.sum(total))
    if is_last(written.ticket):
        each: tl.constexpr = REDUCTION == "none"
        write_losses(written.loss, written.partials, batch, programs, n, each, SAMPLES, PIECES, TILE)
