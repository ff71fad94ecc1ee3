"""How tests compare a trainer's own function, fdkernels' in its place, and the formula in float64."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fdkernels import testing

SEEDS = range(5)
DTYPES = (torch.float32, torch.bfloat16)
FP32 = 1e-5  # relative, of loss and gradients


class Outcome(NamedTuple):
    loss: Tensor
    gradients: list[Tensor]


def run(function: Callable[..., Tensor], wrt: list[Tensor], *args: Any, **kwargs: Any) -> Outcome:
    """The loss and its gradients with respect to the leaves `wrt`."""
    loss = function(*args, **kwargs)
    return Outcome(loss.detach(), list(torch.autograd.grad(loss, wrt)))


def compare(theirs: Outcome, ours: Outcome, exact: Outcome, dtype: torch.dtype) -> None:
    """float32: equal up to rounding. bfloat16: ours is closer to float64, and as close as one rounding."""
    assert ours.loss.dtype == theirs.loss.dtype
    error, other = (abs(each.loss.double() / exact.loss - 1).item() for each in (ours, theirs))
    if dtype == torch.float32:
        assert error < FP32 and other < FP32, (error, other)
    for mine, peer, true in zip(ours.gradients, theirs.gradients, exact.gradients, strict=True):
        assert mine.dtype == peer.dtype
        error, other = testing.relative_l2(mine, true), testing.relative_l2(peer, true)
        if dtype == torch.float32:
            assert error < FP32 and other < FP32, (error, other)
        else:
            assert error < 2.5e-3 and error < other, (error, other)


def normal(generator: torch.Generator, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


def predictions(seed: int, *shape: int, gap: float = 0.3) -> tuple[Tensor, Tensor, Tensor]:
    """(student, teacher, fake) in float64; their distances differ from sample to sample."""
    generator = torch.Generator().manual_seed(seed)
    error = torch.linspace(0.05, 0.5, shape[0], dtype=torch.float64).view(-1, *(1,) * (len(shape) - 1))
    student = normal(generator, *shape)
    teacher = student + error * normal(generator, *shape)
    return student, teacher, teacher + gap * error * normal(generator, *shape)


def leaf(v: Tensor, dtype: torch.dtype) -> Tensor:
    return v.detach().to(dtype).clone().requires_grad_()


def wide(v: Tensor) -> Tensor:
    """The same numbers in float64, a leaf if v is one."""
    return v.detach().double().requires_grad_(v.requires_grad)
