"""Cases of the op implicit, and its expected results: PyTorch's own gradients of the formula, in float64."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from fdkernels import testing
from fdkernels.implicit.arguments import ImplicitArguments
from tests.cases import Inputs, Outcome, assert_loss
from tests.device import place


@dataclass
class ImplicitCase(Inputs):
    """One call of `score_implicit_loss`."""

    OP = "implicit"
    ORDER = ("student", "teacher", "fake")
    GRADIENTS = ("student", "teacher", "fake")

    student: Tensor
    teacher: Tensor
    fake: Tensor
    options: dict[str, Any] = field(default_factory=dict)

    def expected(self) -> tuple[Tensor, tuple[Tensor, ...]]:
        """(loss, gradients)"""
        inputs = [getattr(self, name).detach().cpu().double().requires_grad_() for name in self.GRADIENTS]
        loss = formula(self)(*inputs)
        return loss.detach(), torch.autograd.grad(loss.sum(), inputs)

    def hold(
        self, outcome: Outcome, expected: tuple[Tensor, tuple[Tensor, ...]], upstream: Tensor | None = None
    ) -> None:
        factor = torch.ones((), dtype=torch.float64) if upstream is None else upstream.double()
        if factor.dim():
            factor = factor.reshape(-1, *(1,) * (self.student.dim() - 1))
        assert outcome.loss.dtype == (torch.float64 if self.student.dtype == torch.float64 else torch.float32)
        # Two terms of an element's gradient may cancel. Their error is that of e and d: none in half precision.
        largest = (
            torch.stack([want.reshape(len(want), -1).abs().amax(1) for want in expected[1]]).amax(0)
            * factor.flatten().abs()
        )
        dtypes = {v.dtype for v in self.tensors().values()}
        bound = largest * (2.0**-40 if dtypes <= {torch.float16, torch.bfloat16} else 2.0**-22)
        for name, found, want in zip(self.GRADIENTS, outcome.grads, expected[1], strict=True):
            assert found.dtype == getattr(self, name).dtype
            each = bound.reshape(-1, *(1,) * (want.dim() - 1)) if found.element_size() == 2 else None
            testing.assert_gradient(found, want * factor, upstream_is_one=upstream is None, bound=each)
        assert_loss(outcome.loss, expected[0])


def formula(case: ImplicitCase) -> Callable[..., Tensor]:
    """The loss of a case as a function of student, teacher and fake; sid's divisor is that of the case's own inputs."""
    options = {"kind": "sid", "alpha": 1.2, "floor": 1e-5, "score_scale": None, "weight": None, "reduction": "mean"}
    options |= case.options
    batch = len(case.student)

    def each(value: Any) -> Tensor:
        return torch.as_tensor(1.0 if value is None else value, dtype=torch.float64).reshape(-1, 1)

    h1, h2 = options["weight"] if isinstance(options["weight"], tuple) else (options["weight"],) * 2
    x, tau = (v.detach().cpu().double().reshape(batch, -1) for v in (case.student, case.teacher))
    omega = (x - tau).abs().mean(1).clamp(min=options["floor"])

    def loss(student: Tensor, teacher: Tensor, fake: Tensor) -> Tensor:
        x, tau, f = (v.reshape(batch, -1) for v in (student, teacher, fake))
        if options["kind"] == "sid":
            difference = tau - f
            terms = difference * (each(h1) * (tau - x) - options["alpha"] * each(h2) * difference) / omega[:, None]
            return {"mean": terms.mean, "sum": terms.sum, "none": lambda: terms.mean(1)}[options["reduction"]]()
        score = each(options["score_scale"]) * (f - tau)
        of_student = each(options["score_scale"]) * (each(h1) * (tau - x) + each(h2) * (f - tau))
        # Zhou et al.'s square root of a sum of squares, as PyTorch differentiates it: also of a sum of 0, beside c².
        root = (score.square().sum(1) + options["c"] ** 2).sqrt()
        losses = -(score * of_student).sum(1) / root
        return {"mean": losses.mean, "sum": losses.sum, "none": lambda: losses}[options["reduction"]]()

    return loss


def make_implicit(
    shape: tuple[int, ...] = (4, 3, 8, 8),
    dtype: torch.dtype = torch.float32,
    *,
    predictions: torch.dtype | None = None,
    seed: int = 0,
    gap: float = 0.3,
    **options: Any,
) -> ImplicitCase:
    """Teacher and fake are close to each other."""
    generator = torch.Generator().manual_seed(seed)

    def normal() -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    student = normal()
    teacher = student + 0.5 * normal()
    fake = teacher + gap * normal()
    predictions = predictions or dtype
    if options.get("kind") == "sim":
        options = {"c": 0.5, "score_scale": torch.linspace(0.5, 2, shape[0]), **options}
    return ImplicitCase(student.to(dtype), teacher.to(predictions), fake.to(predictions), options)


def weighted_implicit(shape: tuple[int, ...], dtype: torch.dtype, **options: Any) -> ImplicitCase:
    """With two weights a sample."""
    h1 = 0.2 + torch.rand(shape[0], generator=torch.Generator().manual_seed(9))
    return make_implicit(shape, dtype, weight=(h1, 1 + 0.5 * h1.double()), **options)


def raw_implicit(dtype: torch.dtype = torch.float32, **changes: Any) -> ImplicitArguments:
    generator = torch.Generator().manual_seed(1)

    def per_sample(dtype: torch.dtype = torch.float32) -> Tensor:
        return 0.2 + torch.rand(4, generator=generator, dtype=dtype)

    case = make_implicit((4, 3, 6, 5), dtype)
    call = ImplicitArguments(
        student=case.student, teacher=case.teacher, fake=case.fake, kind="sim", alpha=1.0, floor=0.1, c=0.7,
        score_scale=per_sample(), weight=per_sample(torch.float64), square_weight=per_sample(), fixed_score_scale=1.5,
        fixed_weight=0.5, fixed_square_weight=0.7, reduction="mean", with_student_grad=True, with_teacher_grad=True,
        with_fake_grad=True,
    )  # fmt: skip
    return ImplicitArguments(*map(place, call._replace(**changes)))
