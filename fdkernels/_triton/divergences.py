"""The f-divergence weights as device functions: log h of the log ratio L = log r, in float64.

The table of `fdkernels/divergences.py` for Triton, affine in L and softplus(L) throughout; a test compares the two.
"""

from __future__ import annotations

import triton
import triton.language as tl

from fdkernels._triton.logistic import softplus

LOG_2: tl.constexpr = tl.constexpr(0.693147180559945309417232121458176568)


@triton.jit
def log_weight(L, alpha, DIVERGENCE: tl.constexpr):
    """log h(e^L). Only Amari's family uses `alpha`, its parameter."""
    if DIVERGENCE == "rkl":
        log_h = tl.zeros_like(L)  # also where L is not finite
    elif DIVERGENCE == "kl":
        log_h = L
    elif DIVERGENCE == "js":
        log_h = -softplus(-L)
    elif DIVERGENCE == "softened_rkl":
        log_h = -softplus(L)
    elif DIVERGENCE == "squared_hellinger":
        log_h = 0.5 * L - 2 * LOG_2
    elif DIVERGENCE == "jeffreys":
        log_h = softplus(L)
    elif DIVERGENCE == "neyman":
        log_h = LOG_2 - L
    elif DIVERGENCE == "pearson":
        log_h = LOG_2 + 2 * L
    elif DIVERGENCE == "le_cam":
        log_h = 3 * LOG_2 + 2 * L - 3 * softplus(L)
    elif DIVERGENCE == "alpha":
        log_h = alpha * L
    else:
        tl.static_assert(False, "log_weight: no such row")
    return log_h
