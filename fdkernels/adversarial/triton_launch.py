"""The op `adversarial` in Triton: from a call to its launch."""

from __future__ import annotations

import math
from typing import Any

import torch
import triton.language as tl
from torch import Tensor

from fdkernels._triton import plan
from fdkernels._triton.launch import Launch, on, start, ticket
from fdkernels._triton.operands import Samples, samples
from fdkernels.adversarial.arguments import (
    ADVERSARIAL,
    AdversarialArguments,
    adversarial_outputs,
    check_adversarial,
)
from fdkernels.adversarial.triton_kernels import Written, adversarial_kernel

TILE, PROGRAMS = 256, 4_096
PIECES, SUMS = 64, 1_024  # partial sums of at most PIECES programs of a run, and SUMS in all, at a time


def adversarial(*operands: Any) -> tuple[Tensor, ...]:
    """The op `adversarial_triton`."""
    call = ADVERSARIAL.call(*operands)
    check_adversarial(call)
    with on(call.logits.device):
        outputs, launches = adversarial_launches(call)
        start(launches)
    return outputs


def adversarial_launches(call: AdversarialArguments) -> tuple[tuple[Tensor, ...], list[Launch]]:
    """(the op's outputs, the launch that writes them) of a checked call."""
    logits, others, each = call.logits, call.others, call.reduction == "none"
    outputs = adversarial_outputs(call)
    runs, elements = logits.shape[0], logits.numel() // logits.shape[0]
    first, second = samples(logits), samples(others)
    if not each and logits.is_contiguous() and (others is None or others.is_contiguous()):
        # One run, not many short ones.
        runs, elements = 1, logits.numel()
        first, second = Samples(logits, 0), None if others is None else Samples(others, 0)
    tiles, programs = plan.spread(elements, TILE, max(1, PROGRAMS // runs))
    loss, gradient, unscale, others_gradient, others_unscale = outputs
    written = Written(
        loss, _asked(gradient), _asked(unscale), _asked(others_gradient), _asked(others_unscale),
        logits.new_empty((runs * programs,), dtype=torch.float64), ticket(logits.device),
    )  # fmt: skip
    pieces = min(PIECES, plan.next_power_of_2(programs))
    options = {
        "sign": -1.0 if call.raised else 1.0, "bound": call.bound or math.inf, "divisor": float(call.divisor()),
        "headroom": call.headroom(), "KIND": call.kind, "EACH": each, "TILE": TILE,
        "SAMPLES": SUMS // pieces, "PIECES": pieces,
        "OFFSET": tl.int64 if plan.needs_int64(programs * tiles * TILE) else tl.int32, "num_warps": 4,
    }  # fmt: skip
    arguments = (first, second, written, runs, elements, programs, tiles)
    return outputs, [Launch(adversarial_kernel, runs * programs, arguments, options)]


def _asked(output: Tensor) -> Tensor | None:
    return output if output.numel() else None
