"""LongLive's DMD loss by its parameters and formula, with the roundings that its dtypes imply."""

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import nn
from utils.i2v_conditioning import (
    _get_i2v_context_frames,
    _i2v_loss_mask_like,
    _overwrite_i2v_context,
    _zero_i2v_context_timestep,
)
from utils.wan_5b_wrapper import WanDiffusionWrapper  # noqa: F401


class DMD(nn.Module):
    def _get_timestep(
        self, min_timestep, max_timestep, batch_size, num_frame, num_frame_per_block, uniform_timestep=False
    ):
        drawn = 1 if uniform_timestep else num_frame
        t = torch.randint(min_timestep, max_timestep, [batch_size, drawn], device=self.device, dtype=torch.long)
        if uniform_timestep:
            return t.repeat(1, num_frame)
        return t[:, ::num_frame_per_block].repeat_interleave(num_frame_per_block, 1)

    def _compute_kl_grad(self, noisy, x, timestep, conditional_dict, unconditional_dict, clean_x):
        def score(network, condition):
            return network(noisy_image_or_video=noisy, conditional_dict=condition, timestep=timestep, clean_x=clean_x)[
                1
            ]

        fake = score(self.fake_score, conditional_dict)
        if self.fake_guidance_scale != 0.0:
            fake = fake + (fake - score(self.fake_score, unconditional_dict)) * self.fake_guidance_scale
        real = score(self.real_score, conditional_dict)
        real = real + (real - score(self.real_score, unconditional_dict)) * self.real_guidance_scale
        if dist.get_rank() == 0:
            print(real.shape)
        k = self.num_frame_per_block
        first = int(self.independent_first_frame and not self.args.i2v and (x.shape[1] - 1) % k == 0)
        means = (x - real).abs()[:, first:].unflatten(1, (-1, k)).mean((2, 3, 4, 5)).repeat_interleave(k, 1)
        means = torch.cat([torch.ones_like(means[:, :first]), means], 1)
        g = torch.nan_to_num((fake - real) / means[..., None, None, None])
        return g, {"dmdtrain_gradient_norm": g.abs().mean(), "timestep": timestep}

    def compute_distribution_matching_loss(
        self, image_or_video, conditional_dict, unconditional_dict, gradient_mask=None, denoised_timestep_from=0,
        denoised_timestep_to=0, clean_x=None, initial_latent=None,
    ):  # fmt: skip
        context = _get_i2v_context_frames(image_or_video, initial_latent)
        original = _overwrite_i2v_context(image_or_video, initial_latent, context)
        if clean_x is not None:
            clean_x = _overwrite_i2v_context(clean_x, initial_latent, context)
        frames = original.shape[:2]
        with torch.no_grad():
            low = denoised_timestep_to if self.ts_schedule else self.min_score_timestep
            high = denoised_timestep_from if self.ts_schedule_max else self.num_train_timestep
            uniform = not self.args.i2v
            t = self._get_timestep(low, high, *frames, self.num_frame_per_block, uniform_timestep=uniform)
            if self.timestep_shift > 1:
                t = self.timestep_shift * (t / 1000) / (1 + (self.timestep_shift - 1) * (t / 1000)) * 1000
            t = _zero_i2v_context_timestep(t.clamp(self.min_step, self.max_step), context)
            noise = torch.randn_like(image_or_video)
            noise[:, :context] = 0
            noisy = self.scheduler.add_noise(original.flatten(0, 1), noise.flatten(0, 1), t.flatten())
            noisy = _overwrite_i2v_context(noisy.unflatten(0, frames), initial_latent, context)
            g, log = self._compute_kl_grad(noisy, original, t, conditional_dict, unconditional_dict, clean_x)
        kept = _i2v_loss_mask_like(original, context)
        if gradient_mask is not None:
            kept = gradient_mask if kept is None else kept & gradient_mask
        x = original.double()
        target = (x - g.double()).detach()
        if kept is not None:
            x, target = x[kept], target[kept]
        return 0.5 * F.mse_loss(x, target), log
