"""cosmos-framework: the losses of its distribution matching distillation, which take lists of samples of any shapes."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

import fdkernels as fdk
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
    losses = [
        _loss(i, x, tau, fake, None, loss_mask, additional_scale, reduction)
        for i, (x, tau, fake) in enumerate(zip(gen_data, teacher_x0, fake_score_x0, strict=True))
    ]
    return torch.stack(losses).mean()


@INTEGRATION.replaces(LOSSES, "variational_score_distillation_loss_from_gradient", "a4dfe33d18cb")
def variational_score_distillation_loss_from_gradient(
    gen_data: list[Tensor],
    vsd_grad: list[Tensor],
    weight_reference: list[Tensor],
    loss_mask: list[Tensor] | None = None,
    additional_scale: Tensor | None = None,
    reduction: str = "mean",
) -> Tensor:
    losses = []
    for i, (x, gradient, reference) in enumerate(zip(gen_data, vsd_grad, weight_reference, strict=True)):
        # x0 = reference + prediction: the difference of predictions 0 and gradient is the gradient, without rounding.
        prediction = fdk.Prediction.affine(reference[None], a=1.0, c=1.0)
        zero = torch.zeros_like(gradient)
        losses.append(_loss(i, x, zero, gradient, prediction, loss_mask, additional_scale, reduction))
    return torch.stack(losses).mean()


def _loss(
    i: int,
    x: Tensor,
    teacher: Tensor,
    fake: Tensor,
    prediction: fdk.Prediction | None,
    masks: list[Tensor] | None,
    scales: Tensor | None,
    reduction: str,
) -> Tensor:
    """The loss of sample i, (C, T, H, W), with a mask that broadcasts to it, (T, 1, 1)."""
    if reduction not in ("mean", "sum", "per_instance_sum"):
        raise ValueError(f"reduction: expected mean, sum or per_instance_sum, got {reduction!r}")
    options: dict[str, Any] = {"scale": fdk.DmdScale(kept_only=True), "reduction": "mean"}
    if reduction != "mean":
        options["reduction"] = "sum"
    if reduction == "per_instance_sum":
        options |= {"scale": fdk.DmdScale(eps=0.0, floor=1e-5, kept_only=True), "nonfinite": "zero"}
    loss: Tensor = fdk.fused_fdiv_loss(
        x[None], teacher[None], fake[None], divergence="rkl", prediction=prediction,
        mask=None if masks is None else (masks[i] != 0).expand_as(x)[None],
        weight=None if scales is None else scales[i], **options,
    )  # fmt: skip
    return ((2 if reduction == "per_instance_sum" else 1) * loss).to(x.dtype)
