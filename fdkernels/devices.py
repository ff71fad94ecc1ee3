"""Limits of GPUs, from which the CUDA backend plans its launches (`DeviceLimits` of `csrc/core/plan.h`).

`PRESETS` are for plans without a GPU: `python -m fdkernels plan` and tests. At run time the device is asked instead.
Only `present` imports torch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor

    from fdkernels._core import DeviceLimits

CLUSTER_SIZES = (1, 2, 4, 8, 16)

FIELDS = (
    "capability", "multiprocessors", "shared_per_block", "shared_per_multiprocessor", "cache", "bandwidth",
    "active_clusters",
)  # fmt: skip

# Shared memory in KiB (per block, per multiprocessor), by compute capability: CUDA C++ Programming Guide, "Technical
# Specifications per Compute Capability".
_SHARED = {80: (163, 164), 89: (99, 100), 90: (227, 228), 100: (227, 228), 120: (99, 100)}


def _limits(*values: Any) -> DeviceLimits:
    """Limits from the values of FIELDS."""
    return dict(zip(FIELDS, values, strict=True))  # type: ignore[return-value]


def _preset(
    capability: int, multiprocessors: int, cache_mib: int, bandwidth: float, active_clusters: tuple[int, ...]
) -> DeviceLimits:
    a_block, a_multiprocessor = (kib << 10 for kib in _SHARED[capability])
    return _limits(capability, multiprocessors, a_block, a_multiprocessor, cache_mib << 20, bandwidth, active_clusters)


# The numbers of resident clusters (of CLUSTER_SIZES) are assumptions unless a source is named: no datasheet states
# them. A cluster stays within a GPC, so they depend on how many multiprocessors each GPC has, which differs from chip
# to chip. At run time cudaOccupancyMaxActiveClusters gives them.
PRESETS: dict[str, DeviceLimits] = {
    # A100 SXM 80 GB datasheet: 2,039 GB/s. A100 whitepaper: 108 multiprocessors, 40 MB of L2. No clusters.
    "a100": _preset(80, 108, 40, 2.039e12, (108, 0, 0, 0, 0)),
    # L40S datasheet: 864 GB/s. Ada whitepaper (AD102): 142 multiprocessors, 96 MB of L2. No clusters.
    "l40s": _preset(89, 142, 96, 864e9, (142, 0, 0, 0, 0)),
    # H100 SXM datasheet: 3.35 TB/s. H100 whitepaper: 132 multiprocessors, 50 MB of L2.
    # Clusters: as CUDA's runtime reported on one H100.
    "h100": _preset(90, 132, 50, 3.35e12, (132, 66, 30, 15, 7)),
    # H200 SXM datasheet: 4.8 TB/s; the chip is H100's.
    "h200": _preset(90, 132, 50, 4.8e12, (132, 66, 30, 15, 7)),
    # DGX B200 datasheet: 8 TB/s per GPU. 148 multiprocessors and 126 MB of L2: what others report the runtime to say.
    # Clusters: eight GPCs of 16 or more.
    "b200": _preset(100, 148, 126, 8e12, (148, 74, 36, 16, 8)),
    # RTX Blackwell whitepaper: 170 multiprocessors, 96 MB of L2, 1,792 GB/s, eleven GPCs.
    # Clusters: eight GPCs of 16, three of 14; none of size 16, which is not a portable size.
    "rtx5090": _preset(120, 170, 96, 1.792e12, (170, 85, 41, 19, 0)),
}


def present(index: int) -> DeviceLimits:
    """The limits of a GPU of this machine, from CUDA's runtime.

    Raises:
        RuntimeError: there is no such GPU, or it can't be asked; the message says why.
    """
    import torch

    import fdkernels._op.registry  # noqa: F401, which defines the op
    from fdkernels import backends

    reason = backends.load_native("cuda")
    if reason is not None:
        raise RuntimeError(reason)
    found = torch.cuda.device_count()
    if index >= found:
        raise RuntimeError(f"torch finds {found} GPUs")
    return limits_of(torch.ops.fdkernels.cuda_limits(index))


def limits_of(told: Tensor) -> DeviceLimits:
    """The result of the op `cuda_limits`, by name."""
    values = told.tolist()
    return _limits(*map(int, values[:5]), values[5], tuple(map(int, values[6:])))
