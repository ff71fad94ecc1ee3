"""How tensors of any strides reach kernels that read each sample as one dense run of memory.

Sums over a sample and elementwise maps do not depend on the order of elements, so every tensor is viewed in the
*student's memory order*: channels_last needs no copy. A tensor that is not dense in that order costs one copy.

Small operands (per sample, per frame, per channel, spatial) keep their own storage. In memory order, element i of a
sample reads entry (i // inner) % R of a (B or 1, R) table.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from fdkernels._op.arguments import Table


def memory_order(x: Tensor) -> tuple[int, ...] | None:
    """The permutation that keeps the batch first and sorts x's other dimensions from slow to fast; None if sorted."""
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


def broadcastable(name: str, value: Tensor, student: Tensor, of: str = "student") -> Tensor:
    """value with student's rank. value has student's leading dimensions, such as () or (B,), or broadcasts to it.

    of: student's name in messages."""
    if value.device != student.device:
        raise ValueError(f"{name}: expected device {student.device} like {of}, got {value.device}")
    fits = value.dim() <= student.dim() and all(v in (1, s) for v, s in zip(value.shape, student.shape, strict=False))
    if not fits:
        raise ValueError(
            f"{name}: expected leading dimensions of {of}, as ({student.shape[0]},), or a shape of rank "
            f"{student.dim()} that broadcasts to {tuple(student.shape)}, got {tuple(value.shape)}"
        )
    missing = student.dim() - value.dim()
    return value.reshape(*value.shape, *(1,) * missing) if missing else value


def unexpanded(value: Tensor) -> Tensor:
    """A small operand with the dimensions that the caller expanded reduced to size 1, as in its storage."""
    for d in range(value.dim()):
        if value.stride(d) == 0 and value.shape[d] > 1:
            value = value.narrow(d, 0, 1)
    return value


def readable(value: Tensor) -> Tensor:
    """A real operand in float32 or float64, the dtypes of a table."""
    if value.dtype in (torch.float32, torch.float64):
        return value
    value = unexpanded(value)
    return value.float() if value.dtype in (torch.float16, torch.bfloat16) else value.double()


def as_table(name: str, value: Tensor, student: Tensor, order: tuple[int, ...] | None, of: str = "student") -> Table:
    """A small operand as a table for elements in the student's memory order."""
    batch, elements = student.shape[0], math.prod(student.shape[1:])
    if value.dim() == 1 and value.shape[0] == batch and value.device == student.device:
        return Table(value[:, None], elements)
    value = unexpanded(broadcastable(name, value, student, of))
    shape = student.shape
    if order is not None:
        value, shape = value.permute(order), torch.Size(student.shape[d] for d in order)
    varying = [d for d in range(1, value.dim()) if value.shape[d] != 1]
    if not varying:
        return Table(value.reshape(value.shape[0], 1), elements)
    first, last = varying[0], varying[-1]
    table = value.reshape(value.shape[0], *value.shape[first : last + 1])
    table = table.expand(-1, *shape[first : last + 1]).reshape(value.shape[0], -1)
    return Table(dense_samples(table), math.prod(shape[last + 1 :]))


def expanded(table: Table, shape: tuple[int, int]) -> Tensor:
    """A table for every element: element i has entry (i // inner) % R."""
    assert table.entries is not None
    batch, n = shape
    entries = table.entries.shape[1]
    repeats = n // (entries * table.inner)
    return table.entries[:, None, :, None].expand(batch, repeats, entries, table.inner).reshape(shape)


def column_or_expanded(table: Table, shape: tuple[int, int]) -> Tensor | None:
    """A table in float64: (B or 1, 1) if a sample has one entry, else expanded to every element."""
    if table.entries is None:
        return None
    return (table.entries if table.entries.shape[1] == 1 else expanded(table, shape)).double()
