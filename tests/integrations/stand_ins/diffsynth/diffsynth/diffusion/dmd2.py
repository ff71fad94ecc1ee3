"""DiffSynth-Studio's losses by their parameters and formulas, with the roundings that its dtypes imply."""

import torch
import torch.nn.functional as F

from tests.integrations.stand_ins.fastgen.fastgen.methods import common_loss

_gan_loss_generator, _gan_loss_discriminator = common_loss.gan_loss_generator, common_loss.gan_loss_discriminator


def _variational_score_distillation_loss(gen_data, teacher_x0, fake_score_x0):
    with torch.no_grad():
        mean = (gen_data.float() - teacher_x0.float()).abs().mean(tuple(range(1, gen_data.ndim)), keepdim=True)
        target = gen_data - (fake_score_x0 - teacher_x0) * (1 / (mean + 1e-6)).to(gen_data.dtype)
    return 0.5 * F.mse_loss(gen_data.float(), target.float())
