"""CausVid's DMD loss by its parameters and formula, with the roundings that its dtypes imply."""

import torch
import torch.nn.functional as F
from torch import nn


class DMD(nn.Module):
    def _process_timestep(self, timestep, type):
        if type == "causal_video":
            return timestep[:, :: self.num_frame_per_block].repeat_interleave(self.num_frame_per_block, 1)
        assert type == "bidirectional_video"
        return timestep[:, :1].repeat(1, timestep.shape[1])

    def _compute_kl_grad(self, noisy, x, timestep, conditional_dict, unconditional_dict):
        def score(network, condition):
            return network(noisy_image_or_video=noisy, conditional_dict=condition, timestep=timestep)

        fake, real = score(self.fake_score, conditional_dict), score(self.real_score, conditional_dict)
        real = real + (real - score(self.real_score, unconditional_dict)) * self.real_guidance_scale
        g = torch.nan_to_num((fake - real) / (x - real).abs().mean((1, 2, 3, 4), keepdim=True))
        return g, {
            "dmdtrain_clean_latent": x.detach(),
            "dmdtrain_noisy_latent": noisy,
            "dmdtrain_pred_real_image": real,
            "dmdtrain_pred_fake_image": fake,
            "dmdtrain_gradient_norm": g.abs().mean(),
            "timestep": timestep,
        }

    def compute_distribution_matching_loss(
        self, image_or_video, conditional_dict, unconditional_dict, gradient_mask=None
    ):
        frames = image_or_video.shape[:2]
        with torch.no_grad():
            t = torch.randint(0, self.num_train_timestep, frames, device=self.device, dtype=torch.long)
            t = self._process_timestep(t, type=self.real_task_type)
            if self.timestep_shift > 1:
                t = self.timestep_shift * (t / 1000) / (1 + (self.timestep_shift - 1) * (t / 1000)) * 1000
            t = t.clamp(self.min_step, self.max_step)
            noise = torch.randn_like(image_or_video)
            noisy = self.scheduler.add_noise(image_or_video.flatten(0, 1), noise.flatten(0, 1), t.flatten())
            g, log = self._compute_kl_grad(
                noisy.unflatten(0, frames), image_or_video, t, conditional_dict, unconditional_dict
            )
        x = image_or_video.double()
        target = (x - g.double()).detach()
        if gradient_mask is not None:
            x, target = x[gradient_mask], target[gradient_mask]
        return 0.5 * F.mse_loss(x, target), log
