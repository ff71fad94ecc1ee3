"""The kernel of the op `noising` in Triton: each input is read once, each result written once."""

from __future__ import annotations

from typing import Any, NamedTuple

import triton
import triton.language as tl

from fdkernels._triton.elements import float64, is_finite, load_samples
from fdkernels._triton.predictions import level, tile_coefficients
from fdkernels._triton.random import normals


class Operands(NamedTuple):
    """The inputs of a call's elements; None for an input that the call does not have."""

    x: Any
    noise: Any
    seed: Any
    alpha: Any
    """A Table, or None if `fixed_alpha` takes its place. The same holds for sigma."""
    sigma: Any
    end: None = None
    """Keep this None last, as in `fdiv/triton_elements.py`."""


class Scalars(NamedTuple):
    """The numbers of a program."""

    alpha: Any
    sigma: Any
    sigma_data: Any


@triton.jit
def draw(seed, at, BY_FOUR: tl.constexpr, TILE: tl.constexpr, WIDE: tl.constexpr):
    """Numbers at, ..., at + TILE - 1 of a stream. BY_FOUR: at is a multiple of 4."""
    if BY_FOUR:
        z0, z1, z2, z3 = normals(seed, at // 4 + tl.arange(0, TILE // 4), WIDE)
        z = tl.interleave(tl.interleave(z0, z2), tl.interleave(z1, z3))
    else:
        i = at + tl.arange(0, TILE)
        z0, z1, z2, z3 = normals(seed, i // 4, WIDE)
        z = tl.where(i % 4 < 2, tl.where(i % 2 == 0, z0, z1), tl.where(i % 2 == 0, z2, z3))
    return z


@triton.jit
def mixed(x, noise, by_x, by_noise, WIDE: tl.constexpr):
    """by_x·x + by_noise·noise, to the last place also where the terms cancel (as `_error` in
    `fdiv/triton_elements.py`)."""
    if tl.float32 == WIDE:
        x_high, noise_high = by_x.to(WIDE) + tl.zeros_like(x), by_noise.to(WIDE) + tl.zeros_like(x)
        x_low = (by_x - by_x.to(WIDE).to(tl.float64)).to(WIDE)
        noise_low = (by_noise - by_noise.to(WIDE).to(tl.float64)).to(WIDE)
        product = noise_high * noise
        y = tl.fma(x_high, x, product)
        rest = tl.fma(noise_high, noise, -product) + (x_low * x + noise_low * noise)
        y = tl.where(is_finite(y), y + rest, y)
    else:
        y = by_x * x + by_noise * noise
    return y


@triton.jit
def stored(v, TYPE: tl.constexpr):
    """v in the type of the result: float64 goes to half precision by way of float32, as in C++."""
    if tl.float64 != TYPE:
        v = v.to(tl.float32)
    return v.to(TYPE)


# y = (coefficient of x)·x + (coefficient of noise)·noise: programs share each sample.
@triton.jit
def noising_kernel(
    operands, y, drawn, elements, programs, tiles, fixed_alpha: tl.float64, fixed_sigma: tl.float64,
    sigma_data: tl.float64,
    RESULT: tl.constexpr, KIND: tl.constexpr, RUN: tl.constexpr, BY_FOUR: tl.constexpr, TILE: tl.constexpr,
    OFFSET: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    b = tl.program_id(0) // programs
    first = tl.zeros_like(b)
    scalars = Scalars(
        level(operands.alpha, fixed_alpha, b, first), level(operands.sigma, fixed_sigma, b, first), float64(sigma_data)
    )
    row = b.to(tl.int64) * elements
    begin = (tl.program_id(0) % programs).to(OFFSET) * tiles * TILE
    end = tl.minimum(begin + tiles * TILE, tl.full((), elements, OFFSET))
    for start in range(begin, end, TILE):
        i = start + tl.arange(0, TILE)
        inside = i < elements
        a, c = tile_coefficients(operands, scalars, b, start, KIND, RUN, TILE)
        x = load_samples(operands.x, b, i, inside, WIDE)
        noise = tl.zeros_like(x)
        if operands.noise is not None:
            noise = load_samples(operands.noise, b, i, inside, WIDE)
        if operands.seed is not None:
            z = draw(tl.load(operands.seed), row + start, BY_FOUR, TILE, WIDE)
            z = stored(z, y.dtype.element_ty)
            if drawn is not None:
                tl.store(drawn + row + i, z, mask=inside)
            noise = z.to(WIDE)
        if RESULT == "noisy":
            value = mixed(x, noise, a, c, WIDE)
        elif RESULT == "flow":
            value = mixed(x, noise, 1.0 - c, c, WIDE)
        elif RESULT == "x0":
            value = mixed(x, noise, c, a, WIDE)
        else:
            value = mixed(x, noise, 1.0 / c, -a / c, WIDE)
        tl.store(y + row + i, stored(value, y.dtype.element_ty), mask=inside)
