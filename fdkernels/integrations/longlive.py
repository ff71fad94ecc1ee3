"""LongLive: the DMD loss, from velocities as in `self_forcing` but without its print in each step, and the critic's."""

from __future__ import annotations

import importlib
from typing import Any

import torch
from torch import Tensor

import fdkernels as fdk
from fdkernels.integrations import _longlive_critic
from fdkernels.integrations import _self_forcing_family as family
from fdkernels.integrations._flow import spread
from fdkernels.integrations._replacing import Integration

INTEGRATION = Integration("LongLive (NVlabs/LongLive 7860ad9)")
apply, undo, applied, patched = INTEGRATION.apply, INTEGRATION.undo, INTEGRATION.applied, INTEGRATION.patched

INTEGRATION.absorbs("model.dmd", "DMD._compute_kl_grad", "88c5c23f9c60")
family.replace_conversions(INTEGRATION, "utils.wan_5b_wrapper", "real_score", "fake_score")
INTEGRATION.replaces("utils.loss", "FlowPredLoss.__call__", "11eb4255fd18")(family.masked_critic_loss)
INTEGRATION.replaces("model.dmd", "DMD.critic_loss", "d706c9941c6e")(_longlive_critic.critic_loss)
INTEGRATION.absorbs("utils.i2v_conditioning", "_i2v_loss_mask_like", "ec2e872a1006")


@INTEGRATION.replaces("model.dmd", "DMD.compute_distribution_matching_loss", "7d9cd6b6f580")
def compute_distribution_matching_loss(
    self: Any,
    image_or_video: Tensor,
    conditional_dict: dict[str, Any],
    unconditional_dict: dict[str, Any],
    gradient_mask: Tensor | None = None,
    denoised_timestep_from: int = 0,
    denoised_timestep_to: int = 0,
    clean_x: Tensor | None = None,
    initial_latent: Tensor | None = None,
) -> tuple[Tensor, dict[str, Tensor]]:
    i2v = importlib.import_module("utils.i2v_conditioning")
    context = i2v._get_i2v_context_frames(image_or_video, initial_latent)
    student = i2v._overwrite_i2v_context(image_or_video, initial_latent, context)
    clean_x = None if clean_x is None else i2v._overwrite_i2v_context(clean_x, initial_latent, context)
    frames, is_i2v = student.shape[:2], getattr(self.args, "i2v", False)
    with torch.no_grad():
        timestep = family.score_timestep(self, frames, denoised_timestep_from, denoised_timestep_to, not is_i2v)
        timestep = i2v._zero_i2v_context_timestep(timestep, context)
        noise = torch.randn_like(image_or_video)
        noise[:, :context] = 0
        noisy = i2v._overwrite_i2v_context(family.noised(self, student, noise, timestep), initial_latent, context)
        inputs = {"noisy_image_or_video": noisy, "timestep": timestep, "clean_x": clean_x}
        scores = family.velocities(self, conditional_dict, unconditional_dict, **inputs)
        sigma = family.common_sigma(self.real_score, self.fake_score, timestep)
        mask, count = None if gradient_mask is None else spread(gradient_mask, student), None
        if context > 0:
            kept = (torch.arange(frames[1], device=student.device) >= context).view(1, -1, 1, 1, 1)
            mask = kept if mask is None else mask & kept

    def part(frames: slice, scale: fdk.DmdScale | None) -> Any:
        cut: dict[str, Any] = {name: v[:, frames] if isinstance(v, Tensor) else v for name, v in scores.items()}
        return fdk.fused_fdiv_loss(
            student[:, frames],
            **cut,
            divergence="rkl",
            scale=scale,
            mask=None if mask is None else mask[:, frames],
            prediction=fdk.Prediction("flow_prediction", noisy[:, frames], sigma=sigma[:, frames]),
            nonfinite="zero",
            count=count,
            return_stats=True,
        )

    blocks = fdk.DmdScale(eps=0.0, over=self.num_frame_per_block)
    if self.independent_first_frame and not is_i2v and (frames[1] - 1) % self.num_frame_per_block == 0:
        count = student.numel() if mask is None else mask.expand_as(student).sum()
        first, (rest, stats) = part(slice(0, 1), None)[0], part(slice(1, None), blocks)
        loss = first + rest
    else:
        loss, stats = part(slice(None), blocks)
    return loss.double(), {"dmdtrain_gradient_norm": stats.relative_gap, "timestep": timestep}
