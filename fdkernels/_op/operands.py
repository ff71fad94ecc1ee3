"""Checks that keep a direct call of a raw op from reading past a tensor. Public calls are validated before.

`csrc/torch/operands.h` makes the same checks for the native backend.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple, NoReturn

import torch
from torch import Tensor

from fdkernels._op.arguments import Argument, ArgumentList
from fdkernels._op.checks import FLOATS


class _First(NamedTuple):
    """The first argument's properties, with which the other arguments must agree."""

    shape: torch.Size
    device: torch.device
    batch: int
    elements: int


def check(arguments: ArgumentList, call: Any) -> None:
    """Raises RuntimeError, as PyTorch's own ops do. A valid call costs only comparisons, some microseconds."""
    tensor: Tensor | None = call[0]
    if tensor is None or tensor.dim() == 0:
        refuse(arguments.names[0], "shape (B, ...)", tensor)
    shape = tensor.shape
    first = _First(shape, tensor.device, shape[0], math.prod(shape[1:]))
    if first.elements == 0 or first.batch == 0:
        refuse(arguments.names[0], "at least one sample and one element a sample", tensor)
    operands = iter(arguments.flat(call))
    bins = 0
    for entry in arguments.entries:
        value = next(operands)
        kind = entry.kind
        if kind in ("table", "mask"):
            inner = next(operands)
            if value is not None:
                _check_table(entry, value, inner, first)
        elif kind in ("number", "flag"):
            continue
        elif kind == "choice":
            if value not in entry.choices:
                refuse(entry.name, f"one of {', '.join(entry.choices)}, got {value!r}")
        elif value is None:
            if not entry.optional:
                refuse(entry.name, "a tensor, got None")
        else:
            bins = value.numel() if kind == "state" else bins
            _check_tensor(entry, value, first, bins)


def _check_tensor(entry: Argument, value: Tensor, first: _First, bins: int) -> None:
    batch, device, kind = first.batch, first.device, entry.kind
    on_device = value.device == device
    if kind == "samples":
        if value.shape != first.shape or value.dtype not in FLOATS or not on_device or not _has_dense_rows(value):
            refuse(entry.name, f"floats of shape {tuple(first.shape)} on {device}, each sample dense", value)
    elif kind == "per_sample":
        if value.shape != (batch,) or value.is_complex() or not on_device:
            refuse(entry.name, f"real values of shape ({batch},) on {device}", value)
    elif kind == "logits":
        fits = value.dim() in (1, 2) and value.shape[0] == batch and 0 not in value.shape[1:]
        if not fits or value.dtype not in FLOATS or not on_device:
            refuse(entry.name, f"floats of shape ({batch},) or ({batch}, heads) on {device}", value)
    elif kind == "scalar":
        if value.numel() != 1 or value.is_complex() or not (on_device or value.device.type == "cpu"):
            refuse(entry.name, f"one real value on {device} or the CPU", value)
    elif kind == "seed":
        if value.numel() != 1 or value.dtype != torch.int64 or not on_device:
            refuse(entry.name, f"one int64 value on {device}", value)
    else:
        size, dtype = (bins, torch.float32) if kind == "state" else (bins - 1, torch.float64)
        if not bins or value.shape != (size,) or value.dtype != dtype or not on_device or not value.is_contiguous():
            what = "(bins,)" if kind == "state" else "(bins - 1,) beside the state of as many bins"
            refuse(entry.name, f"contiguous {dtype} {what} on {device}", value)


def _check_table(entry: Argument, entries: Tensor, inner: int, first: _First) -> None:
    shape = entries.shape
    fits = len(shape) == 2 and shape[0] in (1, first.batch) and shape[1] > 0 and inner > 0
    if not fits or first.elements % (shape[1] * inner):
        refuse(entry.name, f"(B or 1, R) entries whose runs of {inner} tile {first.elements} elements", entries)
    is_right = entries.dtype == torch.bool if entry.kind == "mask" else entries.dtype in (torch.float32, torch.float64)
    if not is_right or entries.device != first.device or not _has_dense_rows(entries):
        kind = "bool" if entry.kind == "mask" else "float32 or float64"
        refuse(entry.name, f"dense rows of {kind} on {first.device}", entries)


def _has_dense_rows(tensor: Tensor) -> bool:
    return tensor.is_contiguous() or tensor[:1].is_contiguous()


def refuse(name: str, what: str, got: Tensor | None = None) -> NoReturn:
    came = "" if got is None else f", got {tuple(got.shape)}, strides {got.stride()}, {got.dtype} on {got.device}"
    raise RuntimeError(f"{name}: expected {what}{came}")
