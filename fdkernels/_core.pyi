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

# ---- plans of the CUDA backend, from csrc/core/plan.h

class DeviceLimits(TypedDict):
    capability: int  # 10 major + minor
    multiprocessors: int
    shared_per_block: int  # bytes, the opt-in limit of a block
    shared_per_multiprocessor: int  # bytes
    cache: int  # bytes of L2
    bandwidth: float  # of memory, bytes/s
    active_clusters: Sequence[int]  # resident clusters of size 1, 2, 4, 8, 16; 0: this size cannot be scheduled

class Plan(TypedDict):
    schedule: Literal["cluster", "grid"]
    team: int  # blocks that share a sample
    teams: int  # teams that run side by side
    blocks: int  # team x teams
    threads: int  # per block
    weighing: int  # threads of a block that weigh the batch and take no elements
    share: int  # elements of a sample per block
    held: int  # vectors of its share that a block holds on chip
    buffers: int  # samples that a block holds at a time
    shared_bytes: int  # dynamic shared memory per block
    again: int  # elements of a sample that are read a second time, for its gradient
    prefetched: int  # elements of each share of the next sample that are prefetched into L2
    weigh_first: bool  # one or three extra launches compute h first
    count_first: bool  # an extra launch counts the mask's entries first
    launches: int
    phases: float  # how often inputs are read: 1 + again / elements
    loads: str  # the kernel's combination of types
    general: bool  # reads more than x, τ and f, or finds types at run time
    vector: int  # elements per 16-byte access of the widest stored type
    minimum_bytes: float  # N-sized inputs read once and the gradient written once
    bytes: float  # predicted traffic between memory and chip
    seconds: float  # predicted

def plan(call: CallShape, limits: DeviceLimits, allowed: str = "auto") -> Plan:
    """How the CUDA backend spreads a call over a device. Its launcher calls the same function.

    `allowed`: auto, cluster, cluster:1 to cluster:16, grid or grid:1 to grid:64.

    Raises:
        ValueError: an argument is out of range, or no allowed schedule can hold a sample.
    """

def plans(call: CallShape, limits: DeviceLimits, allowed: str = "auto") -> list[Plan]:
    """Every allowed schedule that can run, in the order of the choice; the first is `plan`'s. The choice compares the
    seconds of the same call with figures and a gradient, so that neither option changes the schedule."""
