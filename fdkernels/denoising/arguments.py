"""The argument list of the op `denoising` (C++: `csrc/denoising/arguments.h`), its outputs and checks."""

from __future__ import annotations

from typing import Annotated, NamedTuple

import torch
from torch import Tensor

from fdkernels._op.arguments import ArgumentList, Choice, Flag, FloatTable, Kind, Number, Samples, Scalar
from fdkernels._op.operands import check, refuse
from fdkernels._op.outputs import loss_outputs


class DenoisingArguments(NamedTuple):
    """The arguments of `denoising`."""

    pred: Samples
    x0: Samples
    noise: Samples
    prediction: Kind
    """Of pred; affine: the target is alpha·x0 + sigma·noise."""
    alpha: FloatTable
    sigma: FloatTable
    """The levels. If a table has no entries, fixed_alpha or fixed_sigma takes its place."""
    fixed_alpha: Number
    fixed_sigma: Number
    sigma_data: Number
    weight: FloatTable
    reduction: Annotated[Choice, "mean", "sum", "none"]
    divisor: Scalar | None
    """N of the mean; None: the number of elements."""
    with_grad: Flag

    def is_wide(self) -> bool:
        """Whether the arithmetic is in float64."""
        return any(v.dtype == torch.float64 for v in (self.pred, self.x0, self.noise))


DENOISING = ArgumentList(DenoisingArguments)


def denoising_outputs(call: DenoisingArguments) -> tuple[Tensor, Tensor, Tensor]:
    """(loss, gradient, unscale), uninitialized; an output that the call does not ask for is empty."""
    loss, gradient, unscale = loss_outputs(call.pred, call.reduction, (call.pred, call.with_grad))
    return loss, gradient, unscale


def check_denoising(call: DenoisingArguments) -> None:
    """Check a raw call: each argument against its kind, then what arguments require of each other."""
    check(DENOISING, call)
    if call.divisor is not None and call.reduction != "mean":
        refuse("divisor", f"None with reduction {call.reduction}", call.divisor)
