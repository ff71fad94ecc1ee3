"""softplus and its derivative as device functions, in float64: exact in both tails, without overflow.

The expressions and the polynomial of `csrc/core/logistic.h`.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def softplus_with_slope(x):
    """(log(1 + e^x), its derivative, the sigmoid)."""
    u = tl.exp(-tl.abs(x))
    # log(1 + u) = 2 atanh(s) with s = u / (u + 2) <= 1/3. The sigmoid is 1 or u over u + 1. One division serves both.
    inverse = 1.0 / ((u + 1.0) * (u + 2.0))
    s = u * (inverse * (u + 1.0))
    square = s * s
    # atanh(s) = s + s^3 p(s^2), minimax
    p = 0.088748554472870778 * square + 0.049489532004885741
    p = p * square + 0.067936616838351837
    p = p * square + 0.076820920662106532
    p = p * square + 0.090914106021558144
    p = p * square + 0.11111096319311529
    p = p * square + 0.14285714531742615
    p = p * square + 0.19999999997997497
    p = p * square + 0.3333333333333894
    return tl.maximum(x, 0.0) + 2.0 * (s + s * square * p), tl.where(x < 0, u, 1.0) * (inverse * (u + 2.0))


@triton.jit
def softplus(x):
    return softplus_with_slope(x)[0]
