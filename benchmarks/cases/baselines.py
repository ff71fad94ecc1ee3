"""What the peers' trainers compute between the networks' outputs and the student's gradient, in eager PyTorch.

Written from the formulas of NVlabs/FastGen (34f30e8), tianweiy/DMD2 (8d8fa55), guandeh17/Self-Forcing (33593df) and
mingyuanzhou/SiD (01fbb13), with the same casts, temporaries and small ops, so that speed and rounding are theirs.
tests/benchmarks compares each with values recorded from the original functions.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import mse_loss


def fastgen_weight(
    logits: Tensor, t: Tensor, bins: Tensor, *, t_range: tuple[float, float] = (0.0, 1.0), decay: float = 0.9,
    ratio_range: tuple[float, float] = (0.1, 20.0),
) -> Tensor:  # fmt: skip
    """js weights h = r/(1+r) per sample, normalized over the batch; `bins` (fp32) takes the update.

    r = clamp(exp(clamp(mean_k logits, ±10))), divided by the running mean of its bin of t; h(r) over its batch mean.
    Counts, bin means and the mean of h each get 1e-6 added.
    """
    ratio = logits.float().mean(dim=1).clamp(-10.0, 10.0).exp().detach().clamp(*ratio_range)
    bin_width = (t_range[1] - t_range[0]) / len(bins)
    index = ((t.double() - t_range[0]) / bin_width).floor().long().clamp(0, len(bins) - 1)
    count = torch.bincount(index, minlength=len(bins)).float()
    total = torch.bincount(index, weights=ratio, minlength=len(bins)).float()
    seen = count > 0
    batch_mean = total / (count + 1e-6)
    updated = bins.float()
    updated[seen] = updated[seen] * decay + (1 - decay) * batch_mean[seen]
    bins.copy_(updated.to(bins.dtype))
    h = 1 - 1 / (1 + ratio / (updated[index] + 1e-6))
    return (h / (h.sum() / len(h) + 1e-6)).to(logits.dtype)


def fastgen_loss(student: Tensor, teacher: Tensor, fake: Tensor, weight: Tensor | None = None) -> Tensor:
    """0.5·mse(x, sg(x - w (f - τ))), w = weight / (mean|x - τ| + 1e-6) in fp32, then rounded to the student's dtype."""
    with torch.no_grad():
        dims = tuple(range(1, student.ndim))
        w = 1 / ((student.float() - teacher.float()).abs().mean(dim=dims, keepdim=True) + 1e-6)
        if weight is not None:
            w *= weight.float().reshape(w.shape)
        target = student - (fake - teacher) * w.to(student.dtype)
    return 0.5 * mse_loss(student, target)


def fastgen_chain(student: Tensor, teacher: Tensor, fake: Tensor, logits: Tensor, t: Tensor, bins: Tensor) -> Tensor:
    """FastGen's f-distill loss: weight, then loss."""
    return fastgen_loss(student, teacher, fake, fastgen_weight(logits, t, bins))


def per_sample(v: Tensor, like: Tensor) -> Tensor:
    return v.reshape(-1, *[1] * (like.ndim - 1))


def dmd2_pixel_chain(student: Tensor, teacher: Tensor, fake: Tensor) -> Tensor:
    """DMD2's EDM guidance: x0 predictions, g = ((x - τ) - (x - f)) / mean|x - τ|, nan_to_num per element."""
    with torch.no_grad():
        p_teacher, p_fake = student - teacher, student - fake
        dims = tuple(range(1, student.ndim))
        grad = torch.nan_to_num((p_teacher - p_fake) / p_teacher.abs().mean(dim=dims, keepdim=True))
    return 0.5 * mse_loss(student, (student - grad).detach())


def dmd2_latent_epsilon_chain(
    student: Tensor, teacher: Tensor, fake: Tensor, noisy: Tensor, alpha: Tensor, sigma: Tensor
) -> Tensor:
    """DMD2's Stable Diffusion guidance: raw ε predictions become x0 in float64, then as in pixel space."""
    with torch.no_grad():
        a, s = per_sample(alpha.double(), student), per_sample(sigma.double(), student)
        p_fake = student - (noisy.double() - s * fake.double()) / a
        p_teacher = student - (noisy.double() - s * teacher.double()) / a
        dims = tuple(range(1, student.ndim))
        grad = torch.nan_to_num((p_teacher - p_fake) / p_teacher.abs().mean(dim=dims, keepdim=True))
    return 0.5 * mse_loss(student.float(), (student - grad).detach().float())


def self_forcing_chain(
    student: Tensor, teacher_cond: Tensor, teacher_uncond: Tensor, fake: Tensor, guidance_w: float,
    mask: Tensor | None = None,
) -> Tensor:  # fmt: skip
    """Self-Forcing's DMD: τ = c + w (c - u), g = (f - τ) / mean|x - τ|, float64 loss over kept elements."""
    with torch.no_grad():
        teacher = teacher_cond + (teacher_cond - teacher_uncond) * guidance_w
        dims = tuple(range(1, student.ndim))
        grad = torch.nan_to_num((fake - teacher) / (student - teacher).abs().mean(dim=dims, keepdim=True))
    x = student.double()
    target = (x - grad.double()).detach()
    return 0.5 * (mse_loss(x, target) if mask is None else mse_loss(x[mask], target[mask]))


def add_noise_chain(x0: Tensor, noise: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
    """diffusers' add_noise with given levels: α·x0 + σ·ε, the levels in x0's dtype."""
    return per_sample(alpha.to(x0.dtype), x0) * x0 + per_sample(sigma.to(x0.dtype), x0) * noise


def fastgen_denoising_loss(pred: Tensor, x0: Tensor, noise: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
    """FastGen's denoising score matching loss of a v prediction: mse(pred, α·ε - σ·x0)."""
    target = per_sample(alpha.to(x0.dtype), x0) * noise - per_sample(sigma.to(x0.dtype), x0) * x0
    return mse_loss(pred, target)


def sid_loss(student: Tensor, teacher: Tensor, fake: Tensor, alpha: float = 1.2) -> Tensor:
    """SiD's generator loss, its mean: (τ - f)·((τ - x) - α·(τ - f)) / ω, ω = mean|x - τ| in fp32, at least 1e-5."""
    with torch.no_grad():
        dims = tuple(range(1, student.ndim))
        w = (student - teacher).abs().float().mean(dim=dims, keepdim=True).clip(min=1e-5)
    e = teacher - fake
    return (e * ((teacher - student) - alpha * e) / w).mean()


def sim_loss(student: Tensor, teacher: Tensor, fake: Tensor, score_scale: Tensor, c: float) -> Tensor:
    """The paper's SIM loss, for which there is no public code: -k²·Σ (f - τ)·(f - x) / √(k²·Σ (f - τ)² + c²)."""
    k = per_sample(score_scale.to(student.dtype), student)
    score, of_student = k * (fake - teacher), k * (fake - student)
    root = (score.flatten(1).square().sum(1) + c**2).sqrt()
    return (-(score * of_student).flatten(1).sum(1) / root).mean()
