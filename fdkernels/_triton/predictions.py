"""What the networks predict, as a device function: (a, c) of x0 = a·x_t + c·prediction, in float64.

The table of `fdkernels/prediction.py` for Triton: the same expressions in the same order, since float64 results are to
have the same bits. A test compares the two.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def coefficients(alpha, sigma, sigma_data, KIND: tl.constexpr):
    """(a, c) from levels that are numbers or blocks. The compiler drops what a kernel does not use."""
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
        a = sigma_data * sigma_data / variance
        c = sigma * sigma_data / tl.sqrt(variance)
    elif KIND == "affine":
        a = alpha
        c = sigma
    else:
        tl.static_assert(False, "coefficients: no such row")
    return a, c
