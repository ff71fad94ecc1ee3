"""The op `noising` in Triton: from a call to its launch."""

from __future__ import annotations

import math
from typing import Any

import triton.language as tl
from torch import Tensor

from fdkernels._triton import plan
from fdkernels._triton.launch import Launch, on, start
from fdkernels._triton.operands import samples, shared_levels, table
from fdkernels.noising.arguments import NOISING, NoisingArguments, check_noising, noising_outputs
from fdkernels.noising.triton_kernels import Operands, noising_kernel

TILE, PROGRAMS = 1_024, 4_096


def noising(*operands: Any) -> tuple[Tensor, Tensor]:
    """The op `noising_triton`."""
    call = NOISING.call(*operands)
    check_noising(call)
    with on(call.x.device):
        outputs, launches = noising_launches(call)
        start(launches)
    return outputs


def noising_launches(call: NoisingArguments) -> tuple[tuple[Tensor, Tensor], list[Launch]]:
    """((y, drawn), the launch that writes them) of a checked call."""
    x = call.x
    batch, elements = x.shape[0], math.prod(x.shape[1:])
    outputs = y, drawn = noising_outputs(call)
    operands = Operands(samples(x), samples(call.noise), call.seed, table(call.alpha), table(call.sigma))
    tiles, programs = plan.spread(elements, TILE, max(1, PROGRAMS // batch))
    run, by_four = shared_levels(operands.alpha, operands.sigma, x), elements % 4 == 0
    heavy = (
        call.is_wide() or run == 1 or (call.seed is not None and not by_four)
    )  # with four warps, registers are short
    arguments = (operands, y, drawn if call.with_noise else None, elements, programs, tiles)
    options = {
        "fixed_alpha": call.fixed_alpha, "fixed_sigma": call.fixed_sigma, "sigma_data": call.sigma_data,
        "RESULT": call.result, "KIND": call.kind(),
        "RUN": run, "BY_FOUR": by_four, "TILE": TILE,
        "OFFSET": tl.int64 if plan.needs_int64(programs * tiles * TILE) else tl.int32,
        "WIDE": tl.float64 if call.is_wide() else tl.float32, "num_warps": 8 if heavy else 4,
    }  # fmt: skip
    return outputs, [Launch(noising_kernel, batch * programs, arguments, options)]
