"""The raw ops `fdiv_triton`, `fdiv_weight_triton` and their backwards: from tensors to launches.

Each op has a function that allocates and lists its launches without starting them, so that what is compiled ahead of
time and what the tests count is what runs. Nothing here reads a tensor's values.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import triton.language as tl
from torch import Tensor

from fdkernels._op.floats import WEIGHT_FLOATS, checked_numbers, known
from fdkernels._triton.launch import Launch, on, start, ticket
from fdkernels.fdiv.arguments import FdivArguments
from fdkernels.fdiv.raw_checks import check_raw, check_raw_weighting
from fdkernels.fdiv.triton_elements import Column, Images, Operands, Table
from fdkernels.fdiv.triton_kernels import (
    Results,
    fdiv_apply_kernel,
    fdiv_bwd_kernel,
    fdiv_fwd_kernel,
    fdiv_reduce_kernel,
)
from fdkernels.fdiv.triton_plan import Plan, backward_plan, heads_at_a_time, next_power_of_2, plan
from fdkernels.fdiv.triton_weight import Weighting, fdiv_weight_kernel
from fdkernels.fdiv.weight import WEIGHT_STATS, inside_backward

PARTIALS = 5
WEIGHT_SAMPLES = 1024  # that fdiv_weight_kernel treats at a time, bins included
_READABLE = (
    torch.float64, torch.float32, torch.float16, torch.bfloat16,
    torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8,
)  # fmt: skip


def fdiv(*arguments: Any) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    call = known(FdivArguments(*arguments))
    with on(call.student.device):
        results, launches = forward_launches(call)
        start(launches)
    return results


def fdiv_weight(
    logits: Tensor, t: Tensor | None, ratio_mean: Tensor | None, edges: Tensor | None, t_min: float, t_max: float,
    decay: float, update: bool, divergence: str, alpha: float, log_ratio_min: float, log_ratio_max: float,
    normalize_weight: bool, numbers: Tensor | None = None,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    check_raw_weighting(logits.shape[0], logits.device, logits, t, None, ratio_mean, edges, divergence)
    if numbers is not None:
        t_min, t_max, decay, alpha, log_ratio_min, log_ratio_max = checked_numbers(numbers, WEIGHT_FLOATS)
    stats = logits.new_empty((WEIGHT_STATS,), dtype=torch.float64)
    weight = logits.new_empty((logits.shape[0],), dtype=torch.float64)
    if logits.shape[0] == 0:
        return weight, stats.fill_(torch.nan)
    weighting = _weighting(logits, t, None, ratio_mean, edges)
    constants = _constants(log_ratio_min, log_ratio_max, t_min, t_max, weighting.bins, decay, alpha)
    with on(logits.device):
        update = update and not inside_backward()
        start([_weigh(weighting, weight, stats, constants, divergence, normalize_weight, update)])
    return weight, stats


def fdiv_backward(gradient: Tensor, upstream: Tensor, unscale: Tensor) -> Tensor:
    out = torch.empty_like(gradient)
    with on(gradient.device):
        start(backward_launches(gradient, upstream, unscale, out))
    return out


def fdiv_backward_(gradient: Tensor, upstream: Tensor, unscale: Tensor) -> None:
    with on(gradient.device):
        start(backward_launches(gradient, upstream, unscale, gradient))


def forward_plan(call: FdivArguments) -> Plan:
    """The plan that a call's launches obey."""
    batch, elements = call.student.shape[0], math.prod(call.student.shape[1:])
    heads = 0 if call.logits is None else _heads(call.logits)
    bins = 0 if call.ratio_mean is None else call.ratio_mean.numel()
    entries = 0
    if call.mask is not None and call.reduction != "sum" and call.divisor is None:
        shared = call.reduction == "none" or call.mask.shape[0] == 1
        entries = call.mask.shape[1] * (1 if shared else batch)
    return plan(
        batch, elements, images=len(call.images()), float64=call.dtype() == torch.float64, heads=heads, bins=bins,
        mask_entries=entries,
    )  # fmt: skip


def forward_launches(call: FdivArguments) -> tuple[tuple[Tensor, Tensor, Tensor, Tensor], list[Launch]]:
    """((loss, gradient, unscale, stats), the launches that write them)."""
    check_raw(call)
    call = call._replace(update=call.update and not inside_backward())
    student = call.student
    batch, elements = student.shape[0], math.prod(student.shape[1:])
    outputs = call.outputs()
    loss, gradient, unscale, stats = outputs
    if batch == 0:  # an empty rank: nothing to launch over
        loss.zero_()
        unscale.fill_(1.0)
        if call.with_stats:
            stats.copy_(stats.new_tensor((*[torch.nan] * WEIGHT_STATS, 0.0, torch.nan, 0.0)))
        return outputs, []

    spread = forward_plan(call)
    split = spread.schedule == "split"
    leading = batch + batch % 2 if split else 0  # even, so that what follows is aligned to 16 bytes
    workspace = student.new_empty((leading + PARTIALS * batch * spread.programs,), dtype=torch.float64)
    results = Results(
        loss, gradient if call.with_grad else None, unscale if unscale.numel() else None,
        stats if call.with_stats else None, workspace[leading:], workspace if split else None, ticket(student.device),
    )  # fmt: skip
    weighting = _weighting(call.logits, call.t, call.weight, call.ratio_mean, call.edges)
    constants = _constants(
        call.log_ratio_min, call.log_ratio_max, call.t_min, call.t_max, weighting.bins, call.decay, call.alpha
    )
    first = []
    if spread.weigh_first:
        h = student.new_empty((batch,), dtype=torch.float64)
        figures = stats if call.with_stats else student.new_empty((WEIGHT_STATS,), dtype=torch.float64)
        first = [_weigh(weighting, h, figures, constants, call.divergence, call.normalize_weight, call.update)]
        weighting = Weighting(None, 1, 1, None, h, None, 1, None)
    operands = _operands(call)
    launches = _split if split else _whole
    return outputs, first + launches(call, spread, batch, elements, operands, weighting, results, constants)


def _whole(
    call: FdivArguments, spread: Plan, batch: int, elements: int, operands: Operands, weighting: Weighting,
    results: Results, constants: tuple[float, ...],
) -> list[Launch]:  # fmt: skip
    options = {
        **_options(call, spread, weighting),
        "WEIGHT_STATS": not spread.weigh_first,
        "SHARED_MASK": call.mask is not None and call.mask.shape[0] == 1,
    }
    arguments = (operands, weighting, results, batch, elements, *_guidance(call), float(call.eps), *constants)
    return [Launch(fdiv_fwd_kernel, batch, arguments, options)]


def _split(
    call: FdivArguments, spread: Plan, batch: int, elements: int, operands: Operands, weighting: Weighting,
    results: Results, constants: tuple[float, ...],
) -> list[Launch]:  # fmt: skip
    programs, tiles = spread.programs, spread.tiles
    chunks = -(-batch // spread.samples)
    offset = tl.int64 if spread.wide_offsets else tl.int32
    reduce = Launch(
        fdiv_reduce_kernel,
        batch * programs,
        (
            operands, weighting, results, batch, elements, programs, tiles, chunks, *_guidance(call), float(call.eps),
            *constants,
        ),
        {**_options(call, spread, weighting), "PIECES": spread.pieces, "OFFSET": offset},
    )  # fmt: skip
    if not call.with_grad:
        return [reduce]
    apply = Launch(
        fdiv_apply_kernel,
        batch * programs,
        (operands, results, batch, elements, programs, tiles, *_guidance(call)),
        {"TILE": spread.tile, "OFFSET": offset, "WIDE": _arithmetic(call), "num_warps": spread.num_warps},
    )
    return [reduce, apply]


def _options(call: FdivArguments, spread: Plan, weighting: Weighting) -> dict[str, Any]:
    """What both kernels that weigh are compiled for."""
    return {
        "DIVERGENCE": "rkl" if weighting.logits is None else call.divergence,
        "NORMALIZE": call.normalize_weight, "UPDATE": call.update and weighting.ratio_mean is not None,
        "DMD": call.dmd_scale, "ZERO": call.zero_nonfinite, "REDUCTION": call.reduction,
        "WITH_ERROR": call.dmd_scale or call.with_stats, "SAMPLES": spread.samples,
        "BINS": next_power_of_2(weighting.bins), "HEADS": spread.heads, "TILE": spread.tile, "WIDE": _arithmetic(call),
        "num_warps": spread.num_warps,
    }  # fmt: skip


def _arithmetic(call: FdivArguments) -> Any:
    return tl.float64 if call.dtype() == torch.float64 else tl.float32


def _guidance(call: FdivArguments) -> tuple[float, float]:
    return float(call.guidance_scale), float(call.fake_guidance_scale)


def backward_launches(gradient: Tensor, upstream: Tensor, unscale: Tensor, out: Tensor) -> list[Launch]:
    """At most one launch; none for an empty gradient."""
    per_sample = upstream.dim() == 1
    batch = gradient.shape[0] if per_sample else 1
    if upstream.dim() > 1 or (per_sample and upstream.shape[0] != gradient.shape[0]):
        raise RuntimeError(f"upstream: expected () or ({gradient.shape[0]},), got {tuple(upstream.shape)}")
    if unscale.numel() not in (0, batch):
        raise RuntimeError(f"unscale: expected {batch} values or none, got {unscale.numel()}")
    if not (gradient.is_contiguous() and out.is_contiguous()):
        raise RuntimeError("gradient: expected a contiguous tensor")
    if gradient.numel() == 0:
        return []
    elements = gradient.numel() // batch
    spread = backward_plan(batch, elements)
    wide = gradient.dtype == torch.float64
    return [
        Launch(
            fdiv_bwd_kernel,
            batch * spread.programs,
            (
                gradient, out, upstream, upstream.stride(0) if per_sample else 0,
                unscale.contiguous() if unscale.numel() else None, elements, spread.programs, spread.tiles,
            ),
            {
                "IN_PLACE": out is gradient, "TILE": spread.tile,
                "OFFSET": tl.int64 if spread.wide_offsets else tl.int32, "WIDE": tl.float64 if wide else tl.float32,
                "num_warps": spread.num_warps,
            },
        )
    ]  # fmt: skip


def _weigh(
    weighting: Weighting, weight: Tensor, stats: Tensor, constants: tuple[float, ...], divergence: str,
    normalize: bool, update: bool,
) -> Launch:  # fmt: skip
    batch = weight.shape[0]
    bins = next_power_of_2(weighting.bins)
    heads = heads_at_a_time(weighting.heads)
    samples = max(16, min(next_power_of_2(batch), WEIGHT_SAMPLES, 8192 // max(bins, heads)))
    return Launch(
        fdiv_weight_kernel,
        1,
        (weighting, weight, stats, batch, -(-batch // samples), *constants),
        {
            "DIVERGENCE": divergence, "NORMALIZE": normalize, "UPDATE": update and weighting.ratio_mean is not None,
            "SAMPLES": samples, "BINS": bins, "HEADS": heads, "num_warps": 8,
        },
    )  # fmt: skip


def _constants(
    log_ratio_min: float, log_ratio_max: float, t_min: float, t_max: float, bins: int, decay: float, alpha: float
) -> tuple[float, ...]:
    """What `Constants` is made of, in its order."""
    return log_ratio_min, log_ratio_max, t_min, t_max, (t_max - t_min) / bins, decay, alpha


def _weighting(
    logits: Tensor | None, t: Tensor | None, weight: Tensor | None, ratio_mean: Tensor | None, edges: Tensor | None
) -> Weighting:
    heads = 1 if logits is None else _heads(logits)
    normalized = logits is not None and ratio_mean is not None
    return Weighting(
        None if logits is None else logits.contiguous(),
        heads,
        -(-heads // heads_at_a_time(heads)),
        None if t is None else _readable(t),
        None if weight is None else _readable(weight),
        ratio_mean if normalized else None,
        ratio_mean.numel() if normalized and ratio_mean is not None else 1,
        edges if normalized else None,
    )


def _operands(call: FdivArguments) -> Operands:
    return Operands(
        _images(call.student), _images(call.teacher), _images(call.fake), _images(call.teacher_uncond),
        _images(call.fake_uncond), _images(call.noisy), _column(call.a), _column(call.c), _column(call.scale),
        _table(call.a, call.coefficient_inner), _table(call.c, call.coefficient_inner),
        _table(call.scale, call.scale_inner),
        _table(None if call.mask is None else call.mask.view(torch.uint8), call.mask_inner, fewest=1),
        _on_device(call.divisor, call.student.device),
    )  # fmt: skip


def _on_device(divisor: Tensor | None, device: torch.device) -> Tensor | None:
    """A number of the host's is filled in, not copied: a copy would make the host wait."""
    if divisor is None:
        return None
    if divisor.device != device:
        return torch.full((), divisor.item(), dtype=torch.float64, device=device)
    return _readable(divisor)


def _images(tensor: Tensor | None) -> Images | None:
    return None if tensor is None else Images(tensor, tensor.stride(0))


def _row_stride(tensor: Tensor) -> int:
    return 0 if tensor.shape[0] == 1 else tensor.stride(0)


def _column(tensor: Tensor | None) -> Column | None:
    return None if tensor is None or tensor.shape[1] > 1 else Column(tensor, _row_stride(tensor))


def _table(tensor: Tensor | None, inner: int, fewest: int = 2) -> Table | None:
    """None where a table has fewer entries a row, so is a column."""
    if tensor is None or tensor.shape[1] < fewest:
        return None
    return Table(tensor, _row_stride(tensor), tensor.shape[1], inner)


def _heads(logits: Tensor) -> int:
    return logits.shape[1] if logits.dim() == 2 else 1


def _readable(tensor: Tensor) -> Tensor:
    """(B,) in a dtype that kernels load, dense."""
    return (tensor if tensor.dtype in _READABLE else tensor.double()).contiguous()
