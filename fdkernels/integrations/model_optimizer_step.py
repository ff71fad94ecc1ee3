"""Model-Optimizer: the student step of its DMD2 pipeline, from raw predictions; use it beside `model_optimizer`.

Teacher and fake score stay flows, which one call converts, guides and subtracts: the rounding of x0 costs a bfloat16
gradient most. `vsd_loss` is then not called: of the trainer's own tests, the one that watches that function fails.
"""

from __future__ import annotations

import sys
from typing import Any

import torch
from torch import Tensor

import fdkernels as fdk
from fdkernels.integrations._fastgen_family import in_trainers_dtype
from fdkernels.integrations._replacing import Integration

INTEGRATION = Integration("Model-Optimizer (NVIDIA/Model-Optimizer a2fbac7)")
apply, undo, applied, patched = INTEGRATION.apply, INTEGRATION.undo, INTEGRATION.applied, INTEGRATION.patched

DMD, FLOW = "modelopt.torch.fastgen.methods.dmd", "modelopt.torch.fastgen.flow_matching"
INTEGRATION.absorbs(DMD, "DMDPipeline._predict_x0", "210ead962099")
INTEGRATION.absorbs(DMD, "DMDPipeline._raw_to_x0", "925ac270564d")
INTEGRATION.absorbs(FLOW, "add_noise", "094faa35a693")
INTEGRATION.absorbs(FLOW, "pred_x0_from_flow", "998ffb6cdb56")
INTEGRATION.absorbs(FLOW, "pred_noise_to_pred_x0", "6597e15defa0")
INTEGRATION.absorbs("modelopt.torch.fastgen.utils", "classifier_free_guidance", "2d68bc4535df")


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
    scale = config.guidance_scale if guidance_scale is None else guidance_scale
    if scale is not None and negative_encoder_hidden_states is None:
        raise ValueError("guidance_scale: expected negative_encoder_hidden_states beside it, got None")
    text = {**model_kwargs, "encoder_hidden_states": encoder_hidden_states}
    is_gan = self.discriminator is not None and config.gan_loss_weight_gen > 0
    x = self._predict_x0(self.student, *self._build_student_input(latents, noise, **text), **text)
    t = self.sample_timesteps(len(latents), device=latents.device, dtype=torch.float32)
    noisy = fdk.add_noise(x, None, t, torch.randn_like(latents))

    with torch.no_grad():
        fake = self._call_model(self.fake_score, noisy, t, **text)
    with torch.set_grad_enabled(is_gan and torch.is_grad_enabled()):
        teacher = self._call_model(self.teacher, noisy, t, **text)
    features, uncond = module._drain_if_hooked(self.teacher), None
    if is_gan:
        features = module._require_hooked(features, which="student-fake")

    if scale is not None:
        left_out = ("txt_seq_lens", "encoder_hidden_states_mask")
        negative = {key: value for key, value in model_kwargs.items() if key not in left_out}
        if negative_encoder_hidden_states_mask is not None:
            negative["encoder_hidden_states_mask"] = negative_encoder_hidden_states_mask
        with torch.no_grad():
            uncond = self._call_model(self.teacher, noisy, t, negative_encoder_hidden_states, **negative)
        module._drain_if_hooked(self.teacher)

    alpha, is_x0 = (1 - t).clamp_min(1e-6) if config.pred_type == "eps" else 1.0, config.pred_type == "x0"
    prediction = None if is_x0 else fdk.Prediction.affine(noisy.detach(), 1 / alpha, -t / alpha)
    vsd = fdk.fused_fdiv_loss(
        x, teacher, fake, divergence="rkl", prediction=prediction, teacher_uncond=uncond, guidance_scale=scale
    )
    vsd = in_trainers_dtype(vsd, x, *([teacher, fake] if is_x0 else []))
    if not is_gan:
        return {"vsd": vsd, "total": vsd}
    gan_gen = module.gan_gen_loss(self.discriminator(features))
    return {"vsd": vsd, "gan_gen": gan_gen, "total": vsd + config.gan_loss_weight_gen * gan_gen}
