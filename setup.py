"""Builds fdkernels' binaries with CMake and ninja; all other metadata is in pyproject.toml.

It reads these environment variables:

    FDKERNELS_TORCH_DIR    torch's package directory, if the build does not find it
    FDKERNELS_CUDA_ARCHS   what the CUDA library is compiled for: a list such as "90" or "80;90+PTX" (+PTX adds code
                           that newer GPUs compile as they load it), "all", or "none". Unset: the GPUs of this machine
                           if nvidia-smi names them, else all; no CUDA library if there is no nvcc
    CUDACXX, CUDA_HOME     nvcc, and the folder with bin/nvcc; after them, PATH and /usr/local/cuda are searched
"""

from __future__ import annotations

import functools
import importlib
import importlib.util
import os
import re
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path
from typing import NamedTuple

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).resolve().parent
CPU_LIBRARY, CUDA_LIBRARY = "libfdkernels_cpu.so", "libfdkernels_cuda.so"
OLDEST_TORCH = (2, 10)
OLDEST_CUDA = 12  # the first with C++20
OLDEST_ARCH = 80
ALL_ARCHS = ("80", "90", "100", "120")

TORCH_NOT_FOUND = """
fdkernels: torch >= 2.10 was not found, and the build needs its headers (it neither imports nor downloads torch).
{reason}
Searched: {searched}

Install torch first, then use one of

  pip install torch && pip install .
  uv pip install torch setuptools wheel cmake ninja pybind11 numpy && uv pip install --no-build-isolation .
  pip install build setuptools wheel cmake ninja pybind11 numpy && python -m build --wheel --no-isolation

uv and `python -m build` isolate the build from the environment that has torch; to keep their isolation name it:

  export FDKERNELS_TORCH_DIR="$(python -c 'import torch, os; print(os.path.dirname(torch.__file__))')"
  uv pip install .          # or: python -m build
"""


def torch_version(directory: Path) -> tuple[int, int] | None:
    """torch's (major, minor) from its version.py, or None if the directory holds no torch with stable headers."""
    version_file = directory / "version.py"
    if not version_file.is_file() or not (directory / "include/torch/csrc/stable/library.h").is_file():
        return None
    found = re.search(r"__version__\s*=\s*['\"](\d+)\.(\d+)", version_file.read_text())
    return (int(found[1]), int(found[2])) if found else None


def torch_candidates() -> list[Path]:
    # Under pip's build isolation sysconfig still names the target environment; find_spec serves unisolated builds.
    paths = [Path(sysconfig.get_path(kind)) / "torch" for kind in ("platlib", "purelib")]
    spec = importlib.util.find_spec("torch")
    if spec is not None and spec.origin is not None:
        paths.insert(0, Path(spec.origin).parent)
    return list(dict.fromkeys(paths))


def find_torch() -> Path:
    """The torch package directory, found without importing torch."""
    explicit = os.environ.get("FDKERNELS_TORCH_DIR")
    candidates = [Path(explicit)] if explicit else torch_candidates()
    reasons = [f"FDKERNELS_TORCH_DIR={explicit} is no torch package directory."] if explicit else []
    for directory in candidates:
        version = torch_version(directory)
        if version is None:
            continue
        if version >= OLDEST_TORCH:
            return directory
        reasons.append(f"{directory} holds torch {version[0]}.{version[1]}, which is too old.")
    searched = ", ".join(str(path) for path in candidates)
    sys.exit(TORCH_NOT_FOUND.format(reason=" ".join(reasons) or "No torch is installed there.", searched=searched))


def find_tool(name: str) -> str:
    """A build tool's path: the Python package's own binary if there is one (its bin folder may not be on PATH)."""
    try:
        module = importlib.import_module(name)
    except ImportError:
        found = shutil.which(name)
    else:
        directory = getattr(module, "CMAKE_BIN_DIR" if name == "cmake" else "BIN_DIR", "")
        found = shutil.which(name, path=directory) or shutil.which(name)
    if found is None:
        sys.exit(f"fdkernels: {name} was not found; `pip install {name}` or leave pip's build isolation on.")
    return found


class Nvcc(NamedTuple):
    path: str
    version: str
    archs: frozenset[str]
    """Architectures for which it writes machine code, such as "90"."""


class CudaPlan(NamedTuple):
    archs: tuple[str, ...]
    """The code that the CUDA library holds, such as "90" (machine code) and "90+PTX" (PTX); empty: it is not built."""
    nvcc: str
    note: str


def parse_cuda_archs(text: str) -> tuple[str, ...]:
    """A CudaPlan's archs from FDKERNELS_CUDA_ARCHS. As for torch, 9.0 means 90, and 90+PTX means both kinds of code."""
    if text == "none":
        return ()
    if text == "all":
        return (*ALL_ARCHS, f"{ALL_ARCHS[-1]}+PTX")
    archs = set()
    for entry in re.split(r"[\s;,]+", text.strip()):
        found = re.fullmatch(r"(\d+)\.?(\d)(\+PTX)?", entry)
        if found is None or int(found[1] + found[2]) < OLDEST_ARCH:
            expected = f"all, none, or architectures from {OLDEST_ARCH} on such as '80;90+PTX'"
            raise ValueError(f"FDKERNELS_CUDA_ARCHS: expected {expected}, got {text!r}")
        archs |= {found[1] + found[2] + suffix for suffix in ("", found[3] or "")}
    return tuple(sorted(archs, key=lambda arch: (int(arch.removesuffix("+PTX")), arch)))


def why_nvcc_cannot(nvcc: Nvcc | None, archs: tuple[str, ...]) -> str | None:
    if nvcc is None:
        return "nvcc not found (looked at CUDACXX, CUDA_HOME, PATH and /usr/local/cuda)"
    if int(nvcc.version.split(".")[0]) < OLDEST_CUDA:
        return f"{nvcc.path} is of CUDA {nvcc.version}; {OLDEST_CUDA}.0 or later is needed"
    unknown = [arch for arch in archs if arch.removesuffix("+PTX") not in nvcc.archs]
    return f"{nvcc.path} of CUDA {nvcc.version} does not know {', '.join(unknown)}" if unknown else None


def plan_cuda(requested: str, nvcc: Nvcc | None, present: list[str]) -> CudaPlan:
    """What to build, from FDKERNELS_CUDA_ARCHS ("" if unset), the compiler and this machine's GPUs.

    Raises:
        ValueError: a bad value, or the compiler can't build what FDKERNELS_CUDA_ARCHS asks for. If it is unset, the
            CUDA library is then left out.
    """
    archs = parse_cuda_archs(requested or ";".join(present) or "all")
    if not archs:
        return CudaPlan((), "", f"no CUDA library (FDKERNELS_CUDA_ARCHS={requested})")
    problem = why_nvcc_cannot(nvcc, archs)
    if nvcc is not None and problem is None:
        note = f"CUDA library for {', '.join(archs)} with {nvcc.path} of CUDA {nvcc.version}"
        return CudaPlan(archs, nvcc.path, note)
    if requested:
        raise ValueError(f"FDKERNELS_CUDA_ARCHS={requested}: {problem}")
    return CudaPlan((), "", f"no CUDA library: {problem}; Triton serves GPUs")


def printed(*command: str) -> str:
    """The output of a command; empty if the command is missing or fails."""
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stdout
    except (OSError, subprocess.SubprocessError):
        return ""


def find_nvcc() -> Nvcc | None:
    home = os.environ.get("CUDA_HOME")
    for name in (os.environ.get("CUDACXX"), home and f"{home}/bin/nvcc", "nvcc", "/usr/local/cuda/bin/nvcc"):
        path = shutil.which(name) if name else None
        version = re.search(r"release (\d+\.\d+)", printed(path, "--version")) if path else None
        if path and version:
            return Nvcc(path, version[1], frozenset(re.findall(r"sm_(\d+)\b", printed(path, "--list-gpu-code"))))
    return None


def present_archs() -> list[str]:
    """The architectures of this machine's GPUs on which the kernels can run."""
    capabilities = printed("nvidia-smi", "--query-gpu=compute_cap", "--format=csv,noheader")
    found = {major + minor for major, minor in re.findall(r"^(\d+)\.(\d)$", capabilities, re.MULTILINE)}
    return sorted((arch for arch in found if int(arch) >= OLDEST_ARCH), key=int)


def cuda_options(plan: CudaPlan) -> list[str]:
    """CMake's options for the CUDA library: 90-real is machine code, 90-virtual is PTX."""
    if not plan.archs:
        return []
    archs = [arch.replace("+PTX", "-virtual") if arch.endswith("+PTX") else f"{arch}-real" for arch in plan.archs]
    return [f"-DCMAKE_CUDA_COMPILER={plan.nvcc}", f"-DCMAKE_CUDA_ARCHITECTURES={';'.join(archs)}"]


class CMakeBuild(build_ext):
    """One CMake build for all binaries; they are installed beside the package's Python files."""

    def run(self) -> None:
        import pybind11

        print(f"fdkernels: {self._cuda.note}", flush=True)
        torch = find_torch()
        build_directory = ROOT / "build" / f"cmake-{sysconfig.get_platform()}-{sys.implementation.cache_tag}"
        cmake = find_tool("cmake")
        print(f"fdkernels: building against {torch}", flush=True)
        configure = [
            cmake,
            "-S",
            str(ROOT),
            "-B",
            str(build_directory),
            "-G",
            "Ninja",
            f"-DCMAKE_MAKE_PROGRAM={find_tool('ninja')}",
            f"-DPython_EXECUTABLE={sys.executable}",
            f"-Dpybind11_DIR={pybind11.get_cmake_dir()}",
            f"-DFDKERNELS_TORCH_DIR={torch}",
            f"-DFDKERNELS_VERSION={self.distribution.get_version()}",
            *cuda_options(self._cuda),
        ]
        # Each isolated build has its tools at new paths, which an already configured tree would not use.
        record = build_directory / "configured-by.txt"
        fresh = ["--fresh"] if not record.exists() or record.read_text() != str(configure) else []
        try:
            subprocess.run([*configure, *fresh], check=True)
            record.write_text(str(configure))
            subprocess.run([cmake, "--build", str(build_directory)], check=True)
        except subprocess.CalledProcessError:
            hint = "; FDKERNELS_CUDA_ARCHS=none leaves the CUDA library out" if self._cuda.archs else ""
            sys.exit(f"fdkernels: the build failed, see above{hint}")
        subprocess.run([cmake, "--install", str(build_directory), "--prefix", str(self._destination())], check=True)
        if not self._cuda.archs:
            (self._destination() / CUDA_LIBRARY).unlink(missing_ok=True)  # from an earlier build

    @functools.cached_property
    def _cuda(self) -> CudaPlan:
        try:
            return plan_cuda(os.environ.get("FDKERNELS_CUDA_ARCHS", "").strip(), find_nvcc(), present_archs())
        except ValueError as error:
            sys.exit(f"fdkernels: {error}")

    def _destination(self) -> Path:
        return ROOT / "fdkernels" if self.inplace else Path(self.build_lib).resolve() / "fdkernels"

    def get_outputs(self) -> list[str]:
        return [str(Path(self.build_lib) / "fdkernels" / name) for name in self._binaries()]

    def get_output_mapping(self) -> dict[str, str]:
        if not self.inplace:
            return {}
        return {str(Path(self.build_lib) / "fdkernels" / n): str(ROOT / "fdkernels" / n) for n in self._binaries()}

    def _binaries(self) -> list[str]:
        return [
            f"_core{sysconfig.get_config_var('EXT_SUFFIX')}",
            CPU_LIBRARY,
            *([CUDA_LIBRARY] if self._cuda.archs else []),
        ]


if __name__ == "__main__":
    # Listed so that setuptools tags the wheel with the platform and runs build_ext; CMake knows the sources.
    setup(ext_modules=[Extension("fdkernels._core", sources=[])], cmdclass={"build_ext": CMakeBuild})
