"""Breaks kernels of the CUDA library on purpose: changes a few words of the sources, then compiles one kernel."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path
from typing import NamedTuple

from tools.machine_code.cuda_library import ROOT, CudaKernel, inspect

ARCH = 90
INSTANCE = """
#include "fdiv/cuda/kernel.cuh"
namespace fdkernels::cuda {{
template __global__ void {kernel}<Types<{types}>, {general}>(const __grid_constant__ Call);
}}
"""


class Change(NamedTuple):
    file: str
    """Its path in csrc/."""
    old: str
    new: str


class Broken(NamedTuple):
    caught: tuple[str, ...]
    """Parts of the messages of the claims that must fail."""
    changes: tuple[Change, ...] = ()
    kernel: str = "fdiv_cluster_kernel"
    types: str = "Bf16, Bf16, float"
    general: bool = False


def in_file(file: str, *pairs: tuple[str, str]) -> tuple[Change, ...]:
    return tuple(Change(file, old, new) for old, new in pairs)


TICKET = "Counter(*ticket).fetch_add(1, ::cuda::memory_order_acq_rel)"
NARROW_LOAD = """const unsigned* words_ = static_cast<const unsigned*>(from);
    const uint4 v = {__ldg(words_), __ldg(words_ + 1), __ldg(words_ + 2), __ldg(words_ + 3)};"""
EACH_WORD, PLANE = "for (int n = 0; n < 4; ++n)", "((volatile uint32_t*)(plane + j * held))"
NARROW_STORE = """for (int n = 0; n < W * static_cast<int>(sizeof(S)) / 4; ++n)
        reinterpret_cast<volatile uint32_t*>(out)[n] = words.word[n];"""

UNBROKEN = {
    "cluster": Broken(()),
    "grid": Broken((), kernel="fdiv_grid_kernel", types="Half, float, float"),
}

# Independent faults share an entry, since each entry is a compilation.
BROKEN = {
    "eight vectors in flight, few threads": Broken(
        ("registers, at most",),
        (
            *in_file("fdiv/elements.h", ("kGeneral ? 1 : 2;", "8;")),
            *in_file("fdiv/cuda/kernel.cuh", ("most_threads(kGeneral), 1)", "128, 1)")),
        ),
    ),
    "one vector in flight": Broken(
        ("loads before the first use",), in_file("fdiv/elements.h", ("kGeneral ? 1 : 2;", "1;"))
    ),
    "three blocks a multiprocessor": Broken(
        ("spills",), in_file("fdiv/cuda/kernel.cuh", ("kGeneral), 1)", "kGeneral), 3)"))
    ),
    "functions inlined everywhere": Broken(
        ("KB of code",),
        in_file("core/host_device.h", ("FDK_CALLED __noinline__ inline", "FDK_CALLED __forceinline__")),
    ),
    "narrow loads and stores": Broken(
        (
            "0 loads of elements of 128 bits", "loads of elements of 32 bits",
            "0 stores of the gradient of 128 bits", "stores of the gradient of 32 bits",
        ),
        in_file(
            "core/vectors.h",
            ("const uint4 v = __ldg(static_cast<const uint4*>(from));", NARROW_LOAD),
            ("write_words<W * sizeof(S)>(words, out);", NARROW_STORE),
        ),
    ),
    "narrow accesses on chip, double sums, no ticket": Broken(
        (
            "0 stores on chip of 128 bits", "0 loads on chip of 128 bits", "instructions of double arithmetic",
            "0 integer atomics",
        ),
        (
            *in_file(
                "core/share.h",
                ("plane[j * held] = planes[j];", f"{EACH_WORD} {PLANE}[n] = planes[j].word[n];"),
                ("planes[j] = plane[j * held];", f"{EACH_WORD} planes[j].word[n] = {PLANE}[n];"),
            ),
            *in_file(
                "fdiv/elements.h",
                (
                    "sums.add(added(gap[n], gap[n], has_x ? x[n] - tau[n] : T(0), true));",
                    "sums.energy = static_cast<T>(sums.energy + double{gap[n]} * gap[n]);",
                ),
            ),
            *in_file("core/cuda/block.cuh", (TICKET, "(*ticket)++")),
        ),
    ),
    "one block instead of a cluster, no bulk copies": Broken(
        ("2 cluster barriers", "no store to distributed shared memory", "0 bulk prefetches"),
        (
            *in_file(
                "core/cuda/schedules.cuh",
                ("cluster.sync();", "elements.sync();"),
                (
                    "constexpr int kMaxCluster",
                    "template <class T>\n__device__ T* own(T* p, int) {\n  return p;\n}\nconstexpr int kMaxCluster",
                ),
                ("cluster.map_shared_rank(", "own("),
            ),
            *in_file("core/cuda/ptx.cuh", ("cp.async.bulk.prefetch.L2.global [%0], %1;", "// %0 %1")),
        ),
    ),
    "shared memory, a float atomic, two tickets, a call": Broken(
        ("bytes of static shared memory", "1 float atomics", "2 integer atomics", "calls"),
        (
            *in_file(
                "core/cuda/schedules.cuh",
                ("  bool drawn;\n", "  bool drawn;\n  double more[512];\n"),
                ("    Op::report(call, elements, shared);", '    printf("done"), Op::report(call, elements, shared);'),
            ),
            *in_file("fdiv/cuda/kernel.cuh", ("static_assert(sizeof(Shared) <= kStaticShared);", "")),
            *in_file(
                "core/cuda/block.cuh",
                (TICKET, f"(atomicAdd(reinterpret_cast<float*>(ticket) + 1, 1.0f), {TICKET}, {TICKET})"),
            ),
        ),
    ),
    "grid: busy waiting, narrow stores of mixed types": Broken(
        ("no sleep", "0 stores of the gradient of 64 bits", "stores of the gradient of 32 bits"),
        (
            *in_file("core/cuda/schedules.cuh", ("__nanosleep(32);", ";")),
            *in_file("core/vectors.h", ("write_words<W * sizeof(S)>(words, out);", NARROW_STORE)),
        ),
        kernel="fdiv_grid_kernel",
        types="Bf16, float, float",
    ),
}  # fmt: skip


def find_nvcc() -> str | None:
    home = os.environ.get("CUDA_HOME", "/usr/local/cuda")
    names = (os.environ.get("CUDACXX"), "nvcc", f"{home}/bin/nvcc")
    return next((path for name in names if name and (path := shutil.which(name))), None)


def compile_broken(broken: Broken, nvcc: str, folder: Path) -> CudaKernel:
    """Write the changed sources to `folder`, compile the one kernel, and return its figures."""
    for part in ("core", "fdiv"):
        shutil.copytree(ROOT / "csrc" / part, folder / part)
    for change in broken.changes:
        path = folder / change.file
        text = path.read_text()
        if change.old not in text:
            raise LookupError(f"csrc/{change.file} holds no {change.old!r} any more: break it elsewhere")
        path.write_text(text.replace(change.old, change.new))
    source, cubin = folder / "broken.cu", folder / "broken.cubin"
    general = str(broken.general).lower()
    source.write_text(INSTANCE.format(kernel=broken.kernel, types=broken.types, general=general))
    command = (
        nvcc, "-std=c++20", "--expt-relaxed-constexpr", "-O3", f"-arch=sm_{ARCH}", "-cubin", "-I",
        str(folder), "-o", str(cubin), str(source),
    )  # fmt: skip
    compiled = subprocess.run(command, capture_output=True, text=True)
    if compiled.returncode:
        raise RuntimeError(compiled.stderr)
    (kernel,) = inspect(cubin, ARCH)
    return kernel
