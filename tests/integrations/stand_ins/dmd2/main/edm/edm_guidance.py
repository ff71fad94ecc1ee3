"""DMD2's loss for EDM networks by its parameters and formula."""

import torch
import torch.nn.functional as F
from torch import nn


class EDMGuidance(nn.Module):
    def compute_distribution_matching_loss(self, latents, labels):
        with torch.no_grad():
            high = min(self.max_step + 1, self.num_train_timesteps)
            t = torch.randint(self.min_step, high, [len(latents), 1, 1, 1], device=latents.device, dtype=torch.long)
            noise = torch.randn_like(latents)
            sigma = self.karras_sigmas[t]
            noisy = latents + sigma * noise
            real, fake = self.real_unet(noisy, sigma, labels), self.fake_unet(noisy, sigma, labels)
            p_real, p_fake = latents - real, latents - fake
            g = torch.nan_to_num((p_real - p_fake) / p_real.abs().mean((1, 2, 3), keepdim=True))
        return {"loss_dm": 0.5 * F.mse_loss(latents, (latents - g).detach())}, {
            "dmtrain_noisy_latents": noisy,
            "dmtrain_pred_real_image": real,
            "dmtrain_pred_fake_image": fake,
            "dmtrain_grad": g,
            "dmtrain_gradient_norm": g.norm().item(),
            "dmtrain_timesteps": t,
        }
