"""How tensors of any strides reach kernels that read each sample as one dense run of memory.

Sums over a sample and elementwise maps do not care about the order of elements, so every tensor is viewed in the
*student's memory order*: channels_last stays as it is. A tensor that is not dense in that order costs one copy.

Small operands (per sample, per frame, per channel, spatial) keep their own storage. In memory order, element i of a
sample reads entry (i // inner) % R of a (B or 1, R) table.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from fdkernels.floats import filled


def memory_order(x: Tensor) -> tuple[int, ...] | None:
    """The permutation of x's dimensions, batch first, that sorts the others from slow to fast; None if they are."""
    if x.is_contiguous():
        return None
    inner = sorted(range(1, x.dim()), key=lambda d: (x.stride(d), x.size(d)), reverse=True)
    order = (0, *inner)
    return None if order == tuple(range(x.dim())) else order


def dense_samples(x: Tensor) -> Tensor:
    """x if each of its samples is one dense run of memory in the order of its dimensions, else a contiguous copy."""
    if x.is_contiguous():
        return x
    expected = 1
    for d in range(x.dim() - 1, 0, -1):
        if x.size(d) != 1 and x.stride(d) != expected:
            return x.contiguous()
        expected *= x.size(d)
    return x


def as_broadcast(name: str, value: float | Tensor, student: Tensor) -> Tensor:
    """A number, a (B,) tensor or a tensor of student's rank, as float64 of that rank, checked to broadcast."""
    if not isinstance(value, Tensor):
        return filled((1,) * student.dim(), float(value), student.device)
    return broadcastable(name, value, student).double()


def broadcastable(name: str, value: Tensor, student: Tensor) -> Tensor:
    """value with student's rank, or a ValueError where it has neither shape (B,) nor one that broadcasts."""
    if value.device != student.device:
        raise ValueError(f"{name}: expected device {student.device} like student, got {value.device}")
    if value.dim() == 1 and value.shape[0] == student.shape[0]:
        return value.view(-1, *(1,) * (student.dim() - 1))
    fits = value.dim() == student.dim() and all(v in (1, s) for v, s in zip(value.shape, student.shape, strict=True))
    if not fits:
        raise ValueError(
            f"{name}: expected shape ({student.shape[0]},) or one of rank {student.dim()} that broadcasts to "
            f"{tuple(student.shape)} like student, got {tuple(value.shape)}"
        )
    return value


def as_table(value: Tensor, order: tuple[int, ...] | None, shape: torch.Size) -> tuple[Tensor, int]:
    """A broadcastable operand as a (B or 1, R) table and the run length `inner` of its entries.

    Args:
        value: of the student's rank, each size 1 or the student's.
        order: the student's memory order.
        shape: the student's shape in that order.
    """
    for d in range(value.dim()):
        if value.stride(d) == 0 and value.shape[d] > 1:  # expanded by the caller: its own storage is smaller
            value = value.narrow(d, 0, 1)
    if order is not None:
        value = value.permute(order)
    varying = [d for d in range(1, value.dim()) if value.shape[d] != 1]
    if not varying:
        return value.reshape(value.shape[0], 1), math.prod(shape[1:])
    first, last = varying[0], varying[-1]
    table = value.reshape(value.shape[0], *value.shape[first : last + 1])
    table = table.expand(-1, *shape[first : last + 1]).reshape(value.shape[0], -1)
    return dense_samples(table), math.prod(shape[last + 1 :])
