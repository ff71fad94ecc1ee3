"""FastGen's functions by their parameters and formulas, with the roundings that its dtypes imply."""

import torch
import torch.nn.functional as F


def expand(v, rank):
    return v.reshape(*v.shape, *(1,) * (rank - v.dim()))


def variational_score_distillation_loss(gen_data, teacher_x0, fake_score_x0, additional_scale=None):
    with torch.no_grad():
        distance = (gen_data.float() - teacher_x0.float()).abs().flatten(1).mean(1)
        weight = 1 / (distance + 1e-6)
        if additional_scale is not None:
            weight = weight * additional_scale.float()
        target = gen_data - expand(weight.to(gen_data.dtype), gen_data.dim()) * (fake_score_x0 - teacher_x0)
    return 0.5 * F.mse_loss(gen_data, target)


def gan_loss_generator(fake_logits):
    return F.softplus(-fake_logits).mean()


def gan_loss_discriminator(real_logits, fake_logits):
    return F.softplus(-real_logits).mean() + F.softplus(fake_logits).mean()


def denoising_score_matching_loss(pred_type, net_pred, x0=None, eps=None, noise_scheduler=None, t=None):
    if pred_type == "v":
        alpha, sigma = (
            expand(level(t), x0.dim()).to(x0.dtype) for level in (noise_scheduler.alpha, noise_scheduler.sigma)
        )
        target = alpha * eps - sigma * x0
    else:
        target = {"x0": lambda: x0, "eps": lambda: eps, "flow": lambda: eps - x0}[pred_type]()
    return F.mse_loss(target, net_pred)
