"""Model-Optimizer: the student step of its DMD2 pipeline, from raw predictions; use it beside `model_optimizer`.

Teacher and fake score stay flows: one call converts, guides and subtracts them, without float64 copies, and without the
rounding of x0, which costs a bfloat16 gradient more than anything else. `vsd_loss` is then not called: of the trainer's
own tests, the one that watches that function fails.
"""

from __future__ import annotations

import sys
from typing import Any

import torch
from torch import Tensor

import fdkernels as fdk
from fdkernels.integrations._replacing import Integration

INTEGRATION = Integration("Model-Optimizer (NVIDIA/Model-Optimizer a2fbac7)")
apply, undo, applied, patched = INTEGRATION.apply, INTEGRATION.undo, INTEGRATION.applied, INTEGRATION.patched

DMD = "modelopt.torch.fastgen.methods.dmd"


@INTEGRATION.replaces(DMD, "DMDPipeline.compute_student_loss", "edb1bfb1d662")
def compute_student_loss(
    self: Any,
    latents: Tensor,
    noise: Tensor,
    encoder_hidden_states: Tensor | None = None,
    *,
    negative_encoder_hidden_states: Tensor | None = None,
    negative_encoder_hidden_states_mask: Tensor | None = None,
    guidance_scale: float | None = None,
    **model_kwargs: Any,
) -> dict[str, Tensor]:
    module, config = sys.modules[DMD], self.config
    text = {**model_kwargs, "encoder_hidden_states": encoder_hidden_states}
    is_gan = self.discriminator is not None and config.gan_loss_weight_gen > 0
    x = self._predict_x0(self.student, *self._build_student_input(latents, noise, **text), **text)
    t = self.sample_timesteps(len(latents), device=latents.device, dtype=torch.float32)
    noisy = fdk.add_noise(x, None, t, torch.randn_like(latents))

    with torch.no_grad():
        fake = self._call_model(self.fake_score, noisy, t, **text)
    with torch.set_grad_enabled(is_gan and torch.is_grad_enabled()):
        teacher = self._call_model(self.teacher, noisy, t, **text)
    features = module._drain_if_hooked(self.teacher)
    if is_gan:
        features = module._require_hooked(features, which="student-fake")

    scale = config.guidance_scale if guidance_scale is None else guidance_scale
    uncond = None
    if scale is not None:
        if negative_encoder_hidden_states is None:
            raise ValueError("guidance_scale: expected negative_encoder_hidden_states beside it, got None")
        left_out = ("txt_seq_lens", "encoder_hidden_states_mask")
        negative = {key: value for key, value in model_kwargs.items() if key not in left_out}
        if negative_encoder_hidden_states_mask is not None:
            negative["encoder_hidden_states_mask"] = negative_encoder_hidden_states_mask
        with torch.no_grad():
            uncond = self._call_model(self.teacher, noisy, t, negative_encoder_hidden_states, **negative)
        module._drain_if_hooked(self.teacher)

    kind = {"x0": "sample", "eps": "epsilon", "flow": "flow_prediction", "v": "flow_prediction"}[config.pred_type]
    prediction = fdk.Prediction(kind, noisy.detach(), alpha=1 - t, sigma=t) if kind != "sample" else None
    losses = {
        "vsd": fdk.fused_fdiv_loss(
            x, teacher, fake, divergence="rkl", prediction=prediction, teacher_uncond=uncond, guidance_scale=scale
        )
    }
    losses["total"] = losses["vsd"]
    if is_gan:
        losses["gan_gen"] = module.gan_gen_loss(self.discriminator(features))
        losses["total"] = losses["vsd"] + config.gan_loss_weight_gen * losses["gan_gen"]
    return losses
