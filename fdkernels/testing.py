"""Tolerances of the kernels' contracts, and comparisons with a float64 oracle. Use them for your own kernels, too.

A gradient is computed in float32 (float64 for float64 inputs) and rounded once into its dtype. So the error of a
half-precision gradient is measured per element, in units in the last place of the oracle's value, and that of a wider
one as a relative L2 error. An oracle is any float64 computation from the same, already rounded, inputs.
"""

from __future__ import annotations

import torch
from torch import Tensor

GRADIENT_ULPS = 1.0
"""Half-precision gradients, if the upstream gradient is 1."""
SCALED_GRADIENT_ULPS = 2.0
"""Half-precision gradients, if the upstream gradient is not 1: one more rounding."""
RELATIVE_L2 = {torch.float32: 1e-6, torch.float64: 1e-13}
"""Full-precision gradients."""
NORMALIZED_RELATIVE_L2 = 1e-6
"""Full-precision gradients with a `RatioNormalizer`, whose state is float32."""
WEIGHT_RELATIVE = 1e-6
"""f-divergence weights, wherever the true value is a normal float32 number."""
LOSS_RELATIVE = {torch.float32: 1e-6, torch.float64: 1e-13}
"""The loss, by its dtype."""

_HALF = (torch.float16, torch.bfloat16)


def ulp(value: Tensor, dtype: torch.dtype) -> Tensor:
    """The spacing of `dtype`'s numbers in the binade of each value, in float64; at zero, its smallest positive number.

    Args:
        value: float64, any shape; a value beyond the largest finite number gets that number's spacing.
        dtype: a floating-point dtype.
    """
    info = torch.finfo(dtype)
    magnitude = value.double().abs().clamp(info.tiny, info.max)
    exponent = torch.frexp(magnitude).exponent - 1
    return torch.ldexp(torch.full_like(magnitude, info.eps), exponent)


def ulp_error(actual: Tensor, expected: Tensor) -> Tensor:
    """|actual - expected| in units in the last place of `actual.dtype` at the rounded oracle, elementwise, in float64.

    The error is 0 for equal values, for NaN if the oracle is NaN, and for an infinity to which the oracle rounds.
    """
    rounded = expected.double().to(actual.dtype)
    same = (actual == rounded) | (actual.isnan() & rounded.isnan())
    error = (actual.double() - expected.double()).abs() / ulp(rounded.double(), actual.dtype)
    return torch.where(same, torch.zeros_like(error), error.nan_to_num(nan=torch.inf, posinf=torch.inf))


def relative_l2(actual: Tensor, expected: Tensor) -> float:
    """‖actual - expected‖₂ / ‖expected‖₂ in float64 over the finite elements.

    It is infinite if the non-finite elements differ (NaN, ∞, -∞), or if the oracle is zero and `actual` is not.
    """
    actual, expected = actual.double(), expected.double()
    finite = torch.isfinite(expected)
    same_kind = torch.allclose(actual[~finite], expected[~finite], equal_nan=True)
    if not same_kind or not torch.equal(torch.isfinite(actual), finite):
        return float("inf")
    error, size = (actual - expected)[finite].norm().item(), expected[finite].norm().item()
    if size == 0.0:
        return 0.0 if error == 0.0 else float("inf")
    return error / size


def assert_gradient(
    actual: Tensor,
    expected: Tensor,
    *,
    upstream_is_one: bool = True,
    normalized: bool = False,
    bound: Tensor | None = None,
) -> None:
    """Compare a gradient with the float64 oracle's.

    Args:
        actual: the kernel's gradient, of any floating-point dtype.
        expected: the oracle's, in float64, not rounded.
        upstream_is_one: False if the backward scaled the gradient, which costs one more rounding.
        normalized: whether a `RatioNormalizer` took part.
        bound: an absolute error that each element may have besides one rounding (see `guidance_bound`).

    Raises:
        AssertionError: shapes differ, or the error is above the tolerance; the message has the error.
    """
    if actual.shape != expected.shape:
        raise AssertionError(f"gradient: expected shape {tuple(expected.shape)}, got {tuple(actual.shape)}")
    expected = expected.double()
    ulps = GRADIENT_ULPS if upstream_is_one else SCALED_GRADIENT_ULPS
    if bound is not None:
        # A float64 gradient's weight comes from float64 arithmetic too, so its error is more than the last rounding.
        one_rounding = (
            RELATIVE_L2[torch.float64] * expected.abs()
            if actual.dtype == torch.float64
            else ulps * ulp(expected.to(actual.dtype).double(), actual.dtype)
        )
        allowed = bound.double() + one_rounding
        error = (actual.double() - expected).abs()
        if not bool((error <= allowed).all()):
            worst = (error / allowed).nan_to_num(nan=torch.inf).max().item()
            raise AssertionError(f"gradient: an element's error is {worst:.3g} times its bound")
    elif actual.dtype in _HALF:
        worst = ulp_error(actual, expected).max().item() if actual.numel() else 0.0
        if worst > ulps:
            raise AssertionError(f"gradient: error of {worst:.3g} ulp of {actual.dtype}, at most {ulps:g} allowed")
    else:
        limit = RELATIVE_L2[actual.dtype]
        limit = max(limit, NORMALIZED_RELATIVE_L2) if normalized else limit
        error_l2 = relative_l2(actual, expected)
        if error_l2 > limit:
            raise AssertionError(f"gradient: relative L2 error {error_l2:.3g}, at most {limit:g} allowed")


def assert_weight(actual: Tensor, expected: Tensor, *, relative: float = WEIGHT_RELATIVE) -> None:
    """Compare f-divergence weights with the oracle's where those are normal float32 numbers. NaN must match NaN."""
    if actual.shape != expected.shape:
        raise AssertionError(f"weight: expected shape {tuple(expected.shape)}, got {tuple(actual.shape)}")
    info = torch.finfo(torch.float32)
    expected = expected.double()
    normal = (expected.abs() >= info.tiny) & (expected.abs() <= info.max)
    error = ((actual.double() - expected).abs() / expected.abs())[normal].nan_to_num(nan=torch.inf)
    worst = error.max().item() if error.numel() else 0.0
    if worst > relative:
        raise AssertionError(f"weight: relative error {worst:.3g}, at most {relative:g} allowed")
    if not torch.equal(actual.isnan(), expected.isnan()):
        raise AssertionError(f"weight: expected NaN at {expected.isnan().tolist()}, got {actual.isnan().tolist()}")


def guidance_bound(
    other: Tensor, cond: Tensor, uncond: Tensor, guidance_scale: float, slope: Tensor, *, epsilon: float = 2.0**-24
) -> Tensor:
    """The error that guidance may add to an element: 4·ε·(|other| + |u| + |g|·(|cond| + |u|))·|slope|.

    Guidance multiplies the rounding error of cond - u by g, in any order of the operations. `other` is the prediction
    on the other side of the difference. `slope` is everything that multiplies the difference (c·w, upstream / N).
    """
    other, cond, uncond = other.double().abs(), cond.double().abs(), uncond.double().abs()
    return 4 * epsilon * (other + uncond + abs(guidance_scale) * (cond + uncond)) * slope.double().abs()
