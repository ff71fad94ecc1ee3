"""Test cases of the ops: inputs, the call on a backend, the comparison with the oracle. Contract tests use them."""

from __future__ import annotations

import copy
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

import torch
from torch import Tensor

import fdkernels as fdk
from fdkernels import testing
from fdkernels._op import registry
from tests import device, oracle

ORDER = ("student", "teacher", "fake", "logits", "t")


@dataclass
class Outcome:
    """What a backend returned: the loss (or an op's first result), gradients, figures, the normalizer's state after."""

    loss: Tensor
    grads: tuple[Tensor, ...] = ()
    stats: Any = None
    mean: Tensor | None = None

    @property
    def grad(self) -> Tensor:
        """The gradient of the first argument."""
        return self.grads[0]

    def cpu(self) -> Outcome:
        """A copy on the CPU, where it is compared with the oracle."""
        mean = None if self.mean is None else self.mean.cpu()
        return Outcome(self.loss.cpu(), tuple(grad.cpu() for grad in self.grads), self.stats, mean)

    def same_bits(self, other: Outcome) -> bool:
        return len(self._all()) == len(other._all()) and all(map(same_bits, self._all(), other._all()))

    def _all(self) -> list[Tensor]:
        mean = () if self.mean is None else (self.mean,)
        return [self.loss, *self.grads, *(self.stats or ()), *mean]


class Inputs:
    """A case of any op: tensors by name, and options. Each op defines its own `expected` and `hold`."""

    OP: ClassVar[str]
    ORDER: ClassVar[tuple[str, ...]]
    """The tensor arguments, in the public function's order."""
    GRADIENTS: ClassVar[tuple[str, ...]] = ()
    """The tensors that get a gradient."""
    PUBLIC: ClassVar[str | None] = None
    """The public function, where the op has several."""
    options: dict[str, Any]

    @classmethod
    def function(cls) -> Any:
        """The public function."""
        return getattr(fdk, cls.PUBLIC or registry.ops[cls.OP].public)

    def tensors(self) -> dict[str, Tensor]:
        """The case's tensors."""
        given = {name: getattr(self, name) for name in self.ORDER}
        return {name: tensor for name, tensor in given.items() if isinstance(tensor, Tensor)}

    def but(self, **changes: Any) -> Any:
        """A copy with other tensors or options."""
        tensors = {name: changes.pop(name) for name in self.ORDER if name in changes}
        return replace(self, **tensors, options={**self.options, **changes})

    def on(self, where: str | torch.device | None = None) -> Any:
        """A copy with every tensor on the device `where`; None means the run's device."""
        return self.but(**device.place({**self.tensors(), **self.options}, where))

    def fresh_options(self) -> dict[str, Any]:
        """The options with a copy of the normalizer, so that calls do not share state."""
        options = dict(self.options)
        if options.get("normalizer") is not None:
            options["normalizer"] = copy.deepcopy(options["normalizer"])
        return options

    def leaves(self) -> dict[str, Tensor]:
        """Copies of the tensors that get a gradient: same strides, requires_grad set."""
        return {name: getattr(self, name).detach().clone().requires_grad_() for name in self.GRADIENTS}

    def call(self, backend: str, first: Tensor | None = None, **changes: Any) -> Any:
        """The public function's result, computed on the run's device. The call updates this case's own normalizer."""
        case = self.but(**changes)
        given, *others = (getattr(case, name) for name in self.ORDER)
        function = device.on_device(self.function())
        named = dict(zip(self.ORDER[1:], others, strict=True))
        return function(given if first is None else first, backend=backend, **named, **case.options)

    def outcome(self, loss: Tensor, grads: Any = (), stats: Any = None) -> Outcome:
        """An Outcome with the normalizer's state as it is now."""
        state = self.state()
        return Outcome(loss.detach(), tuple(grads), stats, None if state is None else state.clone())

    def state(self) -> Tensor | None:
        """The state that a call changes: the normalizer's mean."""
        normalizer = self.options.get("normalizer")
        return None if normalizer is None else normalizer.mean

    def run(self, backend: str, upstream: Tensor | None = None, stats: bool = False) -> Outcome:
        """Forward and backward with a copy of the normalizer; the inputs keep their strides."""
        return self.but(**self.fresh_options()).step(backend, upstream, stats)

    def step(self, backend: str, upstream: Tensor | None = None, stats: bool = False) -> Outcome:
        """Forward and backward with this case's own normalizer, as in a training step."""
        leaves = {name: getattr(self, name).detach().requires_grad_() for name in self.GRADIENTS}
        result = self.call(backend, **leaves, **({"return_stats": True} if stats else {}))
        loss, figures = result if stats else (result, None)
        if upstream is None and loss.dim():
            upstream = torch.ones_like(loss)
        return self.outcome(loss, torch.autograd.grad(loss, (*leaves.values(),), upstream) if leaves else (), figures)

    def check(self, backend: str, upstream: Tensor | None = None) -> Outcome:
        """Run, and compare everything with the oracle at the published tolerances."""
        outcome, expected = self.run(backend, upstream), self.expected()
        self.hold(outcome, expected, upstream)
        return outcome

    def expected(self) -> Any:
        raise NotImplementedError

    def hold(self, outcome: Outcome, expected: Any, upstream: Tensor | None = None) -> None:
        raise NotImplementedError


@dataclass
class Case(Inputs):
    """One call of `fused_fdiv_loss`."""

    OP = "fdiv"
    ORDER = ORDER
    GRADIENTS = ("student",)

    student: Tensor
    teacher: Tensor
    fake: Tensor
    logits: Tensor | None = None
    t: Tensor | None = None
    options: dict[str, Any] = field(default_factory=dict)

    def expected(self) -> oracle.Expected:
        return oracle.score_difference(self.student, self.teacher, self.fake, self.logits, self.t, **self.options)

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
            # Guidance rounds at the size of its inputs: g has a larger error, and so has the loss.
            torch.testing.assert_close(outcome.loss.double(), torch.as_tensor(expected.loss), rtol=1e-4, atol=0.0)
        if normalized:
            assert_mean(outcome.mean, expected.weights)


@dataclass
class GanCase(Case):
    """With `gan_weight`: the logits get a gradient too."""

    GRADIENTS = ("student", "logits")

    def hold(self, outcome: Outcome, expected: oracle.Expected, upstream: Tensor | None = None) -> None:
        super().hold(outcome, expected, upstream)
        assert self.logits is not None and expected.logits_grad is not None
        factor = torch.ones((), dtype=torch.float64) if upstream is None else upstream.double()
        if factor.dim():
            factor = factor.reshape(-1, *(1,) * (self.logits.dim() - 1))
        assert outcome.grads[1].dtype == self.logits.dtype
        want = torch.from_numpy(expected.logits_grad) * factor
        testing.assert_gradient(outcome.grads[1], want, upstream_is_one=upstream is None)


@dataclass
class WeightCase(Inputs):
    """One call of `fdiv_weight`."""

    OP = "fdiv_weight"
    ORDER = ("logits", "t")

    logits: Tensor
    t: Tensor | None = None
    options: dict[str, Any] = field(default_factory=dict)

    def expected(self) -> oracle.Weights:
        return oracle.weights(self.logits, self.t, **self.options)

    def hold(self, outcome: Outcome, expected: oracle.Weights, upstream: Tensor | None = None) -> None:
        weight, normalized = outcome.loss, outcome.mean is not None
        wide = self.logits.dtype == torch.float64
        assert weight.dtype == (torch.float64 if wide else torch.float32) and weight.shape == self.logits.shape[:1]
        relative = 1e-13 if wide and not normalized else 1e-6
        testing.assert_weight(weight, torch.from_numpy(expected.weight), relative=relative)
        if normalized:
            assert_mean(outcome.mean, expected)


def assert_mean(mean: Tensor | None, expected: oracle.Weights) -> None:
    assert mean is not None
    torch.testing.assert_close(mean.double(), torch.from_numpy(expected.mean), rtol=1e-6, atol=0)


def assert_loss(actual: Tensor, expected: Any, normalized: bool = False) -> None:
    tolerance = testing.LOSS_RELATIVE[actual.dtype]
    # The loss is quadratic in the weight.
    tolerance = max(tolerance, 2 * testing.NORMALIZED_RELATIVE_L2) if normalized else tolerance
    torch.testing.assert_close(
        actual.double(), torch.as_tensor(expected, dtype=torch.float64), rtol=tolerance, atol=0.0, equal_nan=True
    )


def assert_stats(stats: fdk.FDivStats, expected: oracle.Expected) -> None:
    """Compare a batch's figures with the oracle's."""
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
    """A batch like one in training: teacher and fake are close to each other, t covers the whole range.

    `heads=None` leaves out logits and t (then `divergence` defaults to rkl, unless weight= is given). `heads=0` makes
    logits (B,).
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


def make_gan(shape: tuple[int, ...], dtype: torch.dtype = torch.float32, seed: int = 0, **options: Any) -> GanCase:
    """Logits in the student's dtype."""
    case = make(shape, dtype, seed=seed, **{"gan_weight": 0.3, **options})
    assert case.logits is not None
    return GanCase(case.student, case.teacher, case.fake, case.logits.to(dtype), case.t, case.options)


def normalizer(bins: int = 4, **options: Any) -> fdk.RatioNormalizer:
    """A normalizer that is no longer in its initial state."""
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
