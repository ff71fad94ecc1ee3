"""Types of the pybind11 module; its source is csrc/bindings.cpp."""

from collections.abc import Sequence
from typing import Literal, TypedDict

import numpy as np
from numpy.typing import ArrayLike, NDArray

from fdkernels.call_shape import CallShape

class BuildInfo(TypedDict):
    version: str
    compiler: str
    flags: str
    isa: list[str]
    cuda: str  # nvcc's version, or "none"
    cuda_archs: list[str]  # "90": machine code; "90+PTX": PTX

def build_info() -> BuildInfo: ...
def divergences() -> list[str]: ...
def arguments(op: str) -> list[tuple[str, str]]: ...
def log_weight(name: str, log_ratio: ArrayLike, alpha: float | None = None) -> NDArray[np.float64]: ...

# ---- plans of the CUDA backend; csrc/core/plan.h

class DeviceLimits(TypedDict):
    capability: int  # 10 major + minor
    multiprocessors: int
    shared_per_block: int  # bytes that a block may ask for, the opt-in limit
    shared_per_multiprocessor: int  # bytes
    cache: int  # bytes of L2
    bandwidth: float  # of memory, bytes/s
    active_clusters: Sequence[int]  # resident ones of the sizes 1, 2, 4, 8, 16; 0: cannot be scheduled

class Plan(TypedDict):
    schedule: Literal["cluster", "grid"]
    team: int  # blocks that share a sample
    teams: int  # that run side by side
    blocks: int  # team x teams
    threads: int  # a block
    share: int  # elements of a sample that a block takes
    held: int  # vectors of them that it holds on chip
    buffers: int  # samples that it holds at a time
    shared_bytes: int  # dynamic, a block
    again: int  # elements of a sample that its gradient has read a second time
    prefetched: int  # elements of each share of the next sample that go to L2 ahead of their loads
    weigh_first: bool  # launches of their own, one or three, compute h
    count_first: bool  # another counts a mask's entries
    wide_offsets: bool  # an element's index in its sample needs more than 32 bits
    launches: int
    phases: float  # how often inputs are read: 1 + again / elements
    loads: str  # the kernel's types
    general: bool  # beyond x, τ and f, or an odd mix of types
    vector: int  # elements of a 16-byte access of the widest stored type
    minimum_bytes: float  # of N-sized inputs read once and the gradient written once
    bytes: float  # predicted, between memory and chip
    seconds: float  # predicted

def plan(call: CallShape, limits: DeviceLimits, allowed: str = "auto") -> Plan:
    """How the CUDA backend spreads a call over a device: the very function that its launcher obeys.

    `allowed`: auto, cluster, cluster:1 to cluster:16, grid or grid:1 to grid:64.

    Raises:
        ValueError: an argument is out of range, or nothing that is allowed can hold a sample.
    """

def plans(call: CallShape, limits: DeviceLimits, allowed: str = "auto") -> list[Plan]:
    """Every schedule that is allowed and can run; the first is `plan`'s. Their order is that of the same call's seconds
    with figures and a gradient, by which schedules are chosen."""
