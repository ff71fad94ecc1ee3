"""A flow's x0 and back, as the trainers convert it."""

from __future__ import annotations

import torch
from torch import Tensor

import fdkernels as fdk


def to_x0(flow: Tensor, noisy: Tensor, sigma: Tensor) -> Tensor:
    """x0 = x_t - σ·flow in flow's dtype, in one pass; σ has leading dimensions of the flow.

    Where x_t or σ needs a gradient, or x_t is broadcast, in PyTorch and float64, as in the trainers.
    """
    if _is_constant(noisy, sigma, flow):
        return fdk.Prediction.affine(noisy.detach(), 1.0, -sigma).to_x0(flow)
    return (noisy.double() - spread(sigma, noisy).double() * flow.double()).to(flow.dtype)


def from_x0(x0: Tensor, noisy: Tensor, sigma: Tensor) -> Tensor:
    """flow = (x_t - x0) / σ in x0's dtype, the inverse of `to_x0`."""
    if _is_constant(noisy, sigma, x0):
        return fdk.Prediction.affine(noisy.detach(), 1.0, -sigma).from_x0(x0)
    return ((noisy.double() - x0.double()) / spread(sigma, noisy).double()).to(x0.dtype)


def spread(v: Tensor, like: Tensor) -> Tensor:
    """v of leading dimensions, as a tensor of the other's rank."""
    return v.view(*v.shape, *(1,) * (like.dim() - v.dim()))


def _is_constant(noisy: Tensor, sigma: Tensor, other: Tensor) -> bool:
    needs_gradient = (noisy.requires_grad or sigma.requires_grad) and torch.is_grad_enabled()
    return noisy.shape == other.shape and not needs_gradient
