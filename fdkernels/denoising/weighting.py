"""The field's weightings of a denoising loss, as weights of the squared error of the network's own prediction.

Each is a factor λ of the squared error of x0. The error of x0 is c times the prediction's, so the loss has λ·c².
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from fdkernels._op.checks import check_number, did_you_mean, shown
from fdkernels.prediction import KINDS

# λ of (alpha, sigma, sigma_data, gamma), with SNR = alpha² / sigma².
WEIGHTINGS: dict[str, Callable[[Any, Any, float, float], Any]] = {
    "x0": lambda alpha, sigma, data, gamma: torch.ones_like(alpha * sigma),
    "epsilon": lambda alpha, sigma, data, gamma: (alpha / sigma) ** 2,
    "v": lambda alpha, sigma, data, gamma: (alpha / sigma) ** 2 + 1,
    "snr_ratio": lambda alpha, sigma, data, gamma: alpha**2 / (alpha**2 + sigma**2),
    "min_snr": lambda alpha, sigma, data, gamma: ((alpha / sigma) ** 2).clamp(max=gamma),
    "edm": lambda alpha, sigma, data, gamma: (sigma**2 + data**2) / (sigma * data) ** 2,
    "trig": lambda alpha, sigma, data, gamma: sigma**-2 + 0 * alpha,
}


def weighting_of(
    name: Any, kind: str, alpha: float | Tensor, sigma: float | Tensor, sigma_data: float, gamma: float
) -> Tensor:
    """λ·c² in float64, with the levels' shape."""
    if not isinstance(name, str) or name not in WEIGHTINGS:
        raise ValueError(f"weighting: unknown name {shown(name)}{did_you_mean(name, WEIGHTINGS)}")
    if check_number("snr_gamma", gamma) <= 0:
        raise ValueError(f"snr_gamma: expected a positive number, got {shown(gamma)}")
    device = next((v.device for v in (alpha, sigma) if isinstance(v, Tensor)), torch.device("cpu"))
    a, s = (torch.as_tensor(v, dtype=torch.float64, device=device) for v in (alpha, sigma))
    c = KINDS[kind].coefficients(a, s, sigma_data)[1]
    return WEIGHTINGS[name](a, s, sigma_data, gamma) * c**2
