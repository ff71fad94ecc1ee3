"""DiffSynth-Studio: the losses of its DMD2."""

from __future__ import annotations

from torch import Tensor

import fdkernels as fdk
from fdkernels.integrations import _fastgen_family as family
from fdkernels.integrations._replacing import Integration

INTEGRATION = Integration("DiffSynth-Studio (modelscope/DiffSynth-Studio fed7b18)")
apply, undo, applied, patched = INTEGRATION.apply, INTEGRATION.undo, INTEGRATION.applied, INTEGRATION.patched

LOSSES = "diffsynth.diffusion.dmd2"

INTEGRATION.replaces(LOSSES, "_gan_loss_generator", "0d2c2d006f80")(family.gan_loss_generator)
INTEGRATION.replaces(LOSSES, "_gan_loss_discriminator", "0767e33549ee")(family.gan_loss_discriminator)


@INTEGRATION.replaces(LOSSES, "_variational_score_distillation_loss", "171855e8bb02")
def variational_score_distillation_loss(gen_data: Tensor, teacher_x0: Tensor, fake_score_x0: Tensor) -> Tensor:
    loss: Tensor = fdk.fused_fdiv_loss(gen_data, teacher_x0, fake_score_x0, divergence="rkl")
    return loss
