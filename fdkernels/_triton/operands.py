"""An op's tensors in the form its kernels take: named tuples, which Triton specializes member by member."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fdkernels._op import arguments

_READABLE = (
    torch.float64, torch.float32, torch.float16, torch.bfloat16,
    torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8,
)  # fmt: skip


class Samples(NamedTuple):
    """An N-sized input: each sample is one dense run of n elements."""

    data: Any
    batch_stride: int


class Table(NamedTuple):
    """A small operand: element i of sample b reads entry (i // inner) % entries of row b."""

    data: Any
    row_stride: int
    entries: int
    """Triton compiles the value 1 in as a constant."""
    inner: int


def samples(tensor: Tensor | None) -> Samples | None:
    return None if tensor is None else Samples(tensor, tensor.stride(0))


def table(small: arguments.Table) -> Table | None:
    entries, inner = small
    if entries is None:
        return None
    rows, width = entries.shape
    data = entries.view(torch.uint8) if entries.dtype == torch.bool else entries
    return Table(data, 0 if rows == 1 else entries.stride(0), width, inner)


def shared_levels(alpha: Table | None, sigma: Table | None, image: Tensor) -> int:
    """How many neighboring elements of a 128-bit load of `image` share their levels; 0 if a whole sample does."""
    inner = [levels.inner for levels in (alpha, sigma) if levels is not None and levels.entries > 1]
    return math.gcd(16 // image.element_size(), *inner) if inner else 0


def scalar(tensor: Tensor | None, device: torch.device) -> Tensor | None:
    """One value on a device. A value on the CPU is filled in, not copied: a copy would make the host wait."""
    if tensor is None or tensor.device == device:
        return readable(tensor)
    return torch.full((), tensor.item(), dtype=torch.float64, device=device)


def readable(tensor: Tensor | None) -> Tensor | None:
    """A contiguous tensor in a dtype that kernels can load."""
    if tensor is None:
        return None
    return (tensor if tensor.dtype in _READABLE else tensor.double()).contiguous()
