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
from utils.wan_5b_wrapper import WanDiffusionWrapper


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

    @staticmethod
    def _slice_block_cond_dict(cond_dict, batch_size, new_num_segments):
        return cond_dict | {"segments": new_num_segments}

    def critic_loss(
        self, image_or_video_shape, conditional_dict, unconditional_dict, clean_latent, initial_latent=None
    ):
        is_i2v = self.args.i2v
        with torch.no_grad():
            clean, _, high, low = self._run_generator(
                image_or_video_shape=image_or_video_shape, conditional_dict=conditional_dict,
                initial_latent=initial_latent, slice_last_frames=21,
                noise=torch.randn(image_or_video_shape, dtype=self.dtype), clean_latent=clean_latent,
            )  # fmt: skip
        context = _get_i2v_context_frames(clean, initial_latent)
        frames = clean.shape[:2]
        clean_x = clean if getattr(self.args, "teacher_forcing", False) else None
        if clean_x is not None:
            clean_x = _overwrite_i2v_context(clean_x, initial_latent, context)
        low = low if self.ts_schedule else self.min_score_timestep
        high = high if self.ts_schedule_max else self.num_train_timestep
        t = self._get_timestep(low, high, *frames, self.num_frame_per_block, uniform_timestep=not is_i2v)
        if self.timestep_shift > 1:
            t = self.timestep_shift * (t / 1000) / (1 + (self.timestep_shift - 1) * (t / 1000)) * 1000
        t = _zero_i2v_context_timestep(t.clamp(self.min_step, self.max_step), context)
        noise = torch.randn_like(clean)
        noise[:, :context] = 0
        noisy = self.scheduler.add_noise(clean.flatten(0, 1), noise.flatten(0, 1), t.flatten()).unflatten(0, frames)
        noisy = _overwrite_i2v_context(noisy, initial_latent, context)
        condition = self._slice_block_cond_dict(conditional_dict, frames[0], frames[1] // self.num_frame_per_block)
        x0 = self.fake_score(noisy_image_or_video=noisy, conditional_dict=condition, timestep=t, clean_x=clean_x)[1]
        flow = WanDiffusionWrapper._convert_x0_to_flow_pred(
            scheduler=self.scheduler, x0_pred=x0.flatten(0, 1), xt=noisy.flatten(0, 1), timestep=t.flatten()
        )
        mask = _i2v_loss_mask_like(clean, context)
        loss = self.denoising_loss_func(
            x=clean.flatten(0, 1), x_pred=x0.flatten(0, 1), noise=noise.flatten(0, 1), noise_pred=None,
            alphas_cumprod=None, timestep=t.flatten(), flow_pred=flow,
            gradient_mask=None if mask is None else mask.flatten(0, 1),
        )  # fmt: skip
        return loss, {"critic_timestep": t, "gen_time": 0.0, "loss_time": 0.0}
