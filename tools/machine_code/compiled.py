"""Compiles kernels for a target without having such a device, and reads figures from their machine code."""

from __future__ import annotations

import re
import shutil
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.runtime import driver

from fdkernels._triton.launch import Launch

TARGETS = {
    "sm_80": GPUTarget("cuda", 80, 32),
    "sm_90": GPUTarget("cuda", 90, 32),
    "sm_100": GPUTarget("cuda", 100, 32),
    "sm_120": GPUTarget("cuda", 120, 32),
    "gfx942": GPUTarget("hip", "gfx942", 64),
}


class _AbsentDevice:
    """Answers what Triton asks its driver while it compiles, for a device that is not there."""

    def __init__(self, target: GPUTarget) -> None:
        self.target = target

    def get_current_target(self) -> GPUTarget:
        return self.target

    def get_current_device(self) -> Any:
        return (self.target.backend, self.target.arch)

    def get_current_stream(self, device: Any = None) -> int:
        return 0

    def get_active_torch_device(self) -> torch.device:
        return torch.device("meta")


@dataclass
class Compiled:
    """Figures of one kernel for one target; `code` is its machine code as text."""

    kernel: str
    registers: int
    resident: int
    """Warps (wavefronts) that the registers of a multiprocessor (compute unit) hold."""
    shared: int
    spilled: int
    """Bytes of stack or scratch memory."""
    wide_loads: int
    """128-bit loads from global memory in the code before the ticket: loads of elements. The loads of the program that
    reports come after the ticket."""
    wide_stores: int
    narrow_stores: int
    """Stores below 32 bits: what an unaligned half-precision gradient needs."""
    integer_atomics: int
    float_atomics: int
    code: str
    narrow_numbers: tuple[str, ...] = ()
    """Floats of the launch that Triton passes as float32: their parameters do not say float64."""


def kernel_for(launch: Launch, target: GPUTarget) -> Any:
    """Compile the kernel of a launch over meta tensors, exactly as the launch would."""
    driver.set_active(_AbsentDevice(target))
    return launch.kernel.warmup(*launch.arguments, grid=(launch.programs,), **launch.options)


def compile_for(launch: Launch, target: GPUTarget) -> Compiled:
    """The same, with figures of the kernel's machine code."""
    kernel = kernel_for(launch, target)
    inspect = _inspect_amd if target.backend == "hip" else _inspect_nvidia
    found = inspect(kernel)
    wide = {parameter.name for parameter in launch.kernel.params if parameter.annotation_type == "fp64"}
    found.narrow_numbers = tuple(n for n, v in launch.options.items() if isinstance(v, float) and n not in wide)
    return found


def _inspect_nvidia(kernel: Any) -> Compiled:
    with tempfile.TemporaryDirectory() as folder:
        cubin = Path(folder) / "kernel.cubin"
        cubin.write_bytes(kernel.asm["cubin"])
        usage = run(tool("cuobjdump"), "--dump-resource-usage", str(cubin))
        code = run(tool("nvdisasm"), "-c", str(cubin))

    def used(name: str) -> int:
        return int(re.search(rf"\b{name}:(\d+)", usage)[1])  # type: ignore[index]

    registers, warps = used("REG"), kernel.metadata.num_warps
    # A float atomic has a float type among its suffixes (ATOMG.E.ADD.F32, RED.E.ADD.F16x2); an integer one has none, or
    # U32, S32.
    atomics = re.findall(r"\b(?:ATOMG?|REDG?)\.[\w.]*", code)
    floats = [name for name in atomics if re.search(r"\.(?:B?F\d+\w*)", name)]
    local = 0 if not re.search(r"\b(?:LDL|STL)\b", code) else 1
    return Compiled(
        kernel=kernel.metadata.name,
        registers=registers,
        resident=65_536 // (-(-registers // 8) * 8 * 32 * warps) * warps,
        shared=kernel.metadata.shared,
        spilled=max(used("STACK"), used("LOCAL"), local),
        wide_loads=len(re.findall(r"\bLDG\.[\w.]*\b128\b", re.split(r"\bATOMG?\.", code)[0])),
        wide_stores=len(re.findall(r"\bSTG\.[\w.]*\b128\b", code)),
        narrow_stores=len(re.findall(r"\bSTG\.[\w.]*\b[US](?:8|16)\b", code)),
        integer_atomics=len(atomics) - len(floats),
        float_atomics=len(floats),
        code=code,
    )


def _inspect_amd(kernel: Any) -> Compiled:
    code = kernel.asm["amdgcn"]

    def noted(name: str) -> int:
        return int(re.search(rf"\.{name}:\s+(\d+)", code)[1])  # type: ignore[index]

    atomics = re.findall(r"\b(?:global|flat|buffer)_atomic_\w+", code)
    floats = [name for name in atomics if re.search(r"_(?:pk_)?b?f(?:16|32|64)", name)]
    return Compiled(
        kernel=kernel.metadata.name,
        registers=noted("vgpr_count"),
        resident=4 * (512 // max(1, noted("vgpr_count"))),
        shared=kernel.metadata.shared,
        spilled=noted("private_segment_fixed_size"),
        wide_loads=len(re.findall(r"\b(?:global|buffer)_load_dwordx4\b", code.split("_atomic_")[0])),
        wide_stores=len(re.findall(r"\b(?:global|buffer)_store_dwordx4\b", code)),
        narrow_stores=len(re.findall(r"\b(?:global|buffer)_store_(?:short|byte)\w*\b", code)),
        integer_atomics=len(atomics) - len(floats),
        float_atomics=len(floats),
        code=code,
    )


def tool(name: str) -> str:
    """Path of a tool: Triton's own copy, else the one on PATH."""
    bundled = Path(triton.__file__).parent / "backends/nvidia/bin" / name
    found = str(bundled) if bundled.exists() else shutil.which(name)
    if found is None:
        raise RuntimeError(f"{name}: neither triton {triton.__version__} nor PATH has it")
    return found


def run(*command: str, cwd: str | None = None) -> str:
    return subprocess.run(command, check=True, capture_output=True, text=True, cwd=cwd).stdout
