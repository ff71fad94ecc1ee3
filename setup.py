"""Builds fdkernels' binaries with CMake and ninja; all other metadata is in pyproject.toml."""

from __future__ import annotations

import importlib
import importlib.util
import os
import re
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).resolve().parent
OLDEST_TORCH = (2, 10)

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
    """torch's (major, minor) from its version.py, or None where the directory holds no torch with stable headers."""
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
    """A build tool: the Python package's own binary where there is one (its environment's bin may not be on PATH)."""
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


def cuda_note() -> str:
    nvcc = shutil.which("nvcc")
    found = f"nvcc found at {nvcc}" if nvcc else "nvcc not found"
    print(f"fdkernels: {found}; this release has no CUDA sources, building the CPU library only.", flush=True)
    return "none"


class CMakeBuild(build_ext):
    """One CMake build for all binaries; they are installed beside the package's Python files."""

    def run(self) -> None:
        import pybind11

        note = cuda_note()
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
            f"-DFDKERNELS_CUDA_NOTE={note}",
        ]
        # Every isolated build brings tools at new paths, which a configured tree would not follow.
        record = build_directory / "configured-by.txt"
        fresh = ["--fresh"] if not record.exists() or record.read_text() != str(configure) else []
        subprocess.run([*configure, *fresh], check=True)
        record.write_text(str(configure))
        subprocess.run([cmake, "--build", str(build_directory)], check=True)
        subprocess.run([cmake, "--install", str(build_directory), "--prefix", str(self._destination())], check=True)

    def _destination(self) -> Path:
        return ROOT / "fdkernels" if self.inplace else Path(self.build_lib).resolve() / "fdkernels"

    def get_outputs(self) -> list[str]:
        return [str(Path(self.build_lib) / "fdkernels" / name) for name in self._binaries()]

    def get_output_mapping(self) -> dict[str, str]:
        if not self.inplace:
            return {}
        return {str(Path(self.build_lib) / "fdkernels" / n): str(ROOT / "fdkernels" / n) for n in self._binaries()}

    def _binaries(self) -> list[str]:
        return [f"_core{sysconfig.get_config_var('EXT_SUFFIX')}", "libfdkernels_cpu.so"]


# Listed so that setuptools tags the wheel with the platform and runs build_ext; CMake knows the sources.
setup(ext_modules=[Extension("fdkernels._core", sources=[])], cmdclass={"build_ext": CMakeBuild})
