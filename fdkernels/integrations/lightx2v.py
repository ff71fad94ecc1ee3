"""LightX2V: the loss of its DMD, phased DMD and CDM trainers, and of both parts of `dmd_loss_pair`."""

from __future__ import annotations

from torch import Tensor

import fdkernels as fdk
from fdkernels.integrations._replacing import Integration

INTEGRATION = Integration("LightX2V (ModelTC/LightX2V f8aee98)")
apply, undo, applied, patched = INTEGRATION.apply, INTEGRATION.undo, INTEGRATION.applied, INTEGRATION.patched


@INTEGRATION.replaces("lightx2v_train.trainers.dmd.math", "dmd_loss", "ac5077c2cd10")
def dmd_loss(
    latents: Tensor, x_pred_fake_flow: Tensor, x_pred_teacher: Tensor, norm_clip_min: float | None = None
) -> Tensor:
    floor = 0.0 if norm_clip_min is None else float(norm_clip_min)
    loss: Tensor = fdk.fused_fdiv_loss(
        latents,
        x_pred_teacher,
        x_pred_fake_flow,
        divergence="rkl",
        scale=fdk.DmdScale(eps=0.0, floor=floor),
        nonfinite="zero",
    )
    return loss
