"""The kernel of the op `adversarial` in Triton: logits are read once, gradients written once, in one launch."""

from __future__ import annotations

from typing import Any, NamedTuple

import triton
import triton.language as tl

from fdkernels._triton.elements import float64, load_samples, stored_power
from fdkernels._triton.logistic import softplus_with_slope
from fdkernels._triton.sums import is_last, write_losses


class Written(NamedTuple):
    """None for a gradient that is not asked for, and for the unscale of one that is not float16."""

    loss: Any
    gradient: Any
    unscale: Any
    others_gradient: Any
    others_unscale: Any
    partials: Any
    ticket: Any
    end: None = None
    """Keep this None last, as in `fdiv/triton_elements.py`."""


@triton.jit
def load_clamped(samples, bound, b, i, inside):
    """(the logits, clamped; whether the clamp changed them). NaN stays NaN."""
    v = load_samples(samples, b, i, inside, tl.float64)
    outside = tl.abs(v) > bound
    return tl.where(outside, tl.where(v > 0, bound, -bound), v), outside


@triton.jit
def term(v, sign, KIND: tl.constexpr):
    """(an element's term of the loss, its derivative), as in `reference.py`."""
    u = sign * v
    if KIND == "logistic" or KIND == "relativistic":
        value, slope = softplus_with_slope(u)
        slope *= sign
    elif KIND == "hinge":
        value = tl.where(u <= -1.0, 0.0, 1.0 + u)  # NaN stays NaN
        slope = tl.where(u > -1.0, sign, 0.0)
    elif KIND == "linear":
        value, slope = u, tl.zeros_like(u) + sign
    else:
        tl.static_assert(KIND == "square", "term: no such kind")
        value, slope = v * v, 2.0 * v
    return value, slope


@triton.jit
def store_gradient(to, at, inside, slope, v, outside, factor):
    """Rounded once. The clamp stops the gradient of what it changed; a logit that is NaN has no slope."""
    g = tl.where(v == v, tl.where(outside, 0.0, factor * slope), v)
    if tl.float64 != to.dtype.element_ty:
        g = g.to(tl.float32)
    tl.store(to + at, g.to(to.dtype.element_ty), mask=inside)


# loss = Σ term(a) + Σ term(b), or Σ term(a - b), over the divisor, with the terms of `reference.py`; the gradients are
# their derivatives. Programs share each of `batch` runs of elements (a sample, or the whole batch); the last one adds
# up. Reads each input once and writes each gradient once: 8 bytes an element of both inputs in half precision.
@triton.jit
def adversarial_kernel(
    logits, others, written, batch, elements, programs, tiles, sign: tl.float64, bound: tl.float64,
    divisor: tl.float64, headroom: tl.float64, KIND: tl.constexpr, EACH: tl.constexpr,
    TILE: tl.constexpr, SAMPLES: tl.constexpr, PIECES: tl.constexpr, OFFSET: tl.constexpr,
):  # fmt: skip
    b = tl.program_id(0) // programs
    sign, bound, divisor = float64(sign), float64(bound), float64(divisor)
    by = stored_power(written.unscale, divisor, float64(headroom), programs, EACH) / divisor
    others_by = stored_power(written.others_unscale, divisor, float64(headroom), programs, EACH) / divisor
    row = b.to(tl.int64) * elements
    begin = (tl.program_id(0) % programs).to(OFFSET) * tiles * TILE
    end = tl.minimum(begin + tiles * TILE, tl.full((), elements, OFFSET))
    total = tl.zeros((TILE,), tl.float64)
    for start in range(begin, end, TILE):
        i = start + tl.arange(0, TILE)
        inside = i < elements
        first, first_outside = load_clamped(logits, bound, b, i, inside)
        value, slope = tl.zeros_like(first), tl.zeros_like(first)
        second, second_outside, second_slope = first, first_outside, slope
        if others is not None:
            second, second_outside = load_clamped(others, bound, b, i, inside)
        if KIND == "relativistic" or KIND == "square":
            value, slope = term(first - second, sign, KIND)
            second_slope = -slope
        else:
            value, slope = term(first, sign, KIND)
            if others is not None:
                second_value, second_slope = term(second, -sign, KIND)
                value += second_value
        total += tl.where(inside, value, 0.0)
        if written.gradient is not None:
            store_gradient(written.gradient, row + i, inside, slope, first, first_outside, by)
        if written.others_gradient is not None:
            store_gradient(written.others_gradient, row + i, inside, second_slope, second, second_outside, others_by)
    tl.store(written.partials + tl.program_id(0), tl.sum(total))
    if is_last(written.ticket):
        write_losses(written.loss, written.partials, batch, programs, divisor, EACH, SAMPLES, PIECES, TILE)
