"""Inputs of an op, its call on a backend, and what the oracle says of it: what every contract test is written in."""

from __future__ import annotations

import copy
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

import fdkernels as fdk
from fdkernels import testing
from tests import device, oracle

ORDER = ("student", "teacher", "fake", "logits", "t")


@dataclass
class Outcome:
    """What a backend returned: the loss, the student's gradient, the figures, the normalizer's state afterwards."""

    loss: Tensor
    grad: Tensor
    stats: Any = None
    mean: Tensor | None = None


@dataclass
class Case:
    """One call of `fused_fdiv_loss`: its tensors by name, and its options."""

    student: Tensor
    teacher: Tensor
    fake: Tensor
    logits: Tensor | None = None
    t: Tensor | None = None
    options: dict[str, Any] = field(default_factory=dict)

    def but(self, **changes: Any) -> Case:
        """A copy with other tensors or options."""
        tensors = {name: changes.pop(name) for name in ORDER if name in changes}
        return replace(self, **tensors, options={**self.options, **changes})

    def on(self, where: str | torch.device | None = None) -> Case:
        """A copy with every tensor on another device, the run's own if none is named."""
        tensors = {name: device.place(getattr(self, name), where) for name in ORDER}
        return replace(self, **tensors, options=device.place(self.options, where))

    def fresh_options(self) -> dict[str, Any]:
        """The options, with a normalizer of its own, so that calls do not see each other's state."""
        options = dict(self.options)
        if options.get("normalizer") is not None:
            options["normalizer"] = copy.deepcopy(options["normalizer"])
        return options

    def call(self, backend: str, student: Tensor | None = None, **changes: Any) -> Any:
        """The loss alone, with this case's own normalizer; computed on the run's device."""
        student = self.student if student is None else student
        tensors = (student, self.teacher, self.fake, self.logits, self.t)
        loss = device.on_device(fdk.fused_fdiv_loss)
        return loss(*tensors, backend=backend, **{**self.options, **changes})

    def run(self, backend: str, upstream: Tensor | None = None, stats: bool = False) -> Outcome:
        """Forward and backward on a copy of the normalizer; the student's strides are kept."""
        return replace(self, options=self.fresh_options()).step(backend, upstream, stats)

    def step(self, backend: str, upstream: Tensor | None = None, stats: bool = False) -> Outcome:
        """Forward and backward with this case's own normalizer, as a trainer's step."""
        student = self.student.detach().requires_grad_()
        loss = self.call(backend, student, return_stats=stats)
        loss, figures = loss if stats else (loss, None)
        if upstream is None and loss.dim():
            upstream = torch.ones_like(loss)
        (grad,) = torch.autograd.grad(loss, student, upstream)
        normalizer = self.options.get("normalizer")
        return Outcome(loss.detach(), grad, figures, None if normalizer is None else normalizer.mean.clone())

    def expected(self) -> oracle.Expected:
        return oracle.score_difference(self.student, self.teacher, self.fake, self.logits, self.t, **self.options)

    def check(self, backend: str, upstream: Tensor | None = None) -> Outcome:
        """Run, and hold loss, gradient and normalizer to the oracle with the published tolerances."""
        outcome, expected = self.run(backend, upstream), self.expected()
        self.hold(outcome, expected, upstream)
        return outcome

    def hold(self, outcome: Outcome, expected: oracle.Expected, upstream: Tensor | None = None) -> None:
        normalized = self.options.get("normalizer") is not None
        wide = self.student.dtype == torch.float64
        assert outcome.grad.dtype == self.student.dtype
        assert outcome.loss.dtype == (torch.float64 if wide else torch.float32)
        factor = torch.ones((), dtype=torch.float64) if upstream is None else upstream.double()
        if factor.dim():
            factor = factor.reshape(-1, *(1,) * (self.student.dim() - 1))
        want = torch.from_numpy(expected.grad) * factor
        bound = None
        if expected.guidance_bound is not None:
            bound = torch.from_numpy(expected.guidance_bound) * factor.abs() * (2.0**-53 if wide else 2.0**-24)
        testing.assert_gradient(
            outcome.grad, want, upstream_is_one=upstream is None, normalized=normalized, bound=bound
        )
        if bound is None:
            assert_loss(outcome.loss, expected.loss, normalized)
        else:
            # Errors of g enter the loss times g: their sizes, weighed, bound it.
            torch.testing.assert_close(outcome.loss.double(), torch.as_tensor(expected.loss), rtol=1e-4, atol=0.0)
        if normalized:
            torch.testing.assert_close(
                outcome.mean.double(), torch.from_numpy(expected.weights.mean), rtol=1e-6, atol=0
            )


def assert_loss(actual: Tensor, expected: Any, normalized: bool = False) -> None:
    tolerance = testing.LOSS_RELATIVE[actual.dtype]
    # The loss is quadratic in the weight.
    tolerance = max(tolerance, 2 * testing.NORMALIZED_RELATIVE_L2) if normalized else tolerance
    torch.testing.assert_close(
        actual.double(), torch.as_tensor(expected, dtype=torch.float64), rtol=tolerance, atol=0.0, equal_nan=True
    )


def assert_stats(stats: fdk.FDivStats, expected: oracle.Expected) -> None:
    """Of a batch; expected figures are of one whose samples are all finite."""
    torch.testing.assert_close(stats.weight, torch.as_tensor(expected.h), rtol=1e-6, atol=0, equal_nan=True)
    figures = {name: float(getattr(stats, name)) for name in expected.stats}
    torch.testing.assert_close(figures, expected.stats, rtol=2e-6, atol=0, equal_nan=True)


def make(
    shape: tuple[int, ...] = (4, 3, 8, 8),
    dtype: torch.dtype = torch.float32,
    *,
    predictions: torch.dtype | None = None,
    heads: int | None = 2,
    gap: float = 0.3,
    logit_scale: float = 1.5,
    seed: int = 0,
    **options: Any,
) -> Case:
    """A batch such as training makes: teacher and fake close to each other, noise levels over the whole range.

    `heads=None` leaves logits out (and `divergence` is rkl unless weight= is given), 0 makes them (B,).
    """
    generator = torch.Generator().manual_seed(seed)

    def normal(*size: int) -> Tensor:
        return torch.randn(*size, generator=generator, dtype=torch.float64)

    student = normal(*shape)
    teacher = student + 0.5 * normal(*shape)
    fake = teacher + gap * normal(*shape)
    logits = t = None
    if heads is not None:
        logits = (logit_scale * normal(*((shape[0], heads) if heads else (shape[0],)))).float()
        t = torch.rand(shape[0], generator=generator)
    elif "weight" not in options:
        options.setdefault("divergence", "rkl")
    if dtype == torch.float64 and logits is not None:
        logits = logits.double()
    predictions = predictions or dtype
    return Case(student.to(dtype), teacher.to(predictions), fake.to(predictions), logits, t, options)


def normalizer(bins: int = 4, **options: Any) -> fdk.RatioNormalizer:
    """A normalizer with a history."""
    state = fdk.RatioNormalizer(bins, **options)
    with torch.no_grad():
        state.mean.copy_(torch.linspace(0.6, 1.9, bins))
    return state


def bits(tensor: Tensor) -> Tensor:
    """The elements as integers, contiguous."""
    return tensor.contiguous().view({2: torch.int16, 4: torch.int32, 8: torch.int64}[tensor.element_size()])


def same_bits(first: Tensor, second: Tensor) -> bool:
    """Equality that tells -0 from 0 and one NaN from another."""
    return first.dtype == second.dtype and first.shape == second.shape and torch.equal(bits(first), bits(second))
