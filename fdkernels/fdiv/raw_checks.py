"""What keeps a direct call of a raw op from reading past a tensor. Public calls have been validated before.

`csrc/arguments.h` makes the same checks for the native backend.
"""

from __future__ import annotations

import math
from typing import NoReturn

import torch
from torch import Tensor

from fdkernels.checks import FLOATS
from fdkernels.divergences import KERNEL_ROWS
from fdkernels.fdiv.arguments import FdivArguments


def check_raw(call: FdivArguments) -> None:
    """Raises a RuntimeError, as PyTorch's own ops do. A good call pays for comparisons alone, some microseconds."""
    student = call.student
    shape, device, elements = student.shape, student.device, math.prod(student.shape[1:])
    if student.dim() == 0 or elements == 0:
        _refuse("student", "at least one element a sample", student)
    for name in ("student", "teacher", "fake", "teacher_uncond", "fake_uncond", "noisy"):
        image = getattr(call, name)
        if image is None:
            continue
        if image.shape != shape or image.dtype not in FLOATS or image.device != device or not _has_dense_rows(image):
            _refuse(name, f"floats of shape {tuple(shape)} on {device} like student, each sample dense", image)
    if (call.a is None) != (call.c is None) or (call.noisy is not None and call.c is None):
        _refuse("a, c", "both or neither, and beside noisy")
    for name, inner in (
        ("a", call.coefficient_inner), ("c", call.coefficient_inner), ("scale", call.scale_inner),
        ("mask", call.mask_inner),
    ):  # fmt: skip
        table = getattr(call, name)
        if table is None:
            continue
        fits = table.dim() == 2 and table.shape[0] in (1, shape[0]) and table.shape[1] > 0 and inner > 0
        if not fits or elements % (table.shape[1] * inner):
            _refuse(name, f"(B or 1, R) entries whose runs of {inner} tile {elements} elements", table)
        is_right = table.dtype == torch.bool if name == "mask" else table.dtype in FLOATS
        if not is_right or table.device != device or not _has_dense_rows(table):
            _refuse(name, f"dense rows of {'bool' if name == 'mask' else 'floats'} on {device}", table)
    if call.reduction not in ("mean", "sum", "none"):
        _refuse("reduction", f"mean, sum or none, got {call.reduction!r}")
    given = call.divisor
    if given is not None:
        fits = given.numel() == 1 and given.device in (device, torch.device("cpu")) and not given.is_complex()
        if not fits or call.reduction != "mean":
            _refuse("divisor", f"one real value on {device} or the CPU, with reduction mean", given)
    check_raw_weighting(
        shape[0], device, call.logits, call.t, call.weight, call.ratio_mean, call.edges, call.divergence
    )


def check_raw_weighting(
    batch: int,
    device: torch.device,
    logits: Tensor | None,
    t: Tensor | None,
    weight: Tensor | None,
    ratio_mean: Tensor | None,
    edges: Tensor | None,
    divergence: str,
) -> None:
    if t is not None and t.shape != (batch,):
        _refuse("t", f"shape ({batch},)", t)
    if weight is not None and (weight.shape != (batch,) or logits is not None):
        _refuse("weight", f"shape ({batch},), and no logits beside it", weight)
    if logits is not None and (
        logits.dim() not in (1, 2) or logits.shape[0] != batch or 0 in logits.shape[1:] or logits.dtype not in FLOATS
    ):
        _refuse("logits", f"floats of shape ({batch},) or ({batch}, heads)", logits)
    if ratio_mean is not None:
        if t is None:
            _refuse("t", "values beside ratio_mean")
        whole = ratio_mean.dim() == 1 and ratio_mean.numel() > 0 and ratio_mean.is_contiguous()
        if not whole or ratio_mean.dtype != torch.float32:
            _refuse("ratio_mean", "contiguous float32 (bins,)", ratio_mean)
    if edges is not None and (
        ratio_mean is None
        or edges.shape != (ratio_mean.numel() - 1,)
        or edges.dtype != torch.float64
        or not edges.is_contiguous()
    ):
        _refuse("edges", "contiguous float64 (bins - 1,) beside ratio_mean", edges)
    for name, value in (
        ("logits", logits), ("t", t), ("weight", weight), ("ratio_mean", ratio_mean), ("edges", edges)
    ):  # fmt: skip
        if value is not None and value.device != device:
            _refuse(name, f"values on {device}", value)
    if divergence not in KERNEL_ROWS:
        _refuse("divergence", f"a row of the kernels' table, got {divergence!r}")


def _has_dense_rows(tensor: Tensor) -> bool:
    return tensor.is_contiguous() or tensor[:1].is_contiguous()


def _refuse(name: str, what: str, got: Tensor | None = None) -> NoReturn:
    came = "" if got is None else f", got {tuple(got.shape)}, strides {got.stride()}, {got.dtype} on {got.device}"
    raise RuntimeError(f"{name}: expected {what}{came}")
