"""The dtype of a trainer's loss, which adapters keep."""

from __future__ import annotations

import torch
from torch import Tensor


def in_trainers_dtype(loss: Tensor, *inputs: Tensor) -> Tensor:
    """The loss as `F.mse_loss` or a sum of softplus of these inputs gives it: float32 under autocast, else promoted.

    A loss that is rounded to float16 under autocast would overflow when a gradient scaler multiplies it.
    """
    dtype = inputs[0].dtype
    for each in inputs[1:]:
        dtype = torch.promote_types(dtype, each.dtype)
    if torch.is_autocast_enabled(loss.device.type) and dtype in (torch.float16, torch.bfloat16):
        dtype = torch.float32
    return loss.to(dtype)
