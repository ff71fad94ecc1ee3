"""The argument list of the op `adversarial` (C++: `csrc/adversarial/arguments.h`), its outputs and checks."""

from __future__ import annotations

import math
from typing import Annotated, NamedTuple

from torch import Tensor

from fdkernels._op.arguments import ArgumentList, Choice, Flag, Number, Samples
from fdkernels._op.operands import check, refuse
from fdkernels._op.outputs import loss_outputs

PAIRED = ("relativistic", "square")
"""The kinds that need both inputs, and combine their elements in pairs."""


class AdversarialArguments(NamedTuple):
    """The arguments of `adversarial`: one or two sets of logits."""

    logits: Samples
    others: Samples | None
    """Shaped like logits."""
    kind: Annotated[Choice, "logistic", "hinge", "linear", "relativistic", "square"]
    raised: Flag
    """Whether a lower loss means higher logits (and lower others), as for a generator's fake logits."""
    bound: Number
    """Logits and others are clamped to [-bound, bound] first; 0: they are not."""
    sigma: Number
    """The loss is divided by sigma²."""
    reduction: Annotated[Choice, "mean", "sum", "none"]
    with_grad: Flag
    with_others_grad: Flag

    def divisor(self) -> float | Tensor:
        """What the sum of a result's elements is divided by."""
        batch, n = self.logits.shape[0], math.prod(self.logits.shape[1:])
        return {"mean": batch * n, "none": n, "sum": 1}[self.reduction] * self.sigma * self.sigma

    def headroom(self) -> float:
        """A power of two by which a float16 gradient may grow further: no derivative is above 1, but for square's."""
        return 1.0 if self.kind == "square" else 32768.0


ADVERSARIAL = ArgumentList(AdversarialArguments)


def adversarial_outputs(call: AdversarialArguments) -> tuple[Tensor, ...]:
    """(loss, gradient, unscale, others' gradient, its unscale), uninitialized; an output that the call does not ask for
    is empty."""
    gradients = (call.logits, call.with_grad), (call.others, call.with_others_grad)
    return tuple(loss_outputs(call.logits, call.reduction, *gradients))


def check_adversarial(call: AdversarialArguments) -> None:
    """Check a raw call: each argument against its kind, then what arguments require of each other."""
    check(ADVERSARIAL, call)
    if call.others is None and (call.kind in PAIRED or call.with_others_grad):
        refuse("others", "a tensor, got None")
