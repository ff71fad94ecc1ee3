"""A flow's x0 and back. NotImplemented stands for what the trainers' own conversions do and these do not."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

import fdkernels as fdk


def to_x0(flow: Tensor, noisy: Tensor, sigma: Tensor) -> Any:
    """x0 = x_t - σ·flow in flow's dtype, in one pass; σ has leading dimensions of the flow."""
    return _of(noisy, sigma).to_x0(flow) if _is_served(flow, noisy, sigma) else NotImplemented


def from_x0(x0: Tensor, noisy: Tensor, sigma: Tensor) -> Any:
    """flow = (x_t - x0) / σ in x0's dtype, the inverse of `to_x0`."""
    return _of(noisy, sigma).from_x0(x0) if _is_served(x0, noisy, sigma) else NotImplemented


def spread(v: Tensor, like: Tensor) -> Tensor:
    """v of leading dimensions, as a tensor of the other's rank."""
    return v.view(*v.shape, *(1,) * (like.dim() - v.dim()))


def _of(noisy: Tensor, sigma: Tensor) -> fdk.Prediction:
    return fdk.Prediction.affine(noisy.detach(), 1.0, -sigma)


def _is_served(prediction: Tensor, noisy: Tensor, sigma: Tensor) -> bool:
    """x_t and σ get no gradient here, and nothing is broadcast."""
    needs_gradient = (noisy.requires_grad or sigma.requires_grad) and torch.is_grad_enabled()
    return noisy.shape == prediction.shape and not needs_gradient
