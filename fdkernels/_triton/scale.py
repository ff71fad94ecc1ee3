"""The backward of every loss in Triton: it scales the gradient that the forward stored (`_op/registry.py`)."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from fdkernels._triton import plan
from fdkernels._triton.launch import Launch, on, start


def scale(gradient: Tensor, upstream: Tensor, unscale: Tensor) -> Tensor:
    """The op `scale_triton`."""
    out = torch.empty_like(gradient)
    with on(gradient.device):
        start(scale_launches(gradient, upstream, unscale, out))
    return out


def scale_(gradient: Tensor, upstream: Tensor, unscale: Tensor) -> None:
    """The op `scale_triton_`."""
    with on(gradient.device):
        start(scale_launches(gradient, upstream, unscale, gradient))


def scale_launches(gradient: Tensor, upstream: Tensor, unscale: Tensor, out: Tensor) -> list[Launch]:
    """At most one launch; none for an empty gradient."""
    per_sample = upstream.dim() == 1
    batch = gradient.shape[0] if per_sample else 1
    if upstream.dim() > 1 or (per_sample and upstream.shape[0] != batch):
        raise RuntimeError(f"upstream: expected () or ({gradient.shape[0]},), got {tuple(upstream.shape)}")
    if unscale.numel() not in (0, batch):
        raise RuntimeError(f"unscale: expected {batch} values or none, got {unscale.numel()}")
    if not (gradient.is_contiguous() and out.is_contiguous()):
        raise RuntimeError("gradient: expected a contiguous tensor")
    if gradient.numel() == 0:
        return []
    elements = gradient.numel() // batch
    tiles, programs = plan.spread(elements, plan.SCALE_TILE, plan.SCALE_PROGRAMS // batch)
    wide_offsets = plan.needs_int64(programs * tiles * plan.SCALE_TILE)
    arguments = (
        gradient, out, upstream, upstream.stride(0) if per_sample else 0,
        unscale.contiguous() if unscale.numel() else None, elements, programs, tiles,
    )  # fmt: skip
    options = {
        "IN_PLACE": out is gradient, "TILE": plan.SCALE_TILE, "OFFSET": tl.int64 if wide_offsets else tl.int32,
        "WIDE": tl.float64 if gradient.dtype == torch.float64 else tl.float32, "num_warps": 4,
    }  # fmt: skip
    return [Launch(scale_kernel, batch * programs, arguments, options)]


# out_bi = upstream_b · unscale_b · gradient_bi: (runs, elements), where a run is a sample if upstream is (B,), else the
# whole batch. Reads and writes the gradient once: 4 bytes per element in half precision, 8 in float32, 16 in float64.
# In place with a factor of 1, it moves no data: each program reads the factor on the device and returns.
@triton.jit
def scale_kernel(
    gradient, out, upstream, upstream_stride, unscale, elements, programs, tiles,
    IN_PLACE: tl.constexpr, TILE: tl.constexpr, OFFSET: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    b = tl.program_id(0) // programs
    factor = tl.load(upstream + b.to(tl.int64) * upstream_stride).to(WIDE)
    if unscale is not None:
        factor = factor * tl.load(unscale + b).to(WIDE)
    end = tl.full((), elements, OFFSET)
    if IN_PLACE:
        end = tl.where(factor == 1.0, 0, end)
    begin = (tl.program_id(0) % programs).to(OFFSET) * tiles * TILE
    end = tl.minimum(begin + tiles * TILE, end)
    row = b.to(tl.int64) * elements
    for first in range(begin, end, TILE):
        i = first + tl.arange(0, TILE)
        g = tl.load(gradient + row + i, mask=i < end, other=0.0).to(WIDE)
        tl.store(out + row + i, factor * g, mask=i < end)
