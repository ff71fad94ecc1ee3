"""The argument lists of the ops `fdiv` and `fdiv_weight` (C++: `csrc/fdiv/arguments.h`), their outputs and checks."""

from __future__ import annotations

import math
from typing import Annotated, NamedTuple

import torch
from torch import Tensor

from fdkernels._op.arguments import (
    ArgumentList,
    Choice,
    Edges,
    Flag,
    FloatTable,
    Kind,
    Logits,
    MaskTable,
    Number,
    PerSample,
    Samples,
    Scalar,
    State,
)
from fdkernels._op.operands import check, refuse
from fdkernels._op.outputs import loss_outputs
from fdkernels.call_shape import CallShape

DTYPES = {torch.bfloat16: "bf16", torch.float16: "fp16", torch.float32: "fp32", torch.float64: "fp64"}

# weight_min, weight_mean, weight_max, effective_sample_size, ratio_mean, clip_fraction, out_of_range_fraction
WEIGHT_STATS = 7
# Then grad_norm, relative_gap, nonfinite_samples, generator_loss. The B weights follow.
STATS = WEIGHT_STATS + 4

Row = Annotated[
    Choice, "rkl", "kl", "js", "softened_rkl", "squared_hellinger", "jeffreys", "neyman", "pearson", "le_cam", "alpha"
]


class WeightArguments(NamedTuple):
    """The arguments of `fdiv_weight`, and a part of those of `fdiv`, which without logits reads only t of them."""

    logits: Logits | None = None
    t: PerSample | None = None
    ratio_mean: State | None = None
    """The normalizer's state, updated in place if `update` is set."""
    edges: Edges | None = None
    t_min: Number = 0.0
    t_max: Number = 1.0
    decay: Number = 0.0
    update: Flag = False
    divergence: Row = "rkl"
    amari_alpha: Number = 0.0
    log_ratio_min: Number = 0.0
    log_ratio_max: Number = 0.0
    normalize_weight: Flag = False

    def heads(self) -> int:
        """Logits per sample; 0 without logits."""
        if self.logits is None:
            return 0
        return self.logits.shape[1] if self.logits.dim() == 2 else 1

    def bins(self) -> int:
        """Bins of the normalizer that the call reads; 0 without one."""
        return 0 if self.logits is None or self.ratio_mean is None else self.ratio_mean.numel()


class FdivArguments(NamedTuple):
    """The arguments of `fdiv`."""

    student: Samples
    teacher: Samples
    fake: Samples
    teacher_uncond: Samples | None
    fake_uncond: Samples | None
    guidance_scale: Number
    fake_guidance_scale: Number
    noisy: Samples | None
    """x_t, if the call needs it."""
    prediction: Kind
    alpha: FloatTable
    sigma: FloatTable
    """alpha and sigma are the levels. If a table has no entries, fixed_alpha or fixed_sigma takes its place."""
    fixed_alpha: Number
    fixed_sigma: Number
    sigma_data: Number
    weight: PerSample | None
    dmd_scale: Flag
    eps: Number
    floor: Number
    kept_only: Flag
    multiplier: FloatTable
    mask: MaskTable
    zero_nonfinite: Flag
    reduction: Annotated[Choice, "mean", "sum", "none"]
    divisor: Scalar | None
    """N of the mean; None: the number of unmasked elements."""
    gan_logits: Logits | None
    """The logits of the generator's term; None: no such term."""
    gan_weight: Number
    gan_grad: Flag
    with_grad: Flag
    with_stats: Flag
    weighting: WeightArguments

    def images(self) -> list[Tensor]:
        """The N-sized inputs that a call has, the student first."""
        given = (self.student, self.teacher, self.fake, self.teacher_uncond, self.fake_uncond, self.noisy)
        return [image for image in given if image is not None]

    def shape(self) -> CallShape:
        """The properties of the call from which its launches are planned."""
        student, weighting = self.student, self.weighting
        teacher, fake, teacher_uncond, fake_uncond, noisy = (
            None if v is None else DTYPES[v.dtype]
            for v in (self.teacher, self.fake, self.teacher_uncond, self.fake_uncond, self.noisy)
        )
        multiplier, mask = self.multiplier.entries, self.mask.entries
        return CallShape(
            student.shape[0], math.prod(student.shape[1:]), DTYPES[student.dtype], teacher, fake, teacher_uncond,
            fake_uncond, noisy, raw=self.prediction != "sample",
            multiplier=0 if multiplier is None else multiplier.shape[1],
            mask=None if mask is None else (mask.shape[0], mask.shape[1]),
            heads=weighting.heads(), bins=weighting.bins(), counted=self.divisor is not None, dmd_scale=self.dmd_scale,
            with_stats=self.with_stats, with_grad=self.with_grad, reduction=self.reduction,
        )  # fmt: skip

    def dtype(self) -> torch.dtype:
        """The dtype of the N-sized arithmetic."""
        return torch.float64 if any(v.dtype == torch.float64 for v in self.images()) else torch.float32


FdivResults = tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]
"""loss, gradient, unscale, gan_gradient, gan_unscale, stats"""

FDIV = ArgumentList(FdivArguments)
FDIV_WEIGHT = ArgumentList(WeightArguments)


def fdiv_outputs(call: FdivArguments) -> FdivResults:
    """The results, uninitialized; one that the call does not ask for is empty."""
    student = call.student
    loss, gradient, unscale, gan_gradient, gan_unscale = loss_outputs(
        student, call.reduction, (student, call.with_grad), (call.gan_logits, call.gan_grad)
    )
    stats = student.new_empty((STATS + student.shape[0] if call.with_stats else 0,), dtype=torch.float64)
    return loss, gradient, unscale, gan_gradient, gan_unscale, stats


def fdiv_weight_outputs(call: WeightArguments) -> tuple[Tensor, Tensor]:
    """(h, figures), uninitialized."""
    logits = call.logits
    assert logits is not None  # the op's check requires it
    return (
        logits.new_empty((logits.shape[0],), dtype=torch.float64),
        logits.new_empty((WEIGHT_STATS,), dtype=torch.float64),
    )


def check_fdiv(call: FdivArguments) -> None:
    """Check a raw call: each argument against its kind, then what arguments require of each other."""
    check(FDIV, call)
    _check_weighting(call.weighting)
    if call.weight is not None and call.weighting.logits is not None:
        refuse("weight", "None beside logits", call.weight)
    if call.divisor is not None and call.reduction != "mean":
        refuse("divisor", f"None with reduction {call.reduction}", call.divisor)


def check_fdiv_weight(call: WeightArguments) -> None:
    check(FDIV_WEIGHT, call)
    _check_weighting(call)


def _check_weighting(call: WeightArguments) -> None:
    if call.ratio_mean is not None and call.t is None:
        refuse("t", "values beside ratio_mean")
