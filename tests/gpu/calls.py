"""What the GPU tests share: shapes from practice, calls with every kind of option, comparisons."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

import fdkernels as fdk
from fdkernels import testing
from tests.cases import Case, Outcome, assert_loss, bits, make, normalizer, same_bits

# Backends with kernels for GPUs: every test here runs on each.
KERNELS = ("triton",)

PRACTICE = {
    "CIFAR": (64, 3, 32, 32),
    "ImageNet-64": (32, 3, 64, 64),
    "SD1.5": (8, 4, 64, 64),
    "SDXL": (8, 4, 128, 128),
    "Wan": (1, 16, 21, 60, 104),
    "pixels": (8, 3, 512, 512),
}
# One of each schedule, whatever the options are.
SCHEDULES = {"whole": PRACTICE["CIFAR"], "split": PRACTICE["SDXL"]}

OPTIONS = ("plain", "normalizer", "mask", "mask per row", "edm, guided", "none", "weight", "own divergence")


def batch(
    shape: tuple[int, ...], dtype: torch.dtype = torch.bfloat16, option: str = "normalizer", *, seed: int = 0
) -> Case:
    """A batch on the GPU; `seed` draws student, teacher, fake, logits and t alone."""
    generator = torch.Generator().manual_seed(1)

    def uniform(*size: int) -> Tensor:
        return torch.rand(*size, generator=generator)

    case = make(shape, dtype, seed=seed)
    changes: dict[str, Any] = {}
    if option == "normalizer":
        changes = {"normalizer": normalizer(4)}
    elif option == "mask":
        changes = {"mask": uniform(*shape) < 0.7, "nonfinite": "zero"}
    elif option == "mask per row":
        changes = {"mask": uniform(shape[0], 1, shape[2], *(1,) * (len(shape) - 3)) < 0.7}
    elif option == "edm, guided":
        noisy = (case.student + uniform(*shape)).to(dtype)
        changes = {"prediction": fdk.Prediction("edm", noisy, sigma=0.2 + uniform(shape[0]))}
        changes |= {"teacher_uncond": (case.teacher + 0.1).to(dtype), "guidance_scale": 2.5}
    elif option == "none":
        changes = {"reduction": "none"}
    elif option == "weight":
        changes = {"weight": uniform(shape[0]), "logits": None, "t": None}
    elif option == "own divergence":
        changes = {"divergence": fdk.Divergence("test_gpu_own", lambda log_ratio: 0.5 * log_ratio)}
    elif option != "plain":
        raise ValueError(option)
    return case.but(**changes).on()


def in_float64(case: Case, upstream: Tensor | None = None) -> Outcome:
    """What the reference gives in float64, from the same, already rounded, inputs."""
    wide = {name: getattr(case, name).double() for name in ("student", "teacher", "fake")}
    return case.but(**wide).run("reference", None if upstream is None else upstream.double())


def hold(case: Case, outcome: Outcome, expected: Outcome) -> None:
    """Loss, gradient at upstream 1 and normalizer within the published tolerances."""
    normalized = outcome.mean is not None
    testing.assert_gradient(outcome.grad.cpu(), expected.grad.cpu(), normalized=normalized)
    assert outcome.grad.dtype == case.student.dtype
    assert_loss(outcome.loss.cpu(), expected.loss.cpu(), normalized)
    if outcome.mean is not None:
        torch.testing.assert_close(outcome.mean, expected.mean, rtol=1e-6, atol=0)


def _pairs(first: Outcome, second: Outcome) -> list[tuple[Tensor, Tensor]]:
    pairs = [(first.loss, second.loss), (first.grad, second.grad)]
    if first.mean is not None:
        pairs.append((first.mean, second.mean))
    if first.stats is not None:
        pairs += zip(first.stats, second.stats, strict=True)
    return pairs


def same(first: Outcome, second: Outcome) -> bool:
    """Bit for bit."""
    return all(same_bits(a, b) for a, b in _pairs(first, second))


def differences(first: Outcome, second: Outcome) -> Tensor:
    """How many elements are not the same bit for bit: a device tensor, without a host sync."""
    return torch.stack([(bits(a) != bits(b)).sum() for a, b in _pairs(first, second)]).sum()
