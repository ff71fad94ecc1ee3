"""The backward of every loss in Triton: it scales the gradients that the forward stored (`_op/registry.py`)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from fdkernels._op.checks import FLOATS
from fdkernels._triton import plan
from fdkernels._triton.launch import Launch, on, start


class Scaled(NamedTuple):
    """One of a launch's gradients."""

    gradient: Any
    out: Any
    unscale: Any
    """None if there is none."""
    elements: Any
    """Of a run: of a sample if upstream is (B,), else of the whole batch."""
    tiles: Any
    """That a program takes."""
    programs: Any
    """That share a run."""
    launched: Any
    """All its programs."""
    end: None = None
    """Keep this None last, as in `fdiv/triton_elements.py`."""


def scale(gradients: Sequence[Tensor], upstream: Tensor, unscales: Sequence[Tensor]) -> list[Tensor]:
    """The op `scale_triton`."""
    outs = [torch.empty_like(each) for each in gradients]
    with on(upstream.device):
        start(scale_launches(gradients, upstream, unscales, outs))
    return outs


def scale_(gradients: Sequence[Tensor], upstream: Tensor, unscales: Sequence[Tensor]) -> None:
    """The op `scale_triton_`."""
    with on(upstream.device):
        start(scale_launches(gradients, upstream, unscales, gradients))


def scale_launches(
    gradients: Sequence[Tensor], upstream: Tensor, unscales: Sequence[Tensor], outs: Sequence[Tensor]
) -> list[Launch]:
    """At most one launch; none if all gradients are empty."""
    if not gradients:
        raise RuntimeError("gradients: expected at least one")
    if len(unscales) != len(gradients):
        raise RuntimeError("unscales: expected one for each gradient")
    found = [_scaled(*each, upstream) for each in zip(gradients, unscales, outs, strict=True)]
    scaled = tuple(each for each in found if each.launched)
    if not scaled:
        return []
    reached = max(each.programs * each.tiles * plan.SCALE_TILE for each in scaled)
    options = {
        "COUNT": len(scaled), "IN_PLACE": outs is gradients, "TILE": plan.SCALE_TILE,
        "OFFSET": tl.int64 if plan.needs_int64(reached) else tl.int32, "num_warps": 4,
    }  # fmt: skip
    arguments = (scaled, upstream, upstream.stride(0) if upstream.dim() else 0)
    return [Launch(scale_kernel, sum(each.launched for each in scaled), arguments, options)]


def _scaled(gradient: Tensor, unscale: Tensor, out: Tensor, upstream: Tensor) -> Scaled:
    if gradient.dim() == 0 or gradient.dtype not in FLOATS:
        raise RuntimeError(
            f"gradient: expected a floating (B, ...) tensor, got {gradient.dtype} {tuple(gradient.shape)}"
        )
    if upstream.is_complex():
        raise RuntimeError(f"upstream: expected a real dtype, got {upstream.dtype}")
    for name, v in (("upstream", upstream), ("unscale", unscale)):
        if v.device != gradient.device:
            raise RuntimeError(f"{name}: expected device {gradient.device} like gradient, got {v.device}")
    if upstream.dim() > 1 or (upstream.dim() == 1 and upstream.shape[0] != gradient.shape[0]):
        raise RuntimeError(f"upstream: expected () or ({gradient.shape[0]},), got {tuple(upstream.shape)}")
    batch = gradient.shape[0] if upstream.dim() else 1
    if unscale.numel() not in (0, batch):
        raise RuntimeError(f"unscale: expected {batch} values or none, got {unscale.numel()}")
    if not (gradient.is_contiguous() and out.is_contiguous()):
        raise RuntimeError("gradient: expected a contiguous tensor")
    powers = unscale.contiguous() if unscale.numel() else None
    if not gradient.numel():
        return Scaled(gradient, out, powers, 0, 0, 0, 0)
    elements = gradient.numel() // batch
    tiles, programs = plan.spread(elements, plan.SCALE_TILE, plan.SCALE_PROGRAMS // batch)
    return Scaled(gradient, out, powers, elements, tiles, programs, batch * programs)


# out_bi = upstream_b · unscale_b · gradient_bi of each of `scaled`: (runs, elements). Reads and writes a gradient once:
# 4 bytes per element in half precision, 8 in float32, 16 in float64. In place with a factor of 1, it moves no data:
# each program reads the factor on the device and returns.
@triton.jit
def scale_kernel(
    scaled, upstream, upstream_stride, COUNT: tl.constexpr, IN_PLACE: tl.constexpr, TILE: tl.constexpr,
    OFFSET: tl.constexpr,
):  # fmt: skip
    program = tl.program_id(0)
    for n in tl.static_range(COUNT):  # Triton 3.6 takes no len() of a tuple that holds None
        if (program >= 0) & (program < scaled[n].launched):
            scale_one(scaled[n], program, upstream, upstream_stride, IN_PLACE, TILE, OFFSET)
        program -= scaled[n].launched


@triton.jit
def scale_one(
    scaled, program, upstream, upstream_stride, IN_PLACE: tl.constexpr, TILE: tl.constexpr, OFFSET: tl.constexpr
):  # fmt: skip
    WIDE: tl.constexpr = tl.float64 if scaled.gradient.dtype.element_ty == tl.float64 else tl.float32
    b = program // scaled.programs
    factor = tl.load(upstream + b.to(tl.int64) * upstream_stride).to(WIDE)
    if scaled.unscale is not None:
        factor = factor * tl.load(scaled.unscale + b).to(WIDE)
    end = tl.full((), scaled.elements, OFFSET)
    if IN_PLACE:
        end = tl.where(factor == 1.0, 0, end)
    begin = (program % scaled.programs).to(OFFSET) * scaled.tiles * TILE
    end = tl.minimum(begin + scaled.tiles * TILE, end)
    row = b.to(tl.int64) * scaled.elements
    for first in range(begin, end, TILE):
        i = first + tl.arange(0, TILE)
        g = tl.load(scaled.gradient + row + i, mask=i < end, other=0.0).to(WIDE)
        tl.store(scaled.out + row + i, factor * g, mask=i < end)
