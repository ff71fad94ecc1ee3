"""Schedulers of diffusers in many settings, with their own noising and their own conversion of outputs to x0."""

from __future__ import annotations

import copy
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch

diffusers = pytest.importorskip("diffusers")

SHAPE = (4, 3, 2, 5)
VP = ("epsilon", "v_prediction", "sample")
FLOW = ("flow_prediction", "epsilon", "v_prediction", "sample")
NO_EPSILON = ("flow_prediction", "v_prediction", "sample")
QUIET = {"clip_sample": False}


@dataclass(frozen=True)
class Setup:
    """A scheduler of diffusers, its configuration, and the steps of set_timesteps (None: not called)."""

    name: str
    kinds: tuple[str, ...] = VP
    config: dict = field(default_factory=dict)
    steps: int | None = None
    options: dict = field(default_factory=dict)  # for set_timesteps

    def make(self, kind: str) -> Any:
        config = self.config if kind == "velocity" else {**self.config, "prediction_type": kind}
        scheduler = getattr(diffusers, f"{self.name}Scheduler")(**config)
        if self.steps is not None or self.options:
            scheduler.set_timesteps(self.steps, **self.options)
        return scheduler


def solvers(**config) -> list[Setup]:
    names = ("DPMSolverMultistep", "DPMSolverSinglestep", "UniPCMultistep", "DEISMultistep")
    return [Setup(name, VP, config, 8) for name in names]


def flow_solvers(steps: int = 8, **config) -> list[Setup]:
    config = {"use_flow_sigmas": True, **config}
    names = ("DPMSolverMultistep", "DPMSolverSinglestep", "DEISMultistep")
    # UniPC begins at alpha = 1e-6, where epsilon is refused.
    return [*(Setup(name, FLOW, config, steps) for name in names), Setup("UniPCMultistep", NO_EPSILON, config, steps)]


def matching(name: str, **config) -> list[Setup]:
    return [Setup(name, ("velocity",), config, steps) for steps in (None, 8)]


DYNAMIC = {"use_dynamic_shifting": True}
SETUPS = [
    *(Setup(name, VP, QUIET, steps) for name in ("DDPM", "DDIM", "LCM") for steps in (None, 10)),
    *(Setup("TCD", VP, {}, steps) for steps in (None, 10)),
    *(Setup("PNDM", VP[:2], {"set_alpha_to_one": True}, steps) for steps in (None, 10)),
    Setup("DDPM", VP[1:], {**QUIET, "rescale_betas_zero_snr": True}),
    Setup("DDIM", VP, {**QUIET, "beta_schedule": "scaled_linear"}),
    *(Setup(name, VP, {}, steps) for name in ("EulerDiscrete", "HeunDiscrete", "LMSDiscrete") for steps in (None, 8)),
    *(Setup("EulerAncestralDiscrete", VP[:2], {}, steps) for steps in (None, 8)),
    *(Setup(name, VP[:2], {"use_karras_sigmas": True}, 8) for name in ("EulerDiscrete", "HeunDiscrete", "LMSDiscrete")),
    *(Setup("EulerDiscrete", ("v_prediction",), {"timestep_type": "continuous"}, steps) for steps in (None, 8)),
    *(Setup("EulerDiscrete", VP, {"rescale_betas_zero_snr": True}, steps) for steps in (None, 8)),
    Setup("EulerDiscrete", ("original_sample",), {"timestep_spacing": "trailing"}, 8),
    *solvers(),
    *solvers(use_karras_sigmas=True),
    Setup("UniPCMultistep", VP, {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}, 8),
    *flow_solvers(),
    *flow_solvers(flow_shift=5.0),
    *flow_solvers(1000, flow_shift=8.0),  # several entries of one timestep, each with its own sigma
    Setup("UniPCMultistep", NO_EPSILON, {"use_flow_sigmas": True, "use_karras_sigmas": True}, 8),
    *(Setup("EDMEuler", VP[:2], {"sigma_data": data}, steps) for data in (0.5, 1.3) for steps in (None, 8)),
    *(Setup("EDMDPMSolverMultistep", VP[:2], {"sigma_schedule": "exponential"}, steps) for steps in (None, 8)),
    *matching("FlowMatchEulerDiscrete"),
    *matching("FlowMatchEulerDiscrete", shift=3.0),
    *matching("FlowMatchHeunDiscrete", shift=3.0),
    *matching("FlowMatchLCM", shift=3.0),
    Setup("FlowMatchEulerDiscrete", ("velocity",), DYNAMIC),
    Setup("FlowMatchEulerDiscrete", ("velocity",), DYNAMIC, 8, {"mu": 1.1}),
    Setup("FlowMatchEulerDiscrete", ("velocity",), {"use_karras_sigmas": True, "shift_terminal": 0.1}, 8),
    # Sigmas that are not timesteps/1000.
    Setup("FlowMatchEulerDiscrete", ("velocity",), {}, None,
          {"timesteps": [900, 500, 300, 20], "sigmas": [0.99, 0.7, 0.2, 0.1]}),
]  # fmt: skip


def normal(seed: int) -> torch.Tensor:
    return torch.randn(SHAPE, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def some_timesteps(scheduler) -> torch.Tensor:
    """The first two, a middle one and the last but one: in some tables no step follows the last."""
    if not hasattr(scheduler, "sigmas"):
        return torch.tensor([0, 1, 500, 999])
    timesteps = scheduler.timesteps
    return timesteps[torch.tensor([0, 1, len(timesteps) // 2, len(timesteps) - 2])]


def each(function, *tensors: torch.Tensor) -> torch.Tensor:
    """Call `function` sample by sample: a scheduler's step takes one timestep."""
    return torch.cat([function(*(tensor[b : b + 1] for tensor in tensors)) for b in range(len(tensors[0]))])


def noised(scheduler, x0: torch.Tensor, noise: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
    def one(x0, noise, t):
        own = copy.deepcopy(scheduler)
        if hasattr(own, "add_noise"):
            return own.add_noise(x0, noise, t)
        return own.scale_noise(x0, t, noise)

    return each(one, x0, noise, t)


def denoised(scheduler, noisy: torch.Tensor, output: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
    """The x0 that the scheduler itself computes, with its tables in float64."""
    name = type(scheduler).__name__.removesuffix("Scheduler")
    if hasattr(scheduler, "convert_model_output"):
        how = by_conversion
    elif name.startswith("FlowMatch"):
        how = by_last_step
    else:
        how = {"PNDM": pndm, "LCM": lcm, "TCD": tcd}.get(name, by_step)

    def one(noisy, output, t):
        own = copy.deepcopy(scheduler)
        for table in ("alphas_cumprod", "sigmas"):
            if hasattr(own, table):
                setattr(own, table, getattr(own, table).double())
        return how(own, noisy, output, t[0]).double()

    return each(one, noisy, output, t)


def by_step(own, noisy, output, t):
    own.is_scale_input_called = True
    if not hasattr(own, "sigmas"):
        own.num_inference_steps = 10 if "DDIM" in type(own).__name__ else None  # for prev_sample, not for x0
        t = int(t)
    return own.step(output, t, noisy).pred_original_sample


def by_conversion(own, noisy, output, t):
    own._init_step_index(t)
    found = own.convert_model_output(output, sample=noisy)
    if "DEIS" not in type(own).__name__:
        return found
    alpha, sigma = own._sigma_to_alpha_sigma_t(own.sigmas[own.step_index])
    return (noisy - sigma * found) / alpha  # DEIS converts to the noise


def by_last_step(own, noisy, output, t):
    """A step to sigma 0 ends at x0."""
    index = own.index_for_timestep(t)
    own.sigmas = torch.cat((own.sigmas[: index + 1], torch.zeros(1)))
    own.dt = None
    return own.step(output, t, noisy).prev_sample


def pndm(own, noisy, output, t):
    return own._get_prev_sample(noisy, int(t), -1, output)  # a step to alpha = 1 ends at x0


def lcm(own, noisy, output, t):
    own.num_inference_steps, own._step_index, own.timesteps = 1, 0, t.reshape(1)
    own.get_scalings_for_boundary_condition_discrete = lambda t: (0.0, 1.0)  # factors of x_t and x0 in `denoised`
    return own.step(output, int(t), noisy).denoised


def tcd(own, noisy, output, t):
    """With eta = 0 the last step ends at alphas_cumprod[0]. That is 1 here, so the step ends at x0."""
    own.num_inference_steps, own._step_index, own.timesteps = 1, 0, t.reshape(1)
    own.alphas_cumprod = torch.cat((torch.ones(1), own.alphas_cumprod))
    return own.step(output, int(t) + 1, noisy, eta=0.0).pred_noised_sample
