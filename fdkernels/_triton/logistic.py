"""softplus and its derivative as device functions, in float64: exact in both tails, without overflow."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def log1p(u):
    """log(1 + u) for u >= 0, accurate to rounding: the error of w = 1 + u cancels in log(w)·u / (w - 1)."""
    w = 1.0 + u
    lost = w == 1.0
    return tl.where(lost, u, tl.log(w) * (u / tl.where(lost, 1.0, w - 1.0)))


@triton.jit
def softplus(x):
    """log(1 + e^x)."""
    return tl.maximum(x, 0.0) + log1p(tl.exp(-tl.abs(x)))


@triton.jit
def softplus_with_slope(x):
    """(softplus(x), its derivative sigmoid(x)) with one exponential."""
    u = tl.exp(-tl.abs(x))
    return tl.maximum(x, 0.0) + log1p(u), tl.where(x < 0, u, 1.0) / (1.0 + u)
