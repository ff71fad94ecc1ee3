"""What Self-Forcing and the trainers that follow it do before the loss: draw timesteps, add noise, run the scores."""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import Tensor

from fdkernels.integrations._flow import to_x0

CONVERSION = "WanDiffusionWrapper._convert_flow_pred_to_x0"


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


def convert_flow_pred_to_x0(self: Any, flow_pred: Tensor, xt: Tensor, timestep: Tensor) -> Tensor:
    return to_x0(flow_pred, xt, nearest_sigma(self.scheduler, timestep))


def kept(read: Any) -> Any:
    """`read` of tables, which keeps what it returns: a copy in each step would make the host wait.

    Tables are few and are hashed by identity; a version counts the writes in place. A compiler traces no cache, and an
    inference tensor counts nothing.
    """
    cached = functools.lru_cache(maxsize=16)(lambda versions, *tables, **options: read(*tables, **options))

    def reader(*tables: Tensor, **options: Any) -> Any:
        if torch.compiler.is_compiling() or any(table.is_inference() for table in tables):
            return read(*tables, **options)
        return cached(tuple(table._version for table in tables), *tables, **options)

    return reader


@kept
def on_device(table: Tensor, device: torch.device) -> Tensor:
    return table.to(device, torch.float64)


@kept
def are_equal(first: Tensor, second: Tensor) -> bool:
    return torch.equal(first.cpu(), second.cpu())


def nearest_sigma(scheduler: Any, timestep: Tensor) -> Tensor:
    """σ at the nearest of the scheduler's timesteps, float64, shaped like `timestep`."""
    timesteps, sigmas = (on_device(table, device=timestep.device) for table in (scheduler.timesteps, scheduler.sigmas))
    return sigmas[(timesteps - timestep.unsqueeze(-1)).abs().argmin(-1)]


def scheduler_of(network: Any) -> Any:
    """The scheduler of a network, also of one in DDP, which does not hand attributes on."""
    return next(module.scheduler for module in network.modules() if hasattr(module, "scheduler"))


def common_sigma(teacher: Any, fake: Any, timestep: Tensor) -> Tensor:
    """σ of two schedulers with the same table."""
    if teacher is not fake and not are_equal(teacher.sigmas, fake.sigmas):
        raise RuntimeError(
            "the schedulers of the real and the fake score have different sigmas, as with different timestep_shift; "
            "fdkernels' loss needs one table for both: undo() the adapter"
        )
    return nearest_sigma(teacher, timestep)
