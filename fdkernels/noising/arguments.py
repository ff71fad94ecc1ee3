"""The argument list of the op `noising` (C++: `csrc/noising/arguments.h`), its outputs and checks.

    result        y
    noisy         α·x + σ·noise             x is x0, y is x_t
    flow          (1-σ)·x + σ·noise         the same; α is not read
    x0            c·x + a·noise             x is a raw prediction and noise x_t: y is x0
    prediction    x/c - (a/c)·noise         x is x0 and noise x_t: y is the raw prediction

with x0 = a·x_t + c·prediction. noise is given, drawn from a seed, or absent, which counts as 0.
"""

from __future__ import annotations

from typing import Annotated, NamedTuple

import torch
from torch import Tensor

from fdkernels._op.arguments import ArgumentList, Choice, Flag, FloatTable, Kind, Number, Samples, Seed
from fdkernels._op.operands import check, refuse


class NoisingArguments(NamedTuple):
    """The arguments of `noising`."""

    x: Samples
    noise: Samples | None
    seed: Seed | None
    result: Annotated[Choice, "noisy", "flow", "x0", "prediction"]
    prediction: Kind
    """Not used for noisy and flow."""
    alpha: FloatTable
    sigma: FloatTable
    """The levels. If a table has no entries, fixed_alpha or fixed_sigma takes its place."""
    fixed_alpha: Number
    fixed_sigma: Number
    sigma_data: Number
    with_noise: Flag
    """Return the drawn noise too."""

    def is_wide(self) -> bool:
        """Whether the arithmetic is in float64."""
        return torch.float64 in (self.x.dtype, None if self.noise is None else self.noise.dtype)

    def kind(self) -> str:
        """The prediction kind whose coefficients make y: x_t takes its levels as they are."""
        return "affine" if self.result in ("noisy", "flow") else self.prediction

    def adjoint(self) -> NoisingArguments:
        """The call that maps y's gradient, as its x, to x's: y is linear in x."""
        return self._replace(noise=None, seed=None, with_noise=False)


NOISING = ArgumentList(NoisingArguments)


def noising_outputs(call: NoisingArguments) -> tuple[Tensor, Tensor]:
    """(y, the drawn noise or nothing), uninitialized."""
    x = call.x
    return x.new_empty(x.shape), x.new_empty(x.shape if call.with_noise else (0,))


def check_noising(call: NoisingArguments) -> None:
    """Check a raw call: each argument against its kind, then what arguments require of each other."""
    check(NOISING, call)
    if call.noise is not None and call.seed is not None:
        refuse("seed", "None beside noise", call.seed)
    if call.with_noise and call.seed is None:
        refuse("with_noise", "a seed beside it")
