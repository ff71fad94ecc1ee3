"""The losses of FastGen and of the trainers that follow it, in the dtype that these trainers give them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

import fdkernels as fdk

TARGETS: dict[str, Any] = {"x0": (1.0, 0.0), "eps": (0.0, 1.0), "flow": (-1.0, 1.0), "v": None}


def in_trainers_dtype(loss: Tensor, *inputs: Tensor) -> Tensor:
    """The loss as `F.mse_loss` or a sum of softplus of these inputs gives it: float32 under autocast, else promoted.

    A loss that is rounded to float16 under autocast would overflow when a gradient scaler multiplies it.
    """
    dtype = inputs[0].dtype
    for each in inputs[1:]:
        dtype = torch.promote_types(dtype, each.dtype)
    device = loss.device.type
    is_autocast = torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device)
    if is_autocast and dtype in (torch.float16, torch.bfloat16):
        dtype = torch.float32
    return loss.to(dtype)


def variational_score_distillation_loss(
    gen_data: Tensor, teacher_x0: Tensor, fake_score_x0: Tensor, additional_scale: Tensor | None = None
) -> Tensor:
    loss = fdk.fused_fdiv_loss(gen_data, teacher_x0, fake_score_x0, divergence="rkl", weight=additional_scale)
    return in_trainers_dtype(loss, gen_data, teacher_x0, fake_score_x0)


def gan_loss_generator(fake_logits: Tensor) -> Tensor:
    return in_trainers_dtype(fdk.generator_loss(fake_logits), fake_logits)


def gan_loss_discriminator(real_logits: Tensor, fake_logits: Tensor) -> Tensor:
    return in_trainers_dtype(fdk.discriminator_loss(fake_logits, real_logits), fake_logits, real_logits)


def denoising_loss(pred_type: str, pred: Tensor, x0: Any, eps: Any, of_v: Callable[[], tuple[Any, Any]]) -> Tensor:
    """The mean square of pred minus its target p·x0 + q·eps; of_v gives (p, q) of a v prediction."""
    if pred_type not in TARGETS:
        raise NotImplementedError(f"pred_type: expected one of {', '.join(TARGETS)}, got {pred_type!r}")
    if (x0 is None and pred_type != "eps") or (eps is None and pred_type != "x0"):
        raise ValueError(f"x0, eps: expected what the target {pred_type} contains, got None")
    target = of_v() if pred_type == "v" else TARGETS[pred_type]
    loss: Tensor = fdk.denoising_loss(pred, eps if x0 is None else x0, x0 if eps is None else eps, target=target)
    return in_trainers_dtype(loss, pred, *(each for each in (x0, eps) if each is not None))
