"""The prediction kinds as device functions: (a, c) of x0 = a·x_t + c·prediction, in float64.

The table of `fdkernels/prediction.py` for Triton. Keep the same expressions in the same order: float64 results must
have the same bits. A test compares the two.
"""

from __future__ import annotations

import triton
import triton.language as tl

from fdkernels._triton.elements import float64, table_entry


@triton.jit
def coefficients(alpha, sigma, sigma_data, KIND: tl.constexpr):
    """(a, c) from levels that are numbers or blocks. The compiler drops results that a kernel does not use."""
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
        a = 1.0 / variance * (sigma_data * sigma_data)  # the order in which PyTorch divides a number by a tensor
        c = sigma * sigma_data / tl.sqrt(variance)
    elif KIND == "affine":
        a = alpha
        c = sigma
    else:
        tl.static_assert(False, "coefficients: no such row")
    return a, c


@triton.jit
def target(alpha, sigma, sigma_data, KIND: tl.constexpr):
    """(p, q) of what a network is trained to predict, p·x0 + q·noise."""
    ones = tl.zeros_like(sigma) + 1.0
    if KIND == "sample":
        p, q = ones, ones * 0.0
    elif KIND == "epsilon":
        p, q = ones * 0.0, ones
    elif KIND == "v_prediction":
        p, q = -sigma, alpha
    elif KIND == "flow_prediction":
        p, q = -ones, ones
    elif KIND == "edm":
        root = tl.sqrt(sigma * sigma + sigma_data * sigma_data)
        p, q = sigma / (sigma_data * root), -sigma_data / root
    elif KIND == "affine":
        p, q = alpha, sigma
    else:
        tl.static_assert(False, "target: no such row")
    return p, q


@triton.jit
def _of_levels(alpha, sigma, sigma_data, KIND: tl.constexpr, TARGET: tl.constexpr):
    if TARGET:
        a, c = target(alpha, sigma, sigma_data, KIND)
    else:
        a, c = coefficients(alpha, sigma, sigma_data, KIND)
    return a, c


@triton.jit
def level(table, number, b, i):
    """The level of elements i of sample b in float64: from the table, or the number if there is no table."""
    v = float64(number)
    if table is not None:
        v = tl.load(table_entry(table, b, i)).to(tl.float64)
    return v


@triton.jit
def tile_coefficients(
    operands, scalars, b, start, KIND: tl.constexpr, RUN: tl.constexpr, TILE: tl.constexpr, TARGET: tl.constexpr = False
):
    """(a, c) of elements [start, start + TILE) of sample b, or (p, q) of their TARGET; two numbers if RUN is 0, when a
    sample has one level.

    Otherwise each run of RUN elements shares its levels, and (a, c) are computed once per run: a division per element
    would halve the warps in flight. Do not mask the tables' loads: a masked alpha would be 0, and the infinite
    coefficient times an element past the end, which is 0, would be NaN.
    """
    alpha, sigma = scalars.alpha, scalars.sigma
    if RUN == 0:
        a, c = _of_levels(alpha, sigma, scalars.sigma_data, KIND, TARGET)
    else:
        i = start + tl.arange(0, TILE // RUN) * RUN
        zeros = tl.zeros((TILE // RUN,), tl.float64)
        alpha = zeros + level(operands.alpha, alpha, b, i)
        sigma = zeros + level(operands.sigma, sigma, b, i)
        a, c = _of_levels(alpha, sigma, scalars.sigma_data, KIND, TARGET)
        if RUN > 1:
            a = tl.reshape(tl.broadcast_to(a[:, None], (TILE // RUN, RUN)), (TILE,))
            c = tl.reshape(tl.broadcast_to(c[:, None], (TILE // RUN, RUN)), (TILE,))
    return a, c
