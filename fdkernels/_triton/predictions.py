"""What the networks predict, as device functions: (a, c) of x0 = a·x_t + c·prediction, in float64.

The table of `fdkernels/prediction.py` for Triton: the same expressions in the same order, since float64 results are to
have the same bits. A test compares the two.
"""

from __future__ import annotations

import triton
import triton.language as tl

from fdkernels._triton.elements import float64, table_entry


@triton.jit
def coefficients(alpha, sigma, sigma_data, KIND: tl.constexpr):
    """(a, c) of levels that are numbers or blocks. The compiler drops what a kernel does not use."""
    if KIND == "sample":
        a = tl.zeros_like(sigma)
        c = tl.zeros_like(sigma) + 1.0
    elif KIND == "epsilon":
        a = 1.0 / alpha
        c = -sigma / alpha
    elif KIND == "v_prediction":
        a = alpha
        c = -sigma
    elif KIND == "flow_prediction":
        a = tl.zeros_like(sigma) + 1.0
        c = -sigma
    elif KIND == "edm":
        variance = sigma * sigma + sigma_data * sigma_data
        a = 1.0 / variance * (sigma_data * sigma_data)  # PyTorch divides a number by a tensor this way
        c = sigma * sigma_data / tl.sqrt(variance)
    elif KIND == "affine":
        a = alpha
        c = sigma
    else:
        tl.static_assert(False, "coefficients: no such row")
    return a, c


@triton.jit
def level(table, number, b, i):
    """Of elements i of sample b, in float64: a table's, or the number in its place."""
    v = float64(number)
    if table is not None:
        v = tl.load(table_entry(table, b, i)).to(tl.float64)
    return v


@triton.jit
def tile_coefficients(operands, scalars, b, start, KIND: tl.constexpr, RUN: tl.constexpr, TILE: tl.constexpr):
    """(a, c) of elements [start, start + TILE) of sample b: two numbers where RUN is 0, since all of them share theirs.

    Else RUN elements share their levels, and (a, c) are formed once for them: a division an element would halve the
    warps in flight. The tables' loads have no mask: an alpha of 0 past the end would make 0 · ∞ of what counts as 0.
    """
    alpha, sigma = scalars.alpha, scalars.sigma
    if RUN == 0:
        a, c = coefficients(alpha, sigma, scalars.sigma_data, KIND)
    else:
        i = start + tl.arange(0, TILE // RUN) * RUN
        zeros = tl.zeros((TILE // RUN,), tl.float64)
        alpha = zeros + level(operands.alpha, alpha, b, i)
        sigma = zeros + level(operands.sigma, sigma, b, i)
        a, c = coefficients(alpha, sigma, scalars.sigma_data, KIND)
        if RUN > 1:
            a = tl.reshape(tl.broadcast_to(a[:, None], (TILE // RUN, RUN)), (TILE,))
            c = tl.reshape(tl.broadcast_to(c[:, None], (TILE // RUN, RUN)), (TILE,))
    return a, c
