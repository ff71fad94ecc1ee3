"""Self-Forcing and Causal-Forcing: the DMD loss, and the critic's.

The networks return velocity and x0. The loss takes the velocities: in bfloat16, the rounding of x0 costs most of f - τ.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

import fdkernels as fdk
from fdkernels.integrations import _self_forcing_family as family
from fdkernels.integrations._replacing import Integration

INTEGRATION = Integration("Self-Forcing (guandeh17/Self-Forcing 33593df, thu-ml/Causal-Forcing 1fc7bbc)")
apply, undo, applied, patched = INTEGRATION.apply, INTEGRATION.undo, INTEGRATION.applied, INTEGRATION.patched

INTEGRATION.absorbs("model.dmd", "DMD._compute_kl_grad", "4ef8a3a5ed8f")
family.replace_conversions(INTEGRATION, "utils.wan_wrapper", "real_score", "fake_score")
INTEGRATION.replaces("utils.loss", "FlowPredLoss.__call__", "2eb07782dbe4")(family.critic_loss)


@INTEGRATION.replaces("model.dmd", "DMD.compute_distribution_matching_loss", "d88b93140043")
def compute_distribution_matching_loss(
    self: Any,
    image_or_video: Tensor,
    conditional_dict: dict[str, Any],
    unconditional_dict: dict[str, Any],
    gradient_mask: Tensor | None = None,
    denoised_timestep_from: int = 0,
    denoised_timestep_to: int = 0,
) -> tuple[Tensor, dict[str, Tensor]]:
    with torch.no_grad():
        timestep = family.score_timestep(
            self, image_or_video.shape[:2], denoised_timestep_from, denoised_timestep_to, True
        )
        noisy = family.noised(self, image_or_video, torch.randn_like(image_or_video), timestep)
        scores = family.velocities(
            self, conditional_dict, unconditional_dict, noisy_image_or_video=noisy, timestep=timestep
        )
        sigma = family.common_sigma(self.real_score, self.fake_score, timestep)
    loss, stats = fdk.fused_fdiv_loss(
        image_or_video,
        **scores,
        divergence="rkl",
        scale=fdk.DmdScale(eps=0.0),
        mask=gradient_mask,
        prediction=fdk.Prediction("flow_prediction", noisy, sigma=sigma),
        nonfinite="zero",
        return_stats=True,
    )
    # The trainer's figure is mean|g|: the same for one sample on each rank, a ratio of means for several.
    return loss.double(), {"dmdtrain_gradient_norm": stats.relative_gap, "timestep": timestep}


@INTEGRATION.replaces("model.dmd", "DMD.critic_loss", "69ecc487cf76")
def critic_loss(
    self: Any,
    image_or_video_shape: Any,
    conditional_dict: dict[str, Any],
    unconditional_dict: dict[str, Any],
    clean_latent: Any,
    initial_latent: Any = None,
) -> Any:
    """The critic's loss of the generator's sample. The trainer converts the critic's velocity to x0 and back."""
    if not family.is_of_velocity(self):
        return NotImplemented
    with torch.no_grad():
        clean, _, from_step, to_step = self._run_generator(
            image_or_video_shape=image_or_video_shape, conditional_dict=conditional_dict, initial_latent=initial_latent
        )
        timestep = family.score_timestep(self, clean.shape[:2], from_step, to_step, True)
        noise = torch.randn_like(clean)
        noisy = family.noised(self, clean, noise, timestep)
    inputs = {"noisy_image_or_video": noisy, "timestep": timestep}
    flow = self.fake_score(conditional_dict=conditional_dict, **inputs)[0]
    return family.velocity_loss(self, flow, clean, noise, timestep), {"critic_timestep": timestep}
