"""Tolerances of the kernels' contracts, and comparisons with a float64 oracle, for users' own kernels too.

A gradient is computed in float32 (float64 for float64 inputs) and rounded once into its dtype. So a half-precision
gradient is measured in units in the last place of the oracle's value, element by element, and a wider one by its
relative L2 error. An oracle is any float64 computation from the same, already rounded, inputs.
"""

from __future__ import annotations

import torch
from torch import Tensor

GRADIENT_ULPS = 1.0
"""Half-precision gradients, where the upstream gradient is 1."""
SCALED_GRADIENT_ULPS = 2.0
"""Half-precision gradients, where it is not: one more rounding."""
RELATIVE_L2 = {torch.float32: 1e-6, torch.float64: 1e-13}
"""Full-precision gradients."""
NORMALIZED_RELATIVE_L2 = 1e-6
"""Full-precision gradients behind a `RatioNormalizer`, whose state is float32."""
WEIGHT_RELATIVE = 1e-6
"""f-divergence weights, wherever the true value is a normal float32 number."""
LOSS_RELATIVE = {torch.float32: 1e-6, torch.float64: 1e-13}
"""The loss, by its dtype."""

_HALF = (torch.float16, torch.bfloat16)


def ulp(value: Tensor, dtype: torch.dtype) -> Tensor:
    """The spacing of `dtype`'s numbers at the binade of each value, in float64; at zero, its smallest positive number.

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

    Equal values, NaN beside NaN, and an infinity where the oracle rounds to that infinity have error 0.
    """
    rounded = expected.double().to(actual.dtype)
    same = (actual == rounded) | (actual.isnan() & rounded.isnan())
    error = (actual.double() - expected.double()).abs() / ulp(rounded.double(), actual.dtype)
    return torch.where(same, torch.zeros_like(error), error.nan_to_num(nan=torch.inf, posinf=torch.inf))


def relative_l2(actual: Tensor, expected: Tensor) -> float:
    """‖actual - expected‖₂ / ‖expected‖₂ in float64 over the finite elements; infinity where the others differ in kind.

    An oracle of zero demands exact zeros.
    """
    actual, expected = actual.double(), expected.double()
    finite = torch.isfinite(expected)
    same_kind = torch.equal(torch.isfinite(actual), finite) and torch.equal(
        actual[~finite].nan_to_num(nan=3.0, posinf=2.0, neginf=1.0),
        expected[~finite].nan_to_num(nan=3.0, posinf=2.0, neginf=1.0),
    )
    if not same_kind:
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
    """Hold a gradient to the float64 oracle's.

    Args:
        actual: the kernel's gradient, of any floating-point dtype.
        expected: the oracle's, in float64, not rounded.
        upstream_is_one: whether the gradient was scaled after it was first computed.
        normalized: whether a `RatioNormalizer` took part.
        bound: an absolute error that every element may have beside one rounding (see `guidance_bound`).

    Raises:
        AssertionError: shapes differ, or the error is above the tolerance; the figure is in the message.
    """
    if actual.shape != expected.shape:
        raise AssertionError(f"gradient: expected shape {tuple(expected.shape)}, got {tuple(actual.shape)}")
    expected = expected.double()
    ulps = GRADIENT_ULPS if upstream_is_one else SCALED_GRADIENT_ULPS
    if bound is not None:
        # float64's weight comes from the same float64 arithmetic, so there its error is not the last rounding's alone.
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
    """Hold f-divergence weights to the oracle's, where the oracle's is a normal float32 number (or NaN, like ours)."""
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
    """What guidance may cost an element: 4·ε·(|other| + |u| + |g|·(|cond| + |u|))·|slope|.

    Guidance multiplies the rounding error of cond - u by g, however it is associated. `other` is the prediction on the
    other side of the difference, `slope` everything the difference is multiplied by (c·w, upstream / N).
    """
    other, cond, uncond = other.double().abs(), cond.double().abs(), uncond.double().abs()
    return 4 * epsilon * (other + uncond + abs(guidance_scale) * (cond + uncond)) * slope.double().abs()
