"""LightX2V's DMD loss by its parameters and formula, with the roundings that its dtypes imply."""

import torch
import torch.nn.functional as F


def dmd_loss(latents, x_pred_fake_flow, x_pred_teacher, norm_clip_min=None):
    with torch.no_grad():
        mean = (latents - x_pred_teacher).abs().mean(tuple(range(1, latents.ndim)), keepdim=True)
        if norm_clip_min is not None:
            mean = mean.clamp(min=float(norm_clip_min))
        g = torch.nan_to_num((x_pred_fake_flow - x_pred_teacher) / mean).float()
    return 0.5 * F.mse_loss(latents.float(), (latents.float() - g).detach())


def dmd_loss_pair(latents, x_pred_fake_flow, x_pred_teacher, video_weight, audio_weight):
    parts = zip(latents, x_pred_fake_flow, x_pred_teacher, strict=True)
    video, audio = (dmd_loss(*part) for part in parts)
    return video_weight * video + audio_weight * audio
