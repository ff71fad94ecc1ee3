"""The field's weightings of a denoising loss, as weights of the squared error of the network's own prediction.

Each is a factor λ of the squared error of x0. The error of x0 is c times the prediction's, so the loss has λ·c². σ² and
α² cancel before they are divided by, so that a weight is finite at both ends of a schedule if it has a limit there.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from fdkernels._op.checks import did_you_mean, shown

# λ·σ² of alpha², sigma², sigma_data² and gamma.
WEIGHTINGS: dict[str, Callable[[Any, Any, float, float], Any]] = {
    "x0": lambda a2, s2, d2, gamma: s2,
    "epsilon": lambda a2, s2, d2, gamma: a2,
    "v": lambda a2, s2, d2, gamma: a2 + s2,
    "snr_ratio": lambda a2, s2, d2, gamma: a2 * s2 / (a2 + s2),
    "min_snr": lambda a2, s2, d2, gamma: torch.minimum(a2, gamma * s2),
    "edm": lambda a2, s2, d2, gamma: (s2 + a2 * d2) / d2,
    "trig": lambda a2, s2, d2, gamma: torch.ones_like(s2),
}
# λ·c² of an epsilon prediction, c = -σ/α, where dividing by α² would be 0/0 at α = 0.
_OF_EPSILON: dict[str, Callable[[Any, Any, float, float], Any]] = {
    "epsilon": lambda a2, s2, d2, gamma: torch.ones_like(a2 + s2),
    "snr_ratio": lambda a2, s2, d2, gamma: s2 / (a2 + s2),
    "min_snr": lambda a2, s2, d2, gamma: (gamma * s2 / a2).clamp(max=1.0),
}
# λ itself, where dividing by σ² would be 0/0 at σ = 0.
_OF_SAMPLE: dict[str, Callable[[Any, Any, float, float], Any]] = {
    "x0": lambda a2, s2, d2, gamma: torch.ones_like(a2 + s2),
    "snr_ratio": lambda a2, s2, d2, gamma: a2 / (a2 + s2),
    "min_snr": lambda a2, s2, d2, gamma: (a2 / s2).clamp(max=gamma),
}


def check_weighting(name: Any) -> None:
    if not isinstance(name, str) or name not in WEIGHTINGS:
        raise ValueError(f"weighting: unknown name {shown(name)}{did_you_mean(name, WEIGHTINGS)}")


def weighting_of(name: str, kind: str, alpha: Tensor, sigma: Tensor, sigma_data: float, gamma: float) -> Tensor:
    """λ·c² of levels in float64 that broadcast to each other."""
    a2, s2, d2 = alpha**2, sigma**2, sigma_data**2
    if kind == "epsilon" and name in _OF_EPSILON:
        return _OF_EPSILON[name](a2, s2, d2, gamma)
    of_sigma = WEIGHTINGS[name](a2, s2, d2, gamma)
    if kind == "sample":  # c = 1
        return _OF_SAMPLE[name](a2, s2, d2, gamma) if name in _OF_SAMPLE else of_sigma / s2
    if kind == "epsilon":
        return of_sigma / a2
    return of_sigma * d2 / (s2 + d2) if kind == "edm" else of_sigma
