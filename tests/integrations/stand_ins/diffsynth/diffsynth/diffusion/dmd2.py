"""DiffSynth-Studio's losses by their parameters and formulas, with the roundings that its dtypes imply."""

import torch
import torch.nn.functional as F


def _variational_score_distillation_loss(gen_data, teacher_x0, fake_score_x0):
    with torch.no_grad():
        mean = (gen_data.float() - teacher_x0.float()).abs().mean(tuple(range(1, gen_data.ndim)), keepdim=True)
        target = gen_data - (fake_score_x0 - teacher_x0) * (1 / (mean + 1e-6)).to(gen_data.dtype)
    return 0.5 * F.mse_loss(gen_data.float(), target.float())


def _gan_loss_generator(fake_logits):
    return F.softplus(-fake_logits).mean()


def _gan_loss_discriminator(real_logits, fake_logits):
    return F.softplus(fake_logits).mean() + F.softplus(-real_logits).mean()
