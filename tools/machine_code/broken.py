"""python -m tools.machine_code.broken TARGET: kernels broken on purpose, and which claims catch them, as JSON.

Each runs in its own process, since it replaces parts of the kernels before they are first compiled.
"""

from __future__ import annotations

import json
import math
import multiprocessing
import sys
from concurrent.futures import ProcessPoolExecutor

import torch
import triton
import triton.language as tl

from fdkernels._triton.launch import Launch
from fdkernels.fdiv import triton_kernels
from fdkernels.fdiv.triton_launch import forward_launches
from fdkernels.implicit.triton_launch import implicit_launches
from tools.machine_code.cases import CIFAR, SD15, SDXL, call, implicit, meta
from tools.machine_code.claims import expected_accesses, failures
from tools.machine_code.compiled import TARGETS, compile_for


@triton.jit
def float_atomic(ticket):
    """Adds up the loss without an order."""
    tl.atomic_add(ticket.to(tl.pointer_type(tl.float32)), 1.0)
    return tl.atomic_add(ticket, 1, sem="acq_rel", scope="gpu") == tl.num_programs(0) - 1


@triton.jit
def second_ticket(ticket):
    tl.atomic_add(ticket, 1)
    return tl.atomic_add(ticket, 1, sem="acq_rel", scope="gpu") == tl.num_programs(0) - 1


@triton.jit
def no_ticket(ticket):
    return tl.program_id(0) == tl.num_programs(0) - 1


@triton.jit
def crowded_store(written, norm, gap, distance, nonfinite, term):
    """Sends figures through shared memory: the block is transposed."""
    i = tl.arange(0, 64)
    block = tl.load(written.partials + i[:, None] * 64 + i[None, :])
    tl.store(
        written.partials + i[:, None] * 64 + i[None, :], tl.trans(block) + norm + gap + distance + nonfinite + term
    )


def misaligned() -> Launch:
    """Samples of 3,075 elements: every other one starts at an odd address."""
    return forward_launches(call((64, 3, 41, 25)))[1][0]


def one_misaligned(name: str) -> Launch:
    """In the split schedule, one input's samples lie an odd number of elements apart."""
    batch, elements = SDXL[0], math.prod(SDXL[1:])
    image = meta(batch, elements + 1, dtype=torch.bfloat16)[:, 1:].view(SDXL)
    return forward_launches(call(SDXL)._replace(**{name: image}))[1][0]


def crowded(warps: int) -> Launch:
    """Too few warps for 16,384 elements."""
    launch = forward_launches(call(SD15))[1][0]
    return launch._replace(options={**launch.options, "num_warps": warps})


def implicit_in_one_warp() -> Launch:
    launch = implicit_launches(implicit(CIFAR))[1][0]
    return launch._replace(options={**launch.options, "num_warps": 1})


def with_part(name: str, part: object, **changes: object) -> Launch:
    setattr(triton_kernels, name, part)
    return forward_launches(call(CIFAR, **changes))[1][0]


BROKEN = {
    "misaligned": misaligned,
    "misaligned student": lambda: one_misaligned("student"),
    "misaligned fake": lambda: one_misaligned("fake"),
    "one warp": lambda: crowded(1),
    "four warps": lambda: crowded(4),
    "float atomic": lambda: with_part("is_last", float_atomic),
    "two tickets": lambda: with_part("is_last", second_ticket),
    "no ticket": lambda: with_part("is_last", no_ticket),
    "implicit, one warp": implicit_in_one_warp,
    "shared memory": lambda: with_part("_store_figures", crowded_store, with_stats=True),
}


def caught_by(target: str, name: str) -> list[str]:
    launch = BROKEN[name]()
    compiled = compile_for(launch, TARGETS[target])
    written = (torch.bfloat16,) if launch.kernel.__name__ == "fdiv_fwd_kernel" else ()
    read = [launch.arguments[0].student.data] * 3
    expected = expected_accesses(launch, read, written, TARGETS[target].warp_size)
    return failures(compiled, expected)


if __name__ == "__main__":
    found = {}
    for name in BROKEN:
        with ProcessPoolExecutor(1, multiprocessing.get_context("fork")) as process:
            found[name] = process.submit(caught_by, sys.argv[1], name).result()
    print(json.dumps(found))
