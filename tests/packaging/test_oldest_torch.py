"""The op libraries' sources compile against the headers of the oldest torch that the README promises.

TORCH_TARGET_VERSION hides newer functions, but not every newer name: a newer header may define a macro for every
target, as 2.13 does with STABLE_TORCH_ERROR_CODE_CHECK. A source that uses such a macro then fails only on 2.10. The
headers are a copy of torch 2.10.0's (tests/data/README.md), so this needs no download of its wheel of 916 MB.
`make check-versions` builds and runs everything.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import tarfile
from pathlib import Path
from types import ModuleType

import pytest

from tests.packaging.conftest import ROOT

ARCHIVE = ROOT / "tests/data/torch-2.10.0-headers.tar.xz"
CMAKE = (ROOT / "CMakeLists.txt").read_text()
INCLUDES_TORCH = re.compile(r"^#include <(?:torch|ATen|c10)/", re.MULTILINE)


def sources(name: str) -> list[str]:
    """The files of one list in CMakeLists.txt."""
    found = re.search(rf"set\({name}\s+([^)]*)\)", CMAKE)
    assert found is not None, name
    return [word for word in found[1].split() if word.startswith("csrc/")]


CPU, CUDA = sources("CPU_SOURCES") + sources("CPU_KERNEL_SOURCES"), sources("CUDA_SOURCES")
HOST_CUDA = [source for source in CUDA if source.endswith(".cpp")]


@pytest.fixture(scope="session")
def headers(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("torch-2.10.0")
    with tarfile.open(ARCHIVE) as archive:
        archive.extractall(folder, filter="data")
    return folder


def complaints(source: Path, headers: Path, *options: str) -> str:
    """The compiler's messages about a source; nothing is written."""
    compiler = os.environ.get("CXX") or shutil.which("c++") or shutil.which("g++")
    assert compiler is not None, "no C++ compiler; it built the package"
    target = re.search(r"TORCH_TARGET_VERSION=0x[0-9a-f]+", CMAKE)
    assert target is not None
    includes = (f"-I{ROOT / 'csrc'}", f"-isystem{headers}")
    run = subprocess.run(
        [compiler, "-std=c++20", "-fsyntax-only", "-fvisibility=hidden", "-Wall", "-Wextra", "-Wno-unknown-pragmas",
         f"-D{target[0]}", "-DFDKERNELS_ISA=baseline", *includes, *options, str(source)],
        capture_output=True, text=True,
    )  # fmt: skip
    return run.stderr or ("" if run.returncode == 0 else f"exit code {run.returncode}")


def test_the_headers_are_of_the_oldest_torch(headers: Path, setup_file: ModuleType) -> None:
    text = (headers / "torch/headeronly/version.h").read_text()
    assert tuple(int(n) for n in re.findall(r"TORCH_VERSION_(?:MAJOR|MINOR) (\d+)", text)) == setup_file.OLDEST_TORCH


@pytest.mark.parametrize("source", CPU)
def test_cpu_sources(source: str, headers: Path) -> None:
    assert not complaints(ROOT / source, headers)


@pytest.mark.parametrize("source", HOST_CUDA)
def test_cuda_sources(source: str, headers: Path, setup_file: ModuleType) -> None:
    nvcc = setup_file.find_nvcc()
    if nvcc is None:
        pytest.skip("no nvcc here, so no CUDA headers")
    assert not complaints(ROOT / source, headers, f"-isystem{Path(nvcc.path).resolve().parents[1] / 'include'}")


def test_device_sources_need_no_torch() -> None:
    """If they did, they would have to be compiled here too."""
    csrc = ROOT / "csrc"
    files = [*csrc.rglob("*.cu"), *csrc.rglob("*.cuh"), *(csrc / "core").rglob("*.h"), *csrc.rglob("cuda/*.h")]
    assert [file.name for file in files if INCLUDES_TORCH.search(file.read_text())] == []


@pytest.mark.parametrize("name", ("STABLE_TORCH_ERROR_CODE_CHECK", "torch_exception_get_what_without_backtrace"))
def test_a_newer_name_is_noticed(name: str, headers: Path, tmp_path: Path) -> None:
    source = tmp_path / "newer.cpp"
    source.write_text(f"#include <torch/csrc/stable/ops.h>\nvoid f() {{ {name}(0); }}\n")
    assert name in complaints(source, headers)
