"""LongLive's loss of the critic, from its velocity; the trainer converts that to x0 and back."""

from __future__ import annotations

import importlib
import time
from typing import Any

import torch

from fdkernels.integrations import _self_forcing_family as family


def critic_loss(
    self: Any,
    image_or_video_shape: Any,
    conditional_dict: dict[str, Any],
    unconditional_dict: dict[str, Any],
    clean_latent: Any,
    initial_latent: Any = None,
) -> Any:
    """The times in the log are the host's: it does not wait for the GPU, as the trainer does to read the loss."""
    if not family.is_of_velocity(self):
        return NotImplemented
    option, i2v, start = self.args, importlib.import_module("utils.i2v_conditioning"), time.time()
    with torch.no_grad():
        clean, _, from_step, to_step = self._run_generator(
            image_or_video_shape=image_or_video_shape,
            conditional_dict=conditional_dict,
            initial_latent=initial_latent,
            slice_last_frames=getattr(option, "slice_last_frames", 21),
            noise=torch.randn(list(image_or_video_shape), device=self.device, dtype=self.dtype),
            clean_latent=clean_latent,
        )
        generated = time.time()
        first = initial_latent if clean.shape[1] == image_or_video_shape[1] else None
        context, frames = i2v._get_i2v_context_frames(clean, first), clean.shape[:2]
        segments = frames[1] // self.num_frame_per_block if getattr(option, "generator_is_causal", True) else 1
        clean_x = None
        if getattr(option, "teacher_forcing", False):
            clean_x = clean if getattr(option, "backward_simulation", True) else clean_latent
        if clean_x is not None:
            clean_x = i2v._overwrite_i2v_context(clean_x, first, context)
        timestep = family.score_timestep(self, frames, from_step, to_step, not getattr(option, "i2v", False))
        timestep = i2v._zero_i2v_context_timestep(timestep, context)
        noise = torch.randn_like(clean)
        noise[:, :context] = 0
        noisy = i2v._overwrite_i2v_context(family.noised(self, clean, noise, timestep), first, context)
    flow = self.fake_score(
        noisy_image_or_video=noisy,
        conditional_dict=self._slice_block_cond_dict(conditional_dict, frames[0], segments),
        timestep=timestep,
        clean_x=clean_x,
    )[0]
    loss = family.velocity_loss(self, flow, clean, noise, timestep, context)
    times = {"gen_time": generated - start, "loss_time": time.time() - generated}
    return loss, {"critic_timestep": timestep, **times}
