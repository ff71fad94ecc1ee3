"""LongLive's image to video: the first frames are given, and do not count."""

import torch


def _get_i2v_context_frames(image_or_video, initial_latent):
    return 0 if initial_latent is None else initial_latent.shape[1]


def _overwrite_i2v_context(image_or_video, initial_latent, context_frames):
    if context_frames == 0:
        return image_or_video
    return torch.cat([initial_latent.to(image_or_video.dtype), image_or_video[:, context_frames:]], 1)


def _zero_i2v_context_timestep(timestep, context_frames):
    return torch.cat([torch.zeros_like(timestep[:, :context_frames]), timestep[:, context_frames:]], 1)


def _i2v_loss_mask_like(image_or_video, context_frames):
    if context_frames == 0:
        return None
    kept = torch.ones_like(image_or_video, dtype=torch.bool)
    kept[:, :context_frames] = False
    return kept
