"""Shared by the GPU tests: shapes from practice, schedules, calls with every kind of option, comparisons."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor

import fdkernels as fdk
from fdkernels import testing
from fdkernels._op.views import as_table
from fdkernels.call_shape import CallShape
from fdkernels.fdiv.arguments import DTYPES
from tests.cases import Case, Outcome, assert_loss, bits, make, normalizer, same_bits
from tools.gpu_check.stage import PLAN

# Backends with kernels for GPUs: every test here runs on each.
KERNELS = ("native", "triton")
SCALE = {"native": "scale_kernel", "triton": "scale_kernel"}  # the kernel of a backward

PRACTICE = {
    "CIFAR": (64, 3, 32, 32),
    "ImageNet-64": (32, 3, 64, 64),
    "SD1.5": (8, 4, 64, 64),
    "SDXL": (8, 4, 128, 128),
    "Wan": (1, 16, 21, 60, 104),
    "pixels": (8, 3, 512, 512),
}


@dataclass(frozen=True)
class Schedule:
    """A way in which a backend spreads a call, with a shape that shows it and the kernels of that shape's forward."""

    backend: str
    name: str
    shape: tuple[int, ...]
    kernels: tuple[str, ...]
    plan: str = ""
    """The plan that native calls are made to take. Triton's plans follow from the shape."""

    def __str__(self) -> str:
        return self.name

    @contextlib.contextmanager
    def forced(self) -> Iterator[None]:
        """Calls inside the block take `plan`. A test's parameter `schedule` is in force throughout."""
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv(PLAN, self.plan)
            yield

    def batch(self, dtype: torch.dtype = torch.bfloat16, option: str = "normalizer", *, seed: int = 0) -> Case:
        return batch(self.shape, dtype, option, seed=seed)

    def step(self, case: Case) -> Outcome:
        """Forward and backward of a case under this schedule, with figures."""
        with self.forced():
            return case.step(self.backend, stats=True)


WHOLE, SPLIT = ("fdiv_fwd_kernel",), ("fdiv_reduce_kernel", "fdiv_apply_kernel")
CLUSTER, GRID = ("fdiv_cluster_kernel",), ("fdiv_grid_kernel",)
# Kernels that compute the weights before the forward: one launch, or three.
WEIGH_ONE = ("fdiv_weight_kernel",)
WEIGH = ("fdiv_ratios_kernel", "fdiv_logarithms_kernel", "fdiv_normalize_kernel")
# One schedule of each kind, whatever the options are.
SCHEDULES = (
    Schedule("triton", "whole", PRACTICE["CIFAR"], WHOLE),
    Schedule("triton", "split", PRACTICE["SDXL"], SPLIT),
    Schedule("native", "a block a sample", PRACTICE["CIFAR"], CLUSTER, "cluster:1"),
    Schedule("native", "a cluster a sample", PRACTICE["SDXL"], CLUSTER, "cluster:4"),
    Schedule("native", "the grid a sample", PRACTICE["Wan"], GRID, "grid:1"),
    # The next sample is loaded while the sums of this one are awaited.
    Schedule("native", "the grid, sample after sample", (5, 4, 128, 128), GRID, "grid:1"),
    # One team has three samples, the other two.
    Schedule("native", "a team of the grid a sample", (5, 4, 128, 128), GRID, "grid:2"),
)
# Larger than any GPU holds: part of each sample is read a second time.
READ_AGAIN = Schedule("native", "the grid, read again", (2, 3, 1792, 1792), GRID, "grid:1")

OPTIONS = ("plain", "normalizer", "mask", "mask per row", "edm, guided", "none", "weight", "own divergence", "count")
EVERY_OPTION = (
    *OPTIONS, "unequal bins", "eval", "multiplier per row", "no scale", "flow per channel", "epsilon, guided twice",
    "sum", "a bad sample", "a dropped sample",
)  # fmt: skip


def make_batch(
    shape: tuple[int, ...],
    dtype: torch.dtype = torch.bfloat16,
    option: str = "normalizer",
    *,
    predictions: torch.dtype | None = None,
    seed: int = 0,
) -> Case:
    """A batch on the CPU; `seed` draws only student, teacher, fake, logits and t."""
    generator = torch.Generator().manual_seed(1)

    def uniform(*size: int) -> Tensor:
        return torch.rand(*size, generator=generator)

    case = make(shape, dtype, predictions=predictions, seed=seed)
    rest = (1,) * (len(shape) - 3)
    changes: dict[str, Any] = {}
    if option == "normalizer":
        changes = {"normalizer": normalizer(4)}
    elif option == "unequal bins":
        changes = {"normalizer": normalizer(4, edges=torch.tensor([0.2, 0.35, 0.8])), "divergence": "kl"}
    elif option == "eval":
        changes = {"normalizer": normalizer(3).eval(), "divergence": "alpha(-0.7)", "normalize_weight": False}
    elif option == "mask":
        changes = {"mask": uniform(*shape) < 0.7, "nonfinite": "zero"}
    elif option == "count":
        mask = uniform(*shape) < 0.7
        changes = {"mask": mask, "count": (2 * mask.sum()).float()}  # half of a step; kernels read it on the device
    elif option == "mask per row":
        changes = {"mask": uniform(shape[0], 1, shape[2], *rest) < 0.7}
    elif option == "multiplier per row":
        changes = {"multiplier": 0.1 + uniform(shape[0], 1, shape[2], *rest)}
    elif option == "no scale":
        changes = {"scale": None}
    elif option == "edm, guided":
        noisy = (case.student + uniform(*shape)).to(dtype)
        changes = {"prediction": fdk.Prediction("edm", noisy, sigma=0.2 + uniform(shape[0]))}
        changes |= {"teacher_uncond": (case.teacher + 0.1).to(case.teacher.dtype), "guidance_scale": 2.5}
    elif option == "flow per channel":
        sigma = 0.1 + 0.8 * uniform(shape[0], shape[1], 1, *rest)
        noisy = (case.student + uniform(*shape)).to(dtype)
        changes = {"prediction": fdk.Prediction("flow_prediction", noisy, sigma=sigma), "divergence": "le_cam"}
    elif option == "epsilon, guided twice":
        noisy = (case.student + uniform(*shape)).to(dtype)
        changes = {"prediction": fdk.Prediction("epsilon", noisy, alpha=0.8, sigma=0.6)}
        changes |= {"teacher_uncond": (case.teacher + 0.1).to(case.teacher.dtype), "guidance_scale": 1.75}
        changes |= {"fake_uncond": (case.fake - 0.1).to(case.fake.dtype), "fake_guidance_scale": 0.5}
    elif option in ("none", "sum"):
        changes = {"reduction": option}
    elif option == "weight":
        changes = {"weight": uniform(shape[0]), "logits": None, "t": None}
    elif option == "own divergence":
        changes = {"divergence": fdk.Divergence("test_gpu_own", lambda log_ratio: 0.5 * log_ratio)}
    elif option in ("a bad sample", "a dropped sample"):
        fake = case.fake.clone()
        fake[1].view(-1)[-1] = torch.nan
        changes = {"fake": fake, "nonfinite": "propagate" if option == "a bad sample" else "zero"}
    elif option != "plain":
        raise ValueError(option)
    return case.but(**changes)


def batch(shape: tuple[int, ...], dtype: torch.dtype = torch.bfloat16, option: str = "normalizer", **more: Any) -> Case:
    """A batch on the GPU."""
    return make_batch(shape, dtype, option, **more).on()


def planned(case: Case, allowed: str = "auto", limits: Any = None) -> Any:
    """The plan (`fdkernels._core.plan`) of a case's forward on this GPU, or on one with other limits; without figures,
    which may need x_t.

    Raises:
        ValueError: nothing that is allowed can hold a sample.
    """
    from fdkernels import _core, devices

    limits = limits or devices.present(0)
    options, student = case.options, case.student
    prediction, state = options.get("prediction"), options.get("normalizer")
    is_dmd = options.get("scale", "dmd") is not None
    # PyTorch computes the weights of a caller's own divergence.
    logits = None if isinstance(options.get("divergence"), fdk.Divergence) else case.logits

    def table(name: str) -> tuple[int, ...]:
        return tuple(as_table(name, options[name], student, None).entries.shape)

    shape = CallShape(
        student.shape[0],
        student[0].numel(),
        student=DTYPES[student.dtype],
        teacher=DTYPES[case.teacher.dtype],
        fake=DTYPES[case.fake.dtype],
        teacher_uncond=DTYPES[options["teacher_uncond"].dtype] if "teacher_uncond" in options else None,
        fake_uncond=DTYPES[options["fake_uncond"].dtype] if "fake_uncond" in options else None,
        noisy=DTYPES[prediction.noisy.dtype] if prediction is not None and is_dmd else None,
        raw=prediction is not None,
        multiplier=table("multiplier")[1] if "multiplier" in options else 0,
        mask=table("mask") if "mask" in options else None,
        heads=0 if logits is None else logits.reshape(len(logits), -1).shape[1],
        bins=0 if logits is None or state is None else state.mean.numel(),
        counted="count" in options,
        dmd_scale=is_dmd,
        reduction=options.get("reduction", "mean"),
    )
    return _core.plan(shape, limits, allowed or "auto")


def kernel_name(name: str) -> str:
    """The bare name if it is one of our kernels: a profiler gives C++ names mangled or with their whole types."""
    found = re.search(r"(fdiv_[a-z]+|scale)_kernel", name)
    return found[0] if found else name


def in_float64(case: Case, upstream: Tensor | None = None) -> Outcome:
    """The reference's result in float64, from the same, already rounded, inputs."""
    wide = {name: getattr(case, name).double() for name in ("student", "teacher", "fake")}
    return case.but(**wide).run("reference", None if upstream is None else upstream.double())


def hold(case: Case, outcome: Outcome, expected: Outcome) -> None:
    """Compare loss, gradient at upstream 1 and normalizer within the published tolerances."""
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
    """Whether all results are equal bit for bit."""
    return all(same_bits(a, b) for a, b in _pairs(first, second))


def differences(first: Outcome, second: Outcome) -> Tensor:
    """How many elements differ in any bit: a device tensor, without a host sync."""
    return torch.stack([(bits(a) != bits(b)).sum() for a, b in _pairs(first, second)]).sum()
