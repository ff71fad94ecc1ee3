"""Claims about every compiled Triton kernel, which can fail."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from fdkernels._triton.launch import Launch
from fdkernels.fdiv.triton_elements import CAREFUL
from tools.machine_code.compiled import Compiled

# On some targets ptxas spills four registers (16 bytes), so that a third program fits on a multiprocessor. The last
# program reads them back when it reports.
MOST_SPILLED = 16
# Enough warps for loads in flight: 12 with at least one 128-bit load from each input; 32 if a kernel only streams, 24
# if it may draw noise.
FEWEST_WARPS = {
    "fdiv_fwd_kernel": 12,
    "fdiv_reduce_kernel": 12,
    "fdiv_apply_kernel": 32,
    "scale_kernel": 32,
    "noising_kernel": 24,
    "denoising_kernel": 16,
    "adversarial_kernel": 20,
    "implicit_fwd_kernel": 16,
    "implicit_reduce_kernel": 16,
    "implicit_apply_kernel": 24,
}
MOST_SHARED = 8192  # bytes; only reductions between warps use it
HAS_A_CAREFUL_BRANCH = ("fdiv_fwd_kernel", "fdiv_reduce_kernel")
DRAWS_A_TICKET = (
    *HAS_A_CAREFUL_BRANCH,
    "denoising_kernel",
    "adversarial_kernel",
    "implicit_fwd_kernel",
    "implicit_reduce_kernel",
)
BYTES_WIDE = 16


@dataclass
class Expected:
    """128-bit accesses that aligned tensors of one dtype make possible; 0 if a thread's share is smaller.

    A kernel with the careful branch has its loads in the code twice. Both are counted, so that no narrow load can hide.
    """

    loads: int
    stores: int


def expected_accesses(launch: Launch, read: list[Tensor], written: tuple[torch.dtype, ...], warp: int) -> Expected:
    threads = warp * launch.options["num_warps"]
    each = launch.options.get("TILE", 0) // threads
    careful = CAREFUL.value // threads if launch.kernel.__name__ in HAS_A_CAREFUL_BRANCH else 0

    def accesses(bytes_an_element: int, elements: int = each) -> int:
        return elements * bytes_an_element // BYTES_WIDE

    loads = sum(accesses(v.element_size()) + accesses(v.element_size(), careful) for v in read)
    is_scale = launch.kernel.__name__ == "scale_kernel"  # whose gradients do not meet
    same = is_scale or len({image.dtype for image in read} | set(written)) == 1
    stores = sum(accesses(torch.empty((), dtype=dtype).element_size()) for dtype in written) if same else 0
    return Expected(loads, stores)


def failures(compiled: Compiled, expected: Expected) -> list[str]:
    """The claims that a kernel breaks, in words."""
    name, found = compiled.kernel, []
    if compiled.spilled > MOST_SPILLED:
        found.append(f"spills {compiled.spilled} bytes")
    if compiled.resident < FEWEST_WARPS.get(name, 0):
        found.append(f"{compiled.registers} registers: {compiled.resident} warps resident, {FEWEST_WARPS[name]} wanted")
    if compiled.shared > MOST_SHARED:
        found.append(f"{compiled.shared} bytes of shared memory, at most {MOST_SHARED} wanted")
    if compiled.wide_loads < expected.loads:
        found.append(f"{compiled.wide_loads} loads of 128 bits, {expected.loads} wanted")
    if compiled.wide_stores < expected.stores:
        found.append(f"{compiled.wide_stores} stores of 128 bits, {expected.stores} wanted")
    if expected.stores and compiled.narrow_stores:
        found.append(f"{compiled.narrow_stores} stores below 32 bits")
    if compiled.float_atomics:
        found.append(f"{compiled.float_atomics} float atomics")
    if compiled.narrow_numbers:
        found.append(f"passes {', '.join(compiled.narrow_numbers)} as float32")
    tickets = 1 if name in DRAWS_A_TICKET else 0
    if compiled.integer_atomics != tickets:
        found.append(f"{compiled.integer_atomics} integer atomics, {tickets} wanted")
    return found
