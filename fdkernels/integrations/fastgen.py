"""FastGen: the losses of its DMD2, f-distill and LADD methods, and f-distill's weight h."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

import fdkernels as fdk
from fdkernels.integrations._loss_dtype import in_trainers_dtype
from fdkernels.integrations._replacing import Integration

INTEGRATION = Integration("FastGen (NVlabs/FastGen 34f30e8)")
apply, undo, applied, patched = INTEGRATION.apply, INTEGRATION.undo, INTEGRATION.applied, INTEGRATION.patched

LOSSES, F_DISTILL = "fastgen.methods.common_loss", "fastgen.methods.distribution_matching.f_distill"
TARGETS: dict[str, Any] = {"x0": (1.0, 0.0), "eps": (0.0, 1.0), "flow": (-1.0, 1.0), "v": None}


@INTEGRATION.replaces(LOSSES, "variational_score_distillation_loss", "8801694571cd")
def variational_score_distillation_loss(
    gen_data: Tensor, teacher_x0: Tensor, fake_score_x0: Tensor, additional_scale: Tensor | None = None
) -> Tensor:
    loss = fdk.fused_fdiv_loss(gen_data, teacher_x0, fake_score_x0, divergence="rkl", weight=additional_scale)
    return in_trainers_dtype(loss, gen_data, teacher_x0, fake_score_x0)


@INTEGRATION.replaces(F_DISTILL, "FdistillModel._get_f_div_weighting_h", "5f8114011754")
def f_div_weighting_h(self: Any, fake_logits: Tensor, t: Tensor) -> Tensor:
    options = self.config.f_distill
    normalizer = None
    if options.ratio_normalization:
        t_range = (float(self.net.noise_scheduler.min_t), float(self.net.noise_scheduler.max_t))
        normalizer = fdk.RatioNormalizer(self.bin_num, t_range, options.ratio_ema_rate)
        normalizer.mean = self.net.bins.float()
    h: Tensor = fdk.fdiv_weight(
        fake_logits, t, divergence=options.f_div, normalizer=normalizer,
        ratio_range=(options.ratio_lower, options.ratio_upper),
        group=torch.distributed.group.WORLD if torch.distributed.is_initialized() else None,
    )  # fmt: skip
    if normalizer is not None and normalizer.mean is not self.net.bins:
        self.net.bins.copy_(normalizer.mean)  # FastGen's state, which it saves; bfloat16 in a bfloat16 network
    return h


@INTEGRATION.replaces(LOSSES, "gan_loss_generator", "28b9f00f09be")
def gan_loss_generator(fake_logits: Tensor) -> Tensor:
    return in_trainers_dtype(fdk.generator_loss(fake_logits), fake_logits)


@INTEGRATION.replaces(LOSSES, "gan_loss_discriminator", "34ffa6d14ff9")
def gan_loss_discriminator(real_logits: Tensor, fake_logits: Tensor) -> Tensor:
    return in_trainers_dtype(fdk.discriminator_loss(fake_logits, real_logits), fake_logits, real_logits)


@INTEGRATION.replaces(LOSSES, "denoising_score_matching_loss", "d0b21c6b8872")
def denoising_score_matching_loss(
    pred_type: str,
    net_pred: Tensor,
    x0: Tensor | None = None,
    eps: Tensor | None = None,
    noise_scheduler: Any = None,
    t: Tensor | None = None,
) -> Tensor:
    return denoising_loss(pred_type, net_pred, x0, eps, lambda: (-noise_scheduler.sigma(t), noise_scheduler.alpha(t)))


def denoising_loss(pred_type: str, pred: Tensor, x0: Any, eps: Any, of_v: Callable[[], tuple[Any, Any]]) -> Tensor:
    """The mean square of pred minus its target p·x0 + q·eps; of_v gives (p, q) of a v prediction."""
    if pred_type not in TARGETS:
        raise NotImplementedError(f"pred_type: expected one of {', '.join(TARGETS)}, got {pred_type!r}")
    if (x0 is None and pred_type != "eps") or (eps is None and pred_type != "x0"):
        raise ValueError(f"x0, eps: expected what the target {pred_type} contains, got None")
    target = of_v() if pred_type == "v" else TARGETS[pred_type]
    loss: Tensor = fdk.denoising_loss(pred, eps if x0 is None else x0, x0 if eps is None else eps, target=target)
    return in_trainers_dtype(loss, pred, *(each for each in (x0, eps) if each is not None))
