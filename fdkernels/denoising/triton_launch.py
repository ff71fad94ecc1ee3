"""The op `denoising` in Triton: from a call to its launch."""

from __future__ import annotations

import math
from typing import Any

import torch
import triton.language as tl
from torch import Tensor

from fdkernels._triton import plan
from fdkernels._triton.launch import Launch, on, start, ticket
from fdkernels._triton.operands import samples, scalar, shared_levels, table
from fdkernels.denoising.arguments import DENOISING, DenoisingArguments, check_denoising, denoising_outputs
from fdkernels.denoising.triton_kernels import Operands, Written, denoising_kernel

TILE, PROGRAMS = 1_024, 4_096
PIECES, SUMS = 64, 1_024  # partial sums of at most PIECES programs of a sample, and SUMS in all, at a time


def denoising(*operands: Any) -> tuple[Tensor, Tensor, Tensor]:
    """The op `denoising_triton`."""
    call = DENOISING.call(*operands)
    check_denoising(call)
    with on(call.pred.device):
        outputs, launches = denoising_launches(call)
        start(launches)
    return outputs


def denoising_launches(call: DenoisingArguments) -> tuple[tuple[Tensor, Tensor, Tensor], list[Launch]]:
    """((loss, gradient, unscale), the launch that writes them) of a checked call."""
    pred = call.pred
    batch, elements = pred.shape[0], math.prod(pred.shape[1:])
    outputs = loss, gradient, unscale = denoising_outputs(call)
    tiles, programs = plan.spread(elements, TILE, max(1, PROGRAMS // batch))
    operands = Operands(
        samples(pred), samples(call.x0), samples(call.noise), table(call.alpha), table(call.sigma), table(call.weight),
        scalar(call.divisor, pred.device),
    )  # fmt: skip
    written = Written(
        loss, gradient if call.with_grad else None, unscale if unscale.numel() else None,
        pred.new_empty((batch * programs,), dtype=torch.float64), ticket(pred.device),
    )  # fmt: skip
    divisor = {"mean": batch * elements, "none": elements, "sum": 1}[call.reduction]
    pieces = min(PIECES, plan.next_power_of_2(programs))
    run = shared_levels(operands.alpha, operands.sigma, pred)
    options = {
        "divisor": float(divisor), "fixed_alpha": call.fixed_alpha, "fixed_sigma": call.fixed_sigma,
        "sigma_data": call.sigma_data, "REDUCTION": call.reduction, "KIND": call.prediction, "RUN": run, "TILE": TILE,
        "SAMPLES": SUMS // pieces, "PIECES": pieces,
        "OFFSET": tl.int64 if plan.needs_int64(programs * tiles * TILE) else tl.int32,
        "WIDE": tl.float64 if call.is_wide() else tl.float32, "num_warps": 8 if call.is_wide() or run == 1 else 4,
        "enable_fp_fusion": False,  # it would undo `difference`
    }  # fmt: skip
    arguments = (operands, written, batch, elements, programs, tiles)
    return outputs, [Launch(denoising_kernel, batch * programs, arguments, options)]
