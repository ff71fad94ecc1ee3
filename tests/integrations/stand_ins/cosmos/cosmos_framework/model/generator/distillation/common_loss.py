"""cosmos-framework's losses by their parameters and formulas, with the roundings that its dtypes imply."""

import torch
import torch.nn.functional as F


def variational_score_distillation_loss(
    gen_data, teacher_x0, fake_score_x0, loss_mask=None, additional_scale=None, reduction="mean"
):
    gradients = [(fake - tau).detach() for fake, tau in zip(fake_score_x0, teacher_x0, strict=True)]
    return variational_score_distillation_loss_from_gradient(
        gen_data, gradients, teacher_x0, loss_mask, additional_scale, reduction
    )


def variational_score_distillation_loss_from_gradient(
    gen_data, vsd_grad, weight_reference, loss_mask=None, additional_scale=None, reduction="mean"
):
    if reduction not in ("mean", "sum", "per_instance_sum"):
        raise ValueError(reduction)
    losses = []
    for i, (x, gradient, reference) in enumerate(zip(gen_data, vsd_grad, weight_reference, strict=True)):
        kept = torch.ones_like(x) if loss_mask is None else loss_mask[i].expand_as(x)
        count = kept.sum().clamp(min=1)
        with torch.no_grad():
            distance = ((x.float() - reference.float()).abs() * kept).sum() / count
            weight = 1 / distance.clamp(min=1e-5) if reduction == "per_instance_sum" else 1 / (distance + 1e-6)
            if additional_scale is not None:
                weight = weight * additional_scale[i].float()
            g = gradient * weight.to(x.dtype)
            if reduction == "per_instance_sum":
                g = torch.where(torch.isfinite(g).all(), g, torch.zeros_like(g))
            target = x - g
        if loss_mask is None and reduction == "mean":
            losses.append(0.5 * F.mse_loss(x, target))
            continue
        square = ((x - target) ** 2 * kept).sum()
        losses.append({"mean": 0.5 * square / count, "sum": 0.5 * square, "per_instance_sum": square}[reduction])
    return torch.stack(losses).mean()
