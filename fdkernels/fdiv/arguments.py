"""The arguments of the raw op `fdiv_<backend>`, as every backend takes them."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from fdkernels.fdiv.weight import WEIGHT_STATS

# The weight statistics of weight.py, then grad_norm, relative_gap, nonfinite_samples. The weights themselves follow.
STATS = WEIGHT_STATS + 3


class FdivArguments(NamedTuple):
    """In the schema's order (`ops.py`).

    N-sized tensors have the batch first and each sample dense in the student's memory order; `a`, `c`, `scale` and
    `mask` are (B or 1, R) tables whose entry (i // inner) % R belongs to element i (`fdkernels/layout.py`).
    """

    student: Tensor
    teacher: Tensor
    fake: Tensor
    teacher_uncond: Tensor | None
    fake_uncond: Tensor | None
    guidance_scale: float
    fake_guidance_scale: float
    noisy: Tensor | None
    a: Tensor | None
    c: Tensor | None
    coefficient_inner: int
    logits: Tensor | None
    t: Tensor | None
    weight: Tensor | None
    ratio_mean: Tensor | None
    edges: Tensor | None
    t_min: float
    t_max: float
    decay: float
    update: bool
    divergence: str
    alpha: float
    log_ratio_min: float
    log_ratio_max: float
    normalize_weight: bool
    dmd_scale: bool
    eps: float
    scale: Tensor | None
    scale_inner: int
    mask: Tensor | None
    mask_inner: int
    zero_nonfinite: bool
    reduction: str
    with_grad: bool
    with_stats: bool
    divisor: Tensor | None = None
    """One value: N of the mean, in place of the number of unmasked elements. On the student's device or the CPU."""
    numbers: Tensor | None = None
    """On the CPU: the floats above, in the order of `floats.py` and in their place."""

    def images(self) -> list[Tensor]:
        """The N-sized inputs that a call has, the student first."""
        given = (self.student, self.teacher, self.fake, self.teacher_uncond, self.fake_uncond, self.noisy)
        return [image for image in given if image is not None]

    def dtype(self) -> torch.dtype:
        """That of the N-sized arithmetic."""
        return torch.float64 if any(v.dtype == torch.float64 for v in self.images()) else torch.float32

    def outputs(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """(loss, gradient, unscale, stats), uninitialized; empty where a call does not ask for one."""
        student = self.student
        per_loss = (student.shape[0],) if self.reduction == "none" else ()
        scaled = self.with_grad and student.dtype == torch.float16
        return (
            student.new_empty(per_loss, dtype=torch.float64 if student.dtype == torch.float64 else torch.float32),
            student.new_empty(student.shape if self.with_grad else (0,)),
            student.new_empty(per_loss if scaled else (0,), dtype=torch.float32),
            student.new_empty((STATS + student.shape[0] if self.with_stats else 0,), dtype=torch.float64),
        )
