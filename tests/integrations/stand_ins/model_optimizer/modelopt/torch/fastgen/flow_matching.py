"""Model-Optimizer's noise and conversions by their parameters and formulas, in float64."""

from tests.integrations.stand_ins.fastgen.fastgen.methods.common_loss import expand


def add_noise(x0, eps, t):
    t = expand(t.double(), x0.dim())
    return ((1 - t) * x0.double() + t * eps.double()).to(x0.dtype)


def pred_noise_to_pred_x0(pred_noise, noisy_latents, t):
    t = expand(t.double(), noisy_latents.dim())
    return ((noisy_latents.double() - t * pred_noise.double()) / (1 - t).clamp_min(1e-6)).to(noisy_latents.dtype)


def pred_x0_from_flow(pred_flow, noisy_latents, t):
    t = expand(t.double(), noisy_latents.dim())
    return (noisy_latents.double() - t * pred_flow.double()).to(noisy_latents.dtype)
