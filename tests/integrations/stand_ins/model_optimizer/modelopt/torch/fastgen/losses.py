"""Model-Optimizer's losses: FastGen's formulas, with other names."""

import torch.nn.functional as F

from tests.integrations.stand_ins.fastgen.fastgen.methods.common_loss import (
    expand,
    gan_loss_discriminator,
    gan_loss_generator,
    variational_score_distillation_loss,
)

vsd_loss, gan_gen_loss, gan_disc_loss = variational_score_distillation_loss, gan_loss_generator, gan_loss_discriminator


def r1_loss(real_logits, perturbed_real_logits):
    return F.mse_loss(real_logits, perturbed_real_logits)


def dsm_loss(pred_type, net_pred, *, x0=None, eps=None, t=None, alpha_fn=None, sigma_fn=None):
    if pred_type == "v":
        alpha, sigma = (expand(level(t), x0.dim()).to(x0.dtype) for level in (alpha_fn, sigma_fn))
        target = alpha * eps - sigma * x0
    else:
        target = {"x0": lambda: x0, "eps": lambda: eps, "flow": lambda: eps - x0}[pred_type]()
    return F.mse_loss(target, net_pred)
