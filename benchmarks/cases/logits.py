"""The adversarial losses, of logits: FastGen's (34f30e8), and Self-Forcing's relativistic loss (33593df), in eager
PyTorch."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import mse_loss, softplus

import fdkernels as fdk
from benchmarks.cases.exact import doubles
from benchmarks.cases.formula import Draw, Formula, Inputs
from benchmarks.cases.shapes import DTYPES, Case


def fastgen_generator(fake: Tensor) -> Tensor:
    return softplus(-fake).mean()


def fastgen_discriminator(fake: Tensor, real: Tensor) -> Tensor:
    return softplus(fake).mean() + softplus(-real).mean()


def self_forcing_relativistic(fake: Tensor, real: Tensor) -> Tensor:
    return softplus(fake - real).mean()


def fastgen_r1(real: Tensor, near: Tensor) -> Tensor:
    return mse_loss(real, near)


def logits(case: Case, draw: Draw) -> Inputs:
    """`student` and `teacher` are logits of fake and real samples, both with a gradient. `fake` is for the measurement
    of the bandwidth alone."""
    first, second, third = (draw.normal(*case.shape).to(DTYPES[case.dtype]) for _ in range(3))
    nothing = torch.empty(0, device=draw.device)
    return Inputs(first.requires_grad_(), second.requires_grad_(), third, nothing, nothing)


def _exact(slope: Any) -> Any:
    """Of the derivative of the mean by the first logits."""

    def gradient(v: Inputs) -> Tensor:
        first, second = doubles(v.student, v.teacher)
        return slope(first, second) / first.numel()

    return gradient


_PAIRS: dict[str, Any] = {
    "inputs": logits, "images": 2, "written": 2, "reread": 0, "leaves": ("student", "teacher"),
    "call": lambda chain, v, _: chain(v.student, v.teacher),
}  # fmt: skip

LOGITS = (
    Formula(
        "gan_generator", "generator_loss", "the generator's logistic loss", "fastgen", fastgen_generator,
        call=lambda chain, v, _: chain(v.student),
        ours=lambda v, _, backend: fdk.generator_loss(v.student, backend=backend),
        exact=_exact(lambda fake, _: -torch.sigmoid(-fake)), inputs=logits, images=1, reread=0,
    ),
    Formula(
        "gan_discriminator", "discriminator_loss", "the discriminator's logistic loss, both gradients", "fastgen",
        fastgen_discriminator,
        ours=lambda v, _, backend: fdk.discriminator_loss(v.student, v.teacher, backend=backend),
        exact=_exact(lambda fake, _: torch.sigmoid(fake)), **_PAIRS,
    ),
    Formula(
        "relativistic", "discriminator_loss", "the relativistic discriminator's loss, both gradients", "self_forcing",
        self_forcing_relativistic,
        ours=lambda v, _, backend: fdk.discriminator_loss(v.student, v.teacher, kind="relativistic", backend=backend),
        exact=_exact(lambda fake, real: torch.sigmoid(fake - real)), **_PAIRS,
    ),
    Formula(
        "r1", "gradient_penalty", "approximate R1 as FastGen has it, both gradients", "fastgen", fastgen_r1,
        ours=lambda v, _, backend: fdk.gradient_penalty(v.student, v.teacher, backend=backend),
        exact=_exact(lambda real, near: 2 * (real - near)), **_PAIRS,
    ),
)  # fmt: skip
