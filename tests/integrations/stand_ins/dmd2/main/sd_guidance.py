"""DMD2's loss for Stable Diffusion by its parameters and formula, with the roundings that its dtypes imply."""

import torch
import torch.nn.functional as F
from main.utils import get_x0_from_noise
from torch import nn


def predict_noise(
    unet, noisy_latents, text_embeddings, uncond_embedding, timesteps, guidance_scale=1.0, unet_added_conditions=None,
    uncond_unet_added_conditions=None,
):  # fmt: skip
    if guidance_scale <= 1:
        return unet(noisy_latents, timesteps, text_embeddings, added_cond_kwargs=unet_added_conditions).sample
    added = None
    if unet_added_conditions is not None:
        added = {k: torch.cat([uncond_unet_added_conditions[k], v]) for k, v in unet_added_conditions.items()}
    twice = torch.cat([noisy_latents] * 2), torch.cat([timesteps] * 2)
    both = unet(*twice, torch.cat([uncond_embedding, text_embeddings]), added_cond_kwargs=added).sample
    uncond, cond = both.chunk(2)
    return uncond + guidance_scale * (cond - uncond)


class SDGuidance(nn.Module):
    def compute_distribution_matching_loss(
        self, latents, text_embedding, uncond_embedding, unet_added_conditions, uncond_unet_added_conditions
    ):
        with torch.no_grad():
            high = min(self.max_step + 1, self.num_train_timesteps)
            t = torch.randint(self.min_step, high, [len(latents)], device=latents.device, dtype=torch.long)
            noisy = self.scheduler.add_noise(latents, torch.randn_like(latents), t)
            given = [text_embedding, uncond_embedding]
            added = [unet_added_conditions, uncond_unet_added_conditions]
            fake = predict_noise(self.fake_unet, noisy, *given, t, self.fake_guidance_scale, *added)
            half = torch.bfloat16 if self.use_fp16 else latents.dtype
            if self.use_fp16 and self.sdxl:
                added = [{k: v.to(half) for k, v in each.items()} for each in added]
            real = predict_noise(
                self.real_unet, noisy.to(half), *(each.to(half) for each in given), t, self.real_guidance_scale, *added
            )
            fake, real = (
                get_x0_from_noise(noisy.double(), each.double(), self.alphas_cumprod.double(), t)
                for each in (fake, real)
            )
            p_real, p_fake = latents - real, latents - fake
            g = torch.nan_to_num((p_real - p_fake) / p_real.abs().mean((1, 2, 3), keepdim=True))
        return {"loss_dm": 0.5 * F.mse_loss(latents.float(), (latents - g).detach().float())}, {
            "dmtrain_noisy_latents": noisy.float(),
            "dmtrain_pred_real_image": real.float(),
            "dmtrain_pred_fake_image": fake.float(),
            "dmtrain_grad": g.float(),
            "dmtrain_gradient_norm": g.norm().item(),
        }
