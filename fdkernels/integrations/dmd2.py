"""DMD2: the distribution matching loss of its Stable Diffusion recipes, from raw ε, and of its EDM recipe."""

from __future__ import annotations

import importlib
from typing import Any

import torch
from torch import Tensor

import fdkernels as fdk
from fdkernels.integrations._replacing import Integration

INTEGRATION = Integration("DMD2 (tianweiy/DMD2 8d8fa55)", partial=True)
apply, undo, applied, patched = INTEGRATION.apply, INTEGRATION.undo, INTEGRATION.applied, INTEGRATION.patched

LOSS = "compute_distribution_matching_loss"
INTEGRATION.absorbs("main.utils", "get_x0_from_noise", "0ae1016e694a")


def draw(self: Any, latents: Tensor, *size: int) -> tuple[Tensor, Tensor]:
    last = min(self.max_step + 1, self.num_train_timesteps)
    return torch.randint(self.min_step, last, size, device=latents.device), torch.randn_like(latents)


def dm_loss(latents: Tensor, teacher: Tensor, fake: Tensor, prediction: fdk.Prediction | None = None) -> Any:
    loss, stats = fdk.fused_fdiv_loss(
        latents,
        teacher,
        fake,
        divergence="rkl",
        scale=fdk.DmdScale(eps=0.0),
        prediction=prediction,
        nonfinite="zero",
        return_stats=True,
    )
    return {"loss_dm": loss}, stats.grad_norm * latents.numel()  # ‖g‖


@INTEGRATION.replaces("main.sd_guidance", f"SDGuidance.{LOSS}", "566e5baf40bf")
def sd_loss(
    self: Any,
    latents: Tensor,
    text_embedding: Tensor,
    uncond_embedding: Tensor,
    unet_added_conditions: Any,
    uncond_unet_added_conditions: Any,
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    predict_noise = importlib.import_module("main.sd_guidance").predict_noise
    conditions = [unet_added_conditions, uncond_unet_added_conditions]
    with torch.no_grad():
        t, noise = draw(self, latents, len(latents))
        noisy = self.scheduler.add_noise(latents, noise, t)
        inputs = [noisy, text_embedding, uncond_embedding]
        fake = predict_noise(self.fake_unet, *inputs, t, self.fake_guidance_scale, *conditions)
        if self.use_fp16:
            inputs = [each.to(torch.bfloat16) for each in inputs]
            if self.sdxl:
                conditions = [{name: v.to(torch.bfloat16) for name, v in each.items()} for each in conditions]
        teacher = predict_noise(self.real_unet, *inputs, t, self.real_guidance_scale, *conditions)
        level = self.alphas_cumprod.double()[t]
        prediction = fdk.Prediction("epsilon", noisy, alpha=level.sqrt(), sigma=(1 - level).sqrt())
        x0 = [prediction.to_x0(each.float()) for each in (teacher, fake)]  # for DMD2's figures and pictures alone
    loss, norm = dm_loss(latents, teacher, fake, prediction)
    names = ("noisy_latents", "pred_real_image", "pred_fake_image", "gradient_norm")
    return loss, {f"dmtrain_{name}": v for name, v in zip(names, (noisy.float(), *x0, norm), strict=True)}


@INTEGRATION.replaces("main.edm.edm_guidance", f"EDMGuidance.{LOSS}", "39aed4112a10")
def edm_loss(self: Any, latents: Tensor, labels: Tensor) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    with torch.no_grad():
        t, noise = draw(self, latents, len(latents), 1, 1, 1)
        noisy = latents + self.karras_sigmas[t] * noise
        teacher, fake = (unet(noisy, self.karras_sigmas[t], labels) for unet in (self.real_unet, self.fake_unet))
        distance = (latents - teacher).abs().mean((1, 2, 3), keepdim=True)
        g = (fake - teacher).div_(distance).nan_to_num_()  # for DMD2's figures and pictures alone
    loss, norm = dm_loss(latents, teacher, fake)
    names = ("noisy_latents", "pred_real_image", "pred_fake_image", "grad", "gradient_norm", "timesteps")
    return loss, {f"dmtrain_{name}": v for name, v in zip(names, (noisy, teacher, fake, g, norm, t), strict=True)}
