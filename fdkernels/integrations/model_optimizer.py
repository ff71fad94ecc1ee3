"""Model-Optimizer: the losses of modelopt.torch.fastgen, and the conversion of flows to x0.

`model_optimizer_step` replaces its student step too.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

import fdkernels as fdk
from fdkernels.integrations import _fastgen_family as family
from fdkernels.integrations._flow import spread, to_x0
from fdkernels.integrations._replacing import Integration

INTEGRATION = Integration("Model-Optimizer (NVIDIA/Model-Optimizer a2fbac7)")
apply, undo, applied, patched = INTEGRATION.apply, INTEGRATION.undo, INTEGRATION.applied, INTEGRATION.patched

LOSSES, FLOW = "modelopt.torch.fastgen.losses", "modelopt.torch.fastgen.flow_matching"

INTEGRATION.replaces(LOSSES, "vsd_loss", "2dd96098137f")(family.variational_score_distillation_loss)
INTEGRATION.replaces(LOSSES, "gan_gen_loss", "074717ccd119")(family.gan_loss_generator)
INTEGRATION.replaces(LOSSES, "gan_disc_loss", "96e99b07d5e2")(family.gan_loss_discriminator)


@INTEGRATION.replaces(LOSSES, "r1_loss", "976e76455017")
def r1_loss(real_logits: Tensor, perturbed_real_logits: Tensor) -> Tensor:
    loss = fdk.gradient_penalty(real_logits, perturbed_real_logits)
    return family.in_trainers_dtype(loss, real_logits, perturbed_real_logits)


@INTEGRATION.replaces(LOSSES, "dsm_loss", "51732915c753")
def dsm_loss(
    pred_type: str,
    net_pred: Tensor,
    *,
    x0: Tensor | None = None,
    eps: Tensor | None = None,
    t: Tensor | None = None,
    alpha_fn: Any = None,
    sigma_fn: Any = None,
) -> Tensor:
    return family.denoising_loss(pred_type, net_pred, x0, eps, lambda: (-sigma_fn(t), alpha_fn(t)))


@INTEGRATION.replaces(FLOW, "pred_x0_from_flow", "998ffb6cdb56")
def pred_x0_from_flow(pred_flow: Tensor, noisy_latents: Tensor, t: Tensor) -> Any:
    dtype = torch.promote_types(pred_flow.dtype, noisy_latents.dtype)
    sigma = spread(torch.atleast_1d(t), noisy_latents)
    x0 = to_x0(pred_flow.to(dtype), noisy_latents, sigma)
    return x0 if x0 is NotImplemented else x0.to(noisy_latents.dtype)
