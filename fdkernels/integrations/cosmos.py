"""cosmos-framework: the losses of its distribution matching distillation, which take lists of samples of any shapes."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

import fdkernels as fdk
from fdkernels.integrations._fastgen_family import in_trainers_dtype
from fdkernels.integrations._replacing import Integration

INTEGRATION = Integration("cosmos-framework (NVIDIA/cosmos-framework 5eee9ed)")
apply, undo, applied, patched = INTEGRATION.apply, INTEGRATION.undo, INTEGRATION.applied, INTEGRATION.patched

LOSSES = "cosmos_framework.model.generator.distillation.common_loss"


@INTEGRATION.replaces(LOSSES, "variational_score_distillation_loss", "eb42940785e4")
def variational_score_distillation_loss(
    gen_data: list[Tensor],
    teacher_x0: list[Tensor],
    fake_score_x0: list[Tensor],
    loss_mask: list[Tensor] | None = None,
    additional_scale: Tensor | None = None,
    reduction: str = "mean",
) -> Tensor:
    triples = [(tau, fake, None) for tau, fake in zip(teacher_x0, fake_score_x0, strict=True)]
    return _loss(gen_data, triples, loss_mask, additional_scale, reduction)


@INTEGRATION.replaces(LOSSES, "variational_score_distillation_loss_from_gradient", "a4dfe33d18cb")
def variational_score_distillation_loss_from_gradient(
    gen_data: list[Tensor],
    vsd_grad: list[Tensor],
    weight_reference: list[Tensor],
    loss_mask: list[Tensor] | None = None,
    additional_scale: Tensor | None = None,
    reduction: str = "mean",
) -> Tensor:
    # x0 = reference + prediction: the difference of the predictions 0 and gradient is the gradient, without rounding.
    triples = [
        (torch.zeros_like(gradient), gradient, fdk.Prediction.affine(reference[None], a=1.0, c=1.0))
        for gradient, reference in zip(vsd_grad, weight_reference, strict=True)
    ]
    return _loss(gen_data, triples, loss_mask, additional_scale, reduction)


def _loss(samples: list[Tensor], triples: list[Any], masks: Any, scales: Tensor | None, reduction: str) -> Tensor:
    """The mean over samples (C, T, H, W) with masks that broadcast to them, (T, 1, 1).

    N of each call is such that the losses are added: a factor 1/B of their gradients would be one more rounding.
    """
    if reduction not in ("mean", "sum", "per_instance_sum"):
        raise ValueError(f"reduction: expected mean, sum or per_instance_sum, got {reduction!r}")
    is_instance = reduction == "per_instance_sum"
    scale = fdk.DmdScale(eps=0.0, floor=1e-5, kept_only=True) if is_instance else fdk.DmdScale(kept_only=True)
    total = torch.zeros((), device=samples[0].device)
    for i, (x, (teacher, fake, prediction)) in enumerate(zip(samples, triples, strict=True)):
        mask, count = None, x.numel()
        if masks is not None:
            mask = masks[i] != 0
            count = mask.sum() * (x.numel() // mask.numel())
            mask = mask.expand_as(x)[None]
        total = total + fdk.fused_fdiv_loss(
            x[None], teacher[None], fake[None], divergence="rkl", prediction=prediction, scale=scale, mask=mask,
            weight=None if scales is None else scales[i], nonfinite="zero" if is_instance else "propagate",
            count=len(samples) * (count if reduction == "mean" else 1),
        )  # fmt: skip
    scores = [v for teacher, fake, _ in triples for v in (teacher, fake)]
    return in_trainers_dtype(2 * total if is_instance else total, *samples, *scores, *(masks or ()))
