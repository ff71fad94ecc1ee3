"""The op `implicit` in Triton: from a call to its launches."""

from __future__ import annotations

import math
from typing import Any

import torch
import triton.language as tl
from torch import Tensor

from fdkernels._triton.launch import Launch, on, start, ticket
from fdkernels._triton.operands import readable, samples
from fdkernels.implicit.arguments import (
    IMPLICIT,
    ImplicitArguments,
    check_implicit,
    divisor_and_power,
    implicit_outputs,
)
from fdkernels.implicit.triton_kernels import (
    Operands,
    Written,
    implicit_apply_kernel,
    implicit_fwd_kernel,
    implicit_reduce_kernel,
)
from fdkernels.implicit.triton_plan import plan

NUMBERS = ("alpha", "floor", "c", "fixed_score_scale", "fixed_weight", "fixed_square_weight")


def implicit(*operands: Any) -> tuple[Tensor, ...]:
    """The op `implicit_triton`."""
    call = IMPLICIT.call(*operands)
    check_implicit(call)
    with on(call.student.device):
        outputs, launches = implicit_launches(call)
        start(launches)
    return outputs


def implicit_launches(call: ImplicitArguments) -> tuple[tuple[Tensor, ...], list[Launch]]:
    """(the op's results, the launches that write them) of a checked call."""
    student = call.student
    batch, elements = student.shape[0], math.prod(student.shape[1:])
    spread = plan(batch, elements, call.is_wide())
    split = spread.schedule == "split"
    outputs = loss, *gradients = implicit_outputs(call)
    # The slopes, an even number, come first: the partial sums are then aligned to 16 bytes.
    workspace = student.new_empty((2 * batch + (3 if split else 1) * batch * spread.programs,), dtype=torch.float64)
    operands = Operands(
        samples(student), samples(call.teacher), samples(call.fake), readable(call.score_scale), readable(call.weight),
        readable(call.square_weight),
    )  # fmt: skip
    asked = [output if output.numel() else None for output in gradients]
    written = Written(
        loss, asked[0], asked[2], asked[4], asked[1], asked[3], asked[5], workspace[2 * batch :], workspace,
        ticket(student.device),
    )  # fmt: skip
    divisor, power = divisor_and_power(call)
    options = {
        "divisor": divisor, "power": power, **{name: getattr(call, name) for name in NUMBERS}, "KIND": call.kind,
        "REDUCTION": call.reduction, "SAMPLES": spread.samples, "TILE": spread.tile,
        "WIDE": tl.float64 if call.is_wide() else tl.float32, "num_warps": spread.num_warps,
    }  # fmt: skip
    if not split:
        return outputs, [Launch(implicit_fwd_kernel, batch, (operands, written, batch, elements), options)]
    options |= {"PIECES": spread.pieces, "OFFSET": tl.int64 if spread.wide_offsets else tl.int32}
    arguments = (operands, written, batch, elements, spread.programs, spread.tiles)
    launches = [Launch(implicit_reduce_kernel, batch * spread.programs, arguments, options)]
    if any(gradient is not None for gradient in asked):
        options = {name: options[name] for name in ("power", "TILE", "OFFSET", "WIDE", "num_warps")}
        launches.append(Launch(implicit_apply_kernel, batch * spread.programs, arguments, options))
    return outputs, launches
