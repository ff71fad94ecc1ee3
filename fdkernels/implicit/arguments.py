"""The argument list of the op `implicit` (C++: `csrc/implicit/arguments.h`), its outputs and checks."""

from __future__ import annotations

import math
from typing import Annotated, NamedTuple

import torch
from torch import Tensor

from fdkernels._op.arguments import ArgumentList, Choice, Flag, Number, PerSample, Samples
from fdkernels._op.operands import check
from fdkernels._op.outputs import loss_outputs


class ImplicitArguments(NamedTuple):
    """The arguments of `implicit`."""

    student: Samples
    teacher: Samples
    fake: Samples
    kind: Annotated[Choice, "sid", "sim"]
    alpha: Number
    """Of sid; 1 for sim."""
    floor: Number
    """Of sid: the least omega."""
    c: Number
    """Of sim."""
    score_scale: PerSample | None
    """Of sim: k. If it is None, fixed_score_scale takes its place. The same holds for the weights."""
    weight: PerSample | None
    """h1, of e·d."""
    square_weight: PerSample | None
    """h2, of e²."""
    fixed_score_scale: Number
    fixed_weight: Number
    fixed_square_weight: Number
    reduction: Annotated[Choice, "mean", "sum", "none"]
    with_student_grad: Flag
    with_teacher_grad: Flag
    with_fake_grad: Flag

    def is_wide(self) -> bool:
        """Whether the arithmetic is in float64."""
        return any(v.dtype == torch.float64 for v in (self.student, self.teacher, self.fake))


IMPLICIT = ArgumentList(ImplicitArguments)


def implicit_outputs(call: ImplicitArguments) -> tuple[Tensor, ...]:
    """(loss, then gradient and unscale of student, of teacher and of fake), uninitialized; an output that the call does
    not ask for is empty."""
    return tuple(loss_outputs(
        call.student, call.reduction, (call.student, call.with_student_grad), (call.teacher, call.with_teacher_grad),
        (call.fake, call.with_fake_grad),
    ))  # fmt: skip


def divisor_and_power(call: ImplicitArguments) -> tuple[float, float]:
    """N, and the power of two with which a float16 gradient is stored. An element of sim's gradient is as large as
    e / √(Σ e²), so the power is that of N·√n."""
    batch, elements = call.student.shape[0], math.prod(call.student.shape[1:])
    divisor = float(batch) if call.reduction == "mean" else 1.0
    if call.kind == "sim":
        return divisor, 2.0 ** (math.frexp(divisor * math.sqrt(elements))[1] - 1)
    if call.reduction != "sum":
        divisor *= elements
    return divisor, 2.0 ** (math.frexp(divisor)[1] - 1)


def check_implicit(call: ImplicitArguments) -> None:
    """Check a raw call: each argument against its kind."""
    check(IMPLICIT, call)
