"""A flow's x0, as the trainers convert it."""

from __future__ import annotations

import torch
from torch import Tensor

import fdkernels as fdk


def to_x0(flow: Tensor, noisy: Tensor, sigma: Tensor) -> Tensor:
    """x0 = x_t - σ·flow in flow's dtype, in one pass; σ has leading dimensions of the flow.

    Where x_t needs a gradient or is broadcast, in PyTorch and float64, as in the trainers.
    """
    if (noisy.requires_grad and torch.is_grad_enabled()) or noisy.shape != flow.shape:
        sigma = sigma.double().view(*sigma.shape, *(1,) * (noisy.dim() - sigma.dim()))
        return (noisy.double() - sigma * flow.double()).to(flow.dtype)
    return fdk.Prediction.affine(noisy.detach(), 1.0, -sigma).to_x0(flow)
