"""The op `denoising` in eager PyTorch: the specification of every other backend. In float64, rounded once.

d_bi = pred_bi - (p·x0_bi + q·noise_bi)
loss = Σ w_bi·d_bi² / N,   ∂loss/∂pred = 2·w_bi·d_bi / N
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from fdkernels._op.floats import float16_power
from fdkernels._op.views import column_or_expanded
from fdkernels.denoising.arguments import DENOISING, DenoisingArguments
from fdkernels.prediction import coefficients


@torch.no_grad()
def denoising(call: DenoisingArguments) -> tuple[Tensor, Tensor, Tensor]:
    """The raw op. Returns (loss, gradient, unscale)."""
    call = DENOISING.traced(call)
    pred = call.pred
    batch, n = pred.shape[0], math.prod(pred.shape[1:])
    shape = (batch, n)
    p, q = coefficients(call, call.prediction, shape, pred.device, target=True)
    difference = pred.double().reshape(shape) - (
        p * call.x0.double().reshape(shape) + q * call.noise.double().reshape(shape)
    )
    weight = column_or_expanded(call.weight, shape)
    direction = difference if weight is None else weight * difference
    energy = (direction * difference).sum(1)
    if call.divisor is None:
        elements = {"mean": batch * n, "none": n, "sum": 1}[call.reduction]
        count = torch.full((), float(elements), dtype=torch.float64, device=pred.device)
    else:
        count = call.divisor.to(pred.device, torch.float64).reshape(())
    count = count.clamp(min=1)  # NaN stays NaN
    loss = (energy if call.reduction == "none" else energy.sum()) / count
    gradient, unscale = pred.new_empty((0,)), pred.new_empty((0,), dtype=torch.float32)
    if call.with_grad:
        power = torch.ones_like(count)
        if pred.dtype == torch.float16:
            power = float16_power(count)
            unscale = power.reciprocal().float().expand(batch if call.reduction == "none" else ()).clone()
        gradient = (2 / count * power * direction).to(pred.dtype).view(pred.shape)
    wide = torch.float64 if pred.dtype == torch.float64 else torch.float32
    return loss.to(wide), gradient, unscale
