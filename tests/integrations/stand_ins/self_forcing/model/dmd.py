"""Self-Forcing's DMD loss by its parameters and formula, with the roundings that its dtypes imply."""

import torch
import torch.nn.functional as F
from torch import nn
from utils.wan_wrapper import WanDiffusionWrapper


class DMD(nn.Module):
    def _get_timestep(
        self, min_timestep, max_timestep, batch_size, num_frame, num_frame_per_block, uniform_timestep=False
    ):
        assert uniform_timestep
        t = torch.randint(min_timestep, max_timestep, [batch_size, 1], device=self.device, dtype=torch.long)
        return t.repeat(1, num_frame)

    def _compute_kl_grad(self, noisy, x, timestep, conditional_dict, unconditional_dict):
        def score(network, condition):
            return network(noisy_image_or_video=noisy, conditional_dict=condition, timestep=timestep)[1]

        fake = score(self.fake_score, conditional_dict)
        if self.fake_guidance_scale != 0.0:
            fake = fake + (fake - score(self.fake_score, unconditional_dict)) * self.fake_guidance_scale
        real = score(self.real_score, conditional_dict)
        real = real + (real - score(self.real_score, unconditional_dict)) * self.real_guidance_scale
        g = torch.nan_to_num((fake - real) / (x - real).abs().mean((1, 2, 3, 4), keepdim=True))
        return g, {"dmdtrain_gradient_norm": g.abs().mean(), "timestep": timestep}

    def compute_distribution_matching_loss(
        self, image_or_video, conditional_dict, unconditional_dict, gradient_mask=None, denoised_timestep_from=0,
        denoised_timestep_to=0,
    ):  # fmt: skip
        frames = image_or_video.shape[:2]
        with torch.no_grad():
            low = denoised_timestep_to if self.ts_schedule else self.min_score_timestep
            high = denoised_timestep_from if self.ts_schedule_max else self.num_train_timestep
            t = self._get_timestep(low, high, *frames, self.num_frame_per_block, uniform_timestep=True)
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

    def critic_loss(
        self, image_or_video_shape, conditional_dict, unconditional_dict, clean_latent, initial_latent=None
    ):
        with torch.no_grad():
            clean, _, high, low = self._run_generator(
                image_or_video_shape=image_or_video_shape, conditional_dict=conditional_dict,
                initial_latent=initial_latent,
            )  # fmt: skip
        low = low if self.ts_schedule else self.min_score_timestep
        high = high if self.ts_schedule_max else self.num_train_timestep
        t = self._get_timestep(low, high, *clean.shape[:2], self.num_frame_per_block, uniform_timestep=True)
        if self.timestep_shift > 1:
            t = self.timestep_shift * (t / 1000) / (1 + (self.timestep_shift - 1) * (t / 1000)) * 1000
        t = t.clamp(self.min_step, self.max_step)
        x, noise, flat = clean.flatten(0, 1), torch.randn_like(clean).flatten(0, 1), t.flatten()
        noisy = self.scheduler.add_noise(x, noise, flat)
        given = {"noisy_image_or_video": noisy.unflatten(0, clean.shape[:2]), "timestep": t}
        x0 = self.fake_score(conditional_dict=conditional_dict, **given)[1].flatten(0, 1)
        options = {"noise_pred": None, "flow_pred": None}
        if self.args.denoising_loss_type == "flow":
            options["flow_pred"] = WanDiffusionWrapper._convert_x0_to_flow_pred(
                scheduler=self.scheduler, x0_pred=x0, xt=noisy, timestep=flat
            )
        else:
            epsilon = self.scheduler.convert_x0_to_noise(x0=x0, xt=noisy, timestep=flat)
            options["noise_pred"] = epsilon.unflatten(0, clean.shape[:2])
        loss = self.denoising_loss_func(
            x=x, x_pred=x0, noise=noise, alphas_cumprod=self.scheduler.alphas_cumprod, timestep=flat, **options
        )
        return loss, {"critic_timestep": t}
