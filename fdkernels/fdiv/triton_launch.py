"""The ops `fdiv` and `fdiv_weight` in Triton: from a call to its launches.

Functions that list launches do not start them: ahead-of-time compilation and the tests see the same launches that run.
Nothing here reads the values of a GPU tensor.
"""

from __future__ import annotations

from typing import Any

import torch
import triton.language as tl
from torch import Tensor

from fdkernels._op.registry import inside_backward
from fdkernels._triton.launch import Launch, on, start, ticket
from fdkernels._triton.operands import readable, samples, scalar, shared_levels, table
from fdkernels._triton.plan import next_power_of_2
from fdkernels.fdiv.arguments import (
    FDIV,
    FDIV_WEIGHT,
    WEIGHT_STATS,
    FdivArguments,
    FdivResults,
    WeightArguments,
    check_fdiv,
    check_fdiv_weight,
    fdiv_outputs,
    fdiv_weight_outputs,
)
from fdkernels.fdiv.triton_elements import Operands
from fdkernels.fdiv.triton_generator import Generator
from fdkernels.fdiv.triton_kernels import Written, fdiv_apply_kernel, fdiv_fwd_kernel, fdiv_reduce_kernel
from fdkernels.fdiv.triton_plan import heads_at_a_time, plan
from fdkernels.fdiv.triton_weight import WeightOperands, fdiv_weight_kernel

ELEMENT_NUMBERS = ("guidance_scale", "fake_guidance_scale", "fixed_alpha", "fixed_sigma", "sigma_data")
WEIGHT_NUMBERS = ("log_ratio_min", "log_ratio_max", "t_min", "t_max", "decay", "amari_alpha")
PARTIALS = 5
WEIGHT_SAMPLES = 1024  # most samples that fdiv_weight_kernel weighs at a time


def fdiv(*operands: Any) -> FdivResults:
    """The op `fdiv_triton`."""
    call = FDIV.call(*operands)
    check_fdiv(call)
    with on(call.student.device):
        outputs, launches = forward_launches(call)
        start(launches)
    return outputs


def fdiv_weight(*operands: Any) -> tuple[Tensor, Tensor]:
    """The op `fdiv_weight_triton`."""
    call = FDIV_WEIGHT.call(*operands)
    check_fdiv_weight(call)
    weight, stats = fdiv_weight_outputs(call)
    with on(weight.device):
        start([_weigh(call, weight, stats)])
    return weight, stats


def forward_launches(call: FdivArguments) -> tuple[FdivResults, list[Launch]]:
    """(the results, the launches that write them) of a checked call."""
    student, weighting, weight = call.student, call.weighting, call.weight
    shape = call.shape()
    batch, elements = shape.batch, shape.elements
    outputs = loss, gradient, unscale, gan_gradient, gan_unscale, stats = fdiv_outputs(call)
    spread = plan(shape)
    split = spread.schedule == "split"
    leading = batch + batch % 2 if split else 0  # even, so that the partial sums are aligned to 16 bytes
    workspace = student.new_empty((leading + PARTIALS * batch * spread.programs,), dtype=torch.float64)
    written = Written(
        loss, gradient if call.with_grad else None, unscale if unscale.numel() else None,
        stats if call.with_stats else None, workspace[leading:], workspace if split else None, ticket(student.device),
    )  # fmt: skip
    launches = []
    if spread.weigh_first:
        weight = student.new_empty((batch,), dtype=torch.float64)
        figures = stats if call.with_stats else student.new_empty((WEIGHT_STATS,), dtype=torch.float64)
        launches.append(_weigh(weighting, weight, figures))
        weighting = WeightArguments()
    operands, weight_operands = _operands(call), _weight_operands(weighting, weight)
    generator, gan_heads, gan_divisor = _generator(call, gan_gradient, gan_unscale)
    options = {
        **_weight_options(weighting), "DMD": call.dmd_scale, "ZERO": call.zero_nonfinite, "REDUCTION": call.reduction,
        "WITH_ERROR": call.dmd_scale or call.with_stats,
        "KEPT_ONLY": call.kept_only and call.mask.entries is not None, "KIND": call.prediction,
        "RUN": shared_levels(operands.alpha, operands.sigma, call.teacher),
        "SAMPLES": spread.samples, "BINS": next_power_of_2(weight_operands.bins), "HEADS": spread.heads,
        "GAN_HEADS": gan_heads, "gan_weight": call.gan_weight, "gan_divisor": gan_divisor,
        "TILE": spread.tile, "WIDE": tl.float64 if call.dtype() == torch.float64 else tl.float32,
        "num_warps": spread.num_warps, **{name: getattr(call, name) for name in ELEMENT_NUMBERS}, "eps": call.eps,
        "floor": call.floor, **_weight_numbers(weighting, weight_operands.bins),
    }  # fmt: skip
    if not split:
        options["WITH_WEIGHT_STATS"] = not spread.weigh_first
        options["SHARED_MASK"] = call.mask.entries is not None and call.mask.entries.shape[0] == 1
        arguments: tuple[Any, ...] = (operands, weight_operands, generator, written, batch, elements)
        return outputs, [*launches, Launch(fdiv_fwd_kernel, batch, arguments, options)]
    options["PIECES"] = spread.pieces
    options["OFFSET"] = tl.int64 if spread.wide_offsets else tl.int32
    grid = (spread.programs, spread.tiles)
    chunks = -(-batch // spread.samples)
    arguments = (operands, weight_operands, generator, written, batch, elements, *grid, chunks)
    launches.append(Launch(fdiv_reduce_kernel, batch * spread.programs, arguments, options))
    if call.with_grad:
        arguments = (operands, written, batch, elements, *grid)
        names = (*ELEMENT_NUMBERS, "KIND", "RUN", "TILE", "OFFSET", "WIDE", "num_warps")
        options = {name: options[name] for name in names}
        launches.append(Launch(fdiv_apply_kernel, batch * spread.programs, arguments, options))
    return outputs, launches


def _generator(call: FdivArguments, gradient: Tensor, unscale: Tensor) -> tuple[Generator, int, float]:
    """(the term's tensors, heads at a time, divisor)"""
    logits = call.gan_logits
    if logits is None:
        return Generator(None, 1, 1, None, None, None), 1, 1.0
    heads = logits.numel() // logits.shape[0]
    at_a_time = heads_at_a_time(heads)
    divisor = {"mean": logits.numel(), "none": heads, "sum": 1}[call.reduction]
    tensors = Generator(
        logits.contiguous(), heads, -(-heads // at_a_time), gradient if call.gan_grad else None,
        unscale if unscale.numel() else None, logits.new_empty((logits.shape[0],), dtype=torch.float64),
    )  # fmt: skip
    return tensors, at_a_time, float(divisor)


def _weigh(call: WeightArguments, weight: Tensor, stats: Tensor) -> Launch:
    batch = weight.shape[0]
    weighting = _weight_operands(call, None)
    bins, heads = next_power_of_2(weighting.bins), heads_at_a_time(weighting.heads)
    block = max(16, min(next_power_of_2(batch), WEIGHT_SAMPLES, 8192 // max(bins, heads)))
    options = {
        **_weight_options(call), **_weight_numbers(call, weighting.bins), "SAMPLES": block, "BINS": bins,
        "HEADS": heads, "num_warps": 8,
    }  # fmt: skip
    return Launch(fdiv_weight_kernel, 1, (weighting, weight, stats, batch, -(-batch // block)), options)


def _weight_options(call: WeightArguments) -> dict[str, Any]:
    """Compile-time options of every kernel that weighs. All calls without logits share one set of them."""
    if call.logits is None:
        return {"DIVERGENCE": "rkl", "NORMALIZE": False, "UPDATE": False}
    update = call.update and call.ratio_mean is not None and not inside_backward()
    return {"DIVERGENCE": call.divergence, "NORMALIZE": call.normalize_weight, "UPDATE": update}


def _weight_numbers(call: WeightArguments, bins: int) -> dict[str, Any]:
    """The numbers of every kernel that weighs."""
    return {name: getattr(call, name) for name in WEIGHT_NUMBERS} | {"bin_width": (call.t_max - call.t_min) / bins}


def _weight_operands(call: WeightArguments, weight: Tensor | None) -> WeightOperands:
    t, weight = readable(call.t), readable(weight)
    if call.logits is None:
        return WeightOperands(None, 1, 1, t, weight, None, 1, None)
    heads = call.heads()
    bins = call.bins() or 1
    chunks = -(-heads // heads_at_a_time(heads))
    return WeightOperands(call.logits.contiguous(), heads, chunks, t, weight, call.ratio_mean, bins, call.edges)


def _operands(call: FdivArguments) -> Operands:
    multiplier = table(call.multiplier)
    several = multiplier is not None and multiplier.entries > 1
    return Operands(
        samples(call.student), samples(call.teacher), samples(call.fake), samples(call.teacher_uncond),
        samples(call.fake_uncond), samples(call.noisy), table(call.alpha), table(call.sigma),
        None if several else multiplier, multiplier if several else None, table(call.mask),
        scalar(call.divisor, call.student.device),
    )  # fmt: skip
