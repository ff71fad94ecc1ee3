"""What Self-Forcing and the trainers that follow it share: all before the loss, conversions, the critic's loss."""

from __future__ import annotations

import importlib
from typing import Any

import torch
from torch import Tensor, nn

import fdkernels as fdk
from fdkernels.integrations._fastgen_family import TARGETS, in_trainers_dtype
from fdkernels.integrations._flow import from_x0, spread, to_x0
from fdkernels.integrations._replacing import Integration

TO_X0 = "WanDiffusionWrapper._convert_flow_pred_to_x0", "026534ffa7dc"


def score_timestep(self: Any, frames: tuple[int, ...], from_step: int, to_step: int, uniform: bool) -> Tensor:
    least = to_step if self.ts_schedule and to_step is not None else self.min_score_timestep
    most = from_step if self.ts_schedule_max and from_step is not None else self.num_train_timestep
    timestep = self._get_timestep(least, most, *frames, self.num_frame_per_block, uniform_timestep=uniform)
    return shifted(self, timestep)


def shifted(self: Any, timestep: Tensor) -> Tensor:
    if self.timestep_shift > 1:
        t = timestep / 1000
        timestep = self.timestep_shift * t / (1 + (self.timestep_shift - 1) * t) * 1000
    return timestep.clamp(self.min_step, self.max_step)


def noised(self: Any, clean: Tensor, noise: Tensor, timestep: Tensor) -> Tensor:
    noisy: Tensor = self.scheduler.add_noise(*(each.flatten(0, 1) for each in (clean, noise, timestep)))
    return noisy.detach().unflatten(0, clean.shape[:2])


def velocities(self: Any, conditional: Any, unconditional: Any, **inputs: Any) -> dict[str, Any]:
    """The loss' arguments from both scores, which return (velocity, x0)."""

    def velocity(network: Any, condition: Any) -> Tensor:
        flow: Tensor = network(conditional_dict=condition, **inputs)[0]
        return flow

    return {
        "fake": velocity(self.fake_score, conditional),
        "fake_uncond": velocity(self.fake_score, unconditional) if self.fake_guidance_scale != 0.0 else None,
        "fake_guidance_scale": 1 + self.fake_guidance_scale,
        "teacher": velocity(self.real_score, conditional),
        "teacher_uncond": velocity(self.real_score, unconditional),
        "guidance_scale": 1 + self.real_guidance_scale,
    }


def replace_conversions(integration: Integration, module: str, *velocity_networks: str) -> None:
    """In the module of the networks' wrapper. Losses from velocities contain the conversion of these networks."""
    if velocity_networks:
        integration.absorbs(module, *TO_X0, of=velocity_networks)
    integration.replaces(module, *TO_X0)(convert_flow_pred_to_x0)
    integration.replaces(module, "WanDiffusionWrapper._convert_x0_to_flow_pred", "4f772098c9e3")(
        convert_x0_to_flow_pred
    )


def convert_flow_pred_to_x0(self: Any, flow_pred: Tensor, xt: Tensor, timestep: Tensor) -> Any:
    return to_x0(flow_pred, xt, nearest_sigma(self.scheduler, timestep))


def convert_x0_to_flow_pred(scheduler: Any, x0_pred: Tensor, xt: Tensor, timestep: Tensor) -> Any:
    return from_x0(x0_pred, xt, nearest_sigma(scheduler, timestep))


def pred_noise_to_pred_video(pred_noise: Tensor, noise_input_latent: Tensor, timestep: Tensor, scheduler: Any) -> Any:
    sigma = nearest_sigma(scheduler, timestep.flatten().expand(len(pred_noise)))
    return to_x0(pred_noise, noise_input_latent.to(pred_noise.device), sigma)


def masked_critic_loss(
    self: Any, x: Tensor, x_pred: Any, noise: Tensor, noise_pred: Any, alphas_cumprod: Any, timestep: Any,
    gradient_mask: Tensor | None = None, **kwargs: Any,
) -> Tensor:  # fmt: skip
    """The mean square of the flow minus noise - x, of the elements that the mask keeps."""
    flow, weight, count = kwargs["flow_pred"], None, None
    if gradient_mask is not None:
        mask = spread(gradient_mask, flow)
        weight, count = mask.to(flow.dtype), mask.expand_as(flow).sum()
    loss: Tensor = fdk.denoising_loss(flow, x, noise, target=TARGETS["flow"], weight=weight, count=count)
    return in_trainers_dtype(loss, flow, noise, x)


def critic_loss(
    self: Any, x: Tensor, x_pred: Any, noise: Tensor, noise_pred: Any, alphas_cumprod: Any, timestep: Any, **kwargs: Any
) -> Tensor:
    """The same of all elements: these trainers' loss has no mask."""
    return masked_critic_loss(
        self, x, x_pred, noise, noise_pred, alphas_cumprod, timestep, flow_pred=kwargs["flow_pred"]
    )


def is_of_velocity(self: Any) -> bool:
    """Whether the critic has the trainers' mean square of velocities, and no other loss or subclass."""
    return type(self.denoising_loss_func) is importlib.import_module("utils.loss").FlowPredLoss


def velocity_loss(self: Any, flow: Tensor, clean: Tensor, noise: Tensor, timestep: Tensor, context: int = 0) -> Tensor:
    """The mean square of r·flow minus noise - x, without the first frames if they are context.

    r is the critic's σ, with which the trainer converts to x0, over the generator's, with which it converts back.
    """
    ratio = nearest_sigma(_scheduler(self.fake_score), timestep) / nearest_sigma(self.scheduler, timestep)
    ratio[:, :context] = 1
    weight = ratio.square()
    weight[:, :context] = 0
    loss: Tensor = fdk.denoising_loss(
        flow, clean, noise, target=(-1 / ratio, 1 / ratio), weight=weight, count=clean[:, context:].numel()
    )
    return in_trainers_dtype(loss, flow, noise, clean)


def nearest_sigma(scheduler: Any, timestep: Tensor) -> Tensor:
    """σ at the nearest of the scheduler's timesteps, float64, shaped like `timestep`."""
    timesteps, sigmas = (
        # A small table is copied to a GPU in its stream: without non_blocking the host would wait for all before it.
        table.to(timestep.device, torch.float64, non_blocking=timestep.device.type != "cpu")
        for table in (scheduler.timesteps, scheduler.sigmas)
    )
    return sigmas[(timesteps - timestep.unsqueeze(-1)).abs().argmin(-1)]


def common_sigma(teacher: Any, fake: Any, timestep: Tensor) -> Tensor:
    """σ of two networks or schedulers with the same table."""
    teacher, fake = (_scheduler(each) for each in (teacher, fake))
    if teacher is not fake and not torch.equal(teacher.sigmas.cpu(), fake.sigmas.cpu()):
        raise RuntimeError(
            "the schedulers of the real and the fake score have different sigmas, as with different timestep_shift; "
            "fdkernels' loss needs one table for both: undo() the adapter"
        )
    return nearest_sigma(teacher, timestep)


def _scheduler(holder: Any) -> Any:
    """That of a network in any wrapper, of which DDP does not hand attributes on; a scheduler's is itself."""
    modules = holder.modules() if isinstance(holder, nn.Module) else ()
    return next((each.scheduler for each in modules if hasattr(each, "scheduler")), holder)
