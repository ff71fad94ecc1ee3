"""FastGen: the losses of its DMD2, f-distill and LADD methods, and f-distill's weight h."""

from __future__ import annotations

import functools
import math
from typing import Any

import torch
from torch import Tensor

import fdkernels as fdk
from fdkernels.integrations import _fastgen_family as family
from fdkernels.integrations._replacing import Integration

INTEGRATION = Integration("FastGen (NVlabs/FastGen 34f30e8)")
apply, undo, applied, patched = INTEGRATION.apply, INTEGRATION.undo, INTEGRATION.applied, INTEGRATION.patched

LOSSES, F_DISTILL = "fastgen.methods.common_loss", "fastgen.methods.distribution_matching.f_distill"

INTEGRATION.replaces(LOSSES, "variational_score_distillation_loss", "8801694571cd")(
    family.variational_score_distillation_loss
)
INTEGRATION.replaces(LOSSES, "gan_loss_generator", "28b9f00f09be")(family.gan_loss_generator)
INTEGRATION.replaces(LOSSES, "gan_loss_discriminator", "34ffa6d14ff9")(family.gan_loss_discriminator)


@functools.lru_cache
def normalizer_of(bins: int, t_range: tuple[float, float], decay: float) -> fdk.RatioNormalizer:
    """What holds FastGen's bins during a call; kept, because a normalizer watches t in its first calls alone."""
    moves = decay < 1
    return fdk.RatioNormalizer(bins, t_range, decay if moves else 0.0).train(moves)


@INTEGRATION.replaces(F_DISTILL, "FdistillModel._get_f_div_weighting_h", "5f8114011754")
def f_div_weighting_h(self: Any, fake_logits: Tensor, t: Tensor) -> Tensor:
    options = self.config.f_distill
    normalizer = None
    if options.ratio_normalization:
        t_range = (float(self.net.noise_scheduler.min_t), float(self.net.noise_scheduler.max_t))
        normalizer = normalizer_of(self.bin_num, t_range, options.ratio_ema_rate)
        normalizer.mean = self.net.bins.float()
    # FastGen clamps the logit to ±10 first, infinities too, which here are a bad sample's.
    fake_logits, most = fake_logits.clamp(-6e4, 6e4), math.exp(10)
    ratio_range = max(options.ratio_lower, 1 / most), min(options.ratio_upper, most)
    h: Tensor = fdk.fdiv_weight(
        fake_logits, t, divergence=options.f_div, normalizer=normalizer, ratio_range=ratio_range,
        group=torch.distributed.group.WORLD if torch.distributed.is_initialized() else None,
    )  # fmt: skip
    if normalizer is not None and normalizer.mean is not self.net.bins:
        self.net.bins.copy_(normalizer.mean)  # FastGen's state, which it saves; bfloat16 in a bfloat16 network
    return h


@INTEGRATION.replaces(LOSSES, "denoising_score_matching_loss", "d0b21c6b8872")
def denoising_score_matching_loss(
    pred_type: str,
    net_pred: Tensor,
    x0: Tensor | None = None,
    eps: Tensor | None = None,
    noise_scheduler: Any = None,
    t: Tensor | None = None,
) -> Tensor:
    return family.denoising_loss(
        pred_type, net_pred, x0, eps, lambda: (-noise_scheduler.sigma(t), noise_scheduler.alpha(t))
    )
