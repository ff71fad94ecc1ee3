"""Exact results, in float64, that formulas share."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from benchmarks.cases import baselines
from benchmarks.cases.formula import BINS


def exact_weight(v: Any) -> Tensor:
    """h of js divided by its batch mean, for fresh bins and decay 0.9."""
    r = v.logits.detach().double().mean(1).exp().clamp(0.1, 20.0)
    index = (v.t.double() * BINS).floor().long().clamp(0, BINS - 1)
    for b in index.unique():
        here = index == b
        r[here] = r[here] / (0.9 + 0.1 * r[here].mean())
    h = r / (1 + r)
    return h / h.mean()


def exact_gradient(
    x: Tensor, teacher: Tensor, fake: Tensor, h: Tensor | None = None, eps: float = 0.0, mask: Tensor | None = None
) -> Tensor:
    """h (f - τ) / (mean|x - τ| + eps) / N. With a mask, N counts kept elements, and others have no gradient."""
    w = 1 / ((x - teacher).abs().flatten(1).mean(1) + eps)
    gradient = baselines.per_sample(w if h is None else h * w, x) * (fake - teacher)
    return gradient / x.numel() if mask is None else torch.where(mask, gradient, 0) / mask.sum()


def doubles(*tensors: Tensor | None) -> Any:
    return tuple(v.detach().double() for v in tensors if v is not None)
