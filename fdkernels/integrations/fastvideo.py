"""FastVideo: the losses of `fastvideo.train` (DMD2, Self-Forcing, streaming long tuning), and x0 of a velocity.

The loss takes the velocities of `predict_noise`: in bfloat16, the rounding of x0 costs most of f - τ.
"""

from __future__ import annotations

import importlib
from typing import Any

import torch
from torch import Tensor

import fdkernels as fdk
from fdkernels.integrations._replacing import Integration
from fdkernels.integrations._self_forcing_family import common_sigma, pred_noise_to_pred_video

INTEGRATION = Integration("FastVideo (hao-ai-lab/FastVideo 2f3d407)")
apply, undo, applied, patched = INTEGRATION.apply, INTEGRATION.undo, INTEGRATION.applied, INTEGRATION.patched

METHODS = "fastvideo.train.methods.distribution_matching"
OVER_BATCH = fdk.DmdScale(eps=0.0, over="batch")
INTEGRATION.absorbs("fastvideo.train.models.base", "ModelBase.predict_x0", "aed1acba42dd", of=("teacher", "critic"))
INTEGRATION.absorbs(f"{METHODS}.self_forcing", "SelfForcingMethod._predict_x0_with_scheduler", "c4f5f5491890")
INTEGRATION.absorbs(f"{METHODS}.streaming_long_tuning", "StreamingLongTuningMethod._masked_mean", "3d06933df8e7")

INTEGRATION.replaces("fastvideo.models.utils", "pred_noise_to_pred_video", "70a6baf1d8bd")(pred_noise_to_pred_video)


def loss_of(self: Any, x: Tensor, batch: Any, timestep: Tensor, add_noise: Any, schedulers: Any, **options: Any) -> Any:
    def velocity(model: Any, conditional: bool) -> Any:
        inputs = {"conditional": conditional, "cfg_uncond": self._cfg_uncond, "attn_kind": "dense"}
        return model.predict_noise(noisy, timestep, batch, **inputs)

    guided = options.pop("guided", True)
    config, name = importlib.import_module("fastvideo.train.utils.config"), "real_score_guidance_scale"
    guidance = config.get_optional_float(self.method_config, name, where=f"method.{name}")
    with torch.no_grad():
        noise = torch.randn(x.shape, device=x.device, dtype=x.dtype, generator=self.cuda_generator)
        noisy = add_noise(x, noise, timestep)
        fake, teacher = velocity(self.critic, True), velocity(self.teacher, True)
        teacher_uncond = velocity(self.teacher, False) if guided else None
        sigma = common_sigma(schedulers[0], schedulers[1], timestep).expand(len(x))
    return fdk.fused_fdiv_loss(
        x,
        teacher,
        fake,
        divergence="rkl",
        teacher_uncond=teacher_uncond,
        guidance_scale=guidance if guided and guidance is not None else 1.0,
        prediction=fdk.Prediction("flow_prediction", noisy, sigma=sigma),
        nonfinite="zero",
        **options,
    )


@INTEGRATION.replaces(f"{METHODS}.dmd2", "DMD2Method._dmd_loss", "d09d13225702")
def dmd2_loss(self: Any, generator_pred_x0: Tensor, batch: Any) -> Any:
    schedulers = self.teacher.noise_scheduler, self.critic.noise_scheduler
    timestep = self._sample_score_timestep(generator_pred_x0.device)
    return loss_of(self, generator_pred_x0, batch, timestep, self.student.add_noise, schedulers, scale=OVER_BATCH)


@INTEGRATION.replaces(f"{METHODS}.self_forcing", "SelfForcingMethod._dmd_loss", "74a8bd7ae913")
def self_forcing_loss(self: Any, generator_pred_x0: Tensor, batch: Any) -> Any:
    steps, device = int(self.student.num_train_timesteps), generator_pred_x0.device
    timestep = torch.randint(0, steps, [1], device=device, dtype=torch.long, generator=self.cuda_generator)
    timestep, schedulers = self.student.shift_and_clamp_timestep(timestep), (self._sf_scheduler,) * 2
    return loss_of(self, generator_pred_x0, batch, timestep, self._sf_add_noise, schedulers, scale=OVER_BATCH)


@INTEGRATION.replaces(f"{METHODS}.streaming_long_tuning", "StreamingLongTuningMethod._dmd_loss_masked", "69eda0610623")
def streaming_loss(self: Any, generator_pred_x0: Tensor, batch: Any, *, chunk_mask: Tensor | None) -> Any:
    timestep = self._sample_score_timestep(len(generator_pred_x0), device=generator_pred_x0.device)
    schedulers, mask = (self._sf_scheduler,) * 2, None if chunk_mask is None else chunk_mask != 0
    options = {"guided": self._real_score_cfg, "scale": fdk.DmdScale(eps=0.0, floor=1e-6), "mask": mask}
    return loss_of(self, generator_pred_x0, batch, timestep, self._sf_add_noise, schedulers, **options)
