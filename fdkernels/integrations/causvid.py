"""CausVid: the DMD loss, and the critic's. Its networks return x0 alone, so the rounding of a bfloat16 x0 remains."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

import fdkernels as fdk
from fdkernels.integrations import _self_forcing_family as family
from fdkernels.integrations._replacing import Integration

INTEGRATION = Integration("CausVid (tianweiy/CausVid ca21150)")
apply, undo, applied, patched = INTEGRATION.apply, INTEGRATION.undo, INTEGRATION.applied, INTEGRATION.patched

INTEGRATION.absorbs("causvid.dmd", "DMD._compute_kl_grad", "d0e67f2204d3")
INTEGRATION.replaces("causvid.loss", "FlowPredLoss.__call__", "2eb07782dbe4")(family.critic_loss)
family.replace_conversions(INTEGRATION, "causvid.models.wan.wan_wrapper")


@INTEGRATION.replaces("causvid.dmd", "DMD.compute_distribution_matching_loss", "b7ee35684fed")
def compute_distribution_matching_loss(
    self: Any,
    image_or_video: Tensor,
    conditional_dict: dict[str, Any],
    unconditional_dict: dict[str, Any],
    gradient_mask: Tensor | None = None,
) -> tuple[Tensor, dict[str, Tensor]]:
    with torch.no_grad():
        steps, frames = self.num_train_timestep, image_or_video.shape[:2]
        timestep = torch.randint(0, steps, frames, device=self.device, dtype=torch.long)
        timestep = family.shifted(self, self._process_timestep(timestep, type=self.real_task_type))
        noisy = family.noised(self, image_or_video, torch.randn_like(image_or_video), timestep)
        inputs = {"noisy_image_or_video": noisy, "timestep": timestep}
        fake = self.fake_score(conditional_dict=conditional_dict, **inputs)
        teacher = self.real_score(conditional_dict=conditional_dict, **inputs)
        teacher_uncond = self.real_score(conditional_dict=unconditional_dict, **inputs)
        guided = torch.lerp(teacher_uncond, teacher, 1 + self.real_guidance_scale)  # for CausVid's pictures alone
    loss, stats = fdk.fused_fdiv_loss(
        image_or_video,
        teacher,
        fake,
        divergence="rkl",
        scale=fdk.DmdScale(eps=0.0),
        mask=gradient_mask,
        teacher_uncond=teacher_uncond,
        guidance_scale=1 + self.real_guidance_scale,
        nonfinite="zero",
        return_stats=True,
    )
    return loss.double(), {
        "dmdtrain_clean_latent": image_or_video.detach(),
        "dmdtrain_noisy_latent": noisy,
        "dmdtrain_pred_real_image": guided,
        "dmdtrain_pred_fake_image": fake,
        # The trainer's figure is mean|g|: the same for one sample on each rank, a ratio of means for several.
        "dmdtrain_gradient_norm": stats.relative_gap,
        "timestep": timestep,
    }
