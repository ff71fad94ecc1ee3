"""The C++ runtime is linked into the library, so the process has two: the library's and torch's.

CMakeLists.txt lets the library export nothing of its runtime. If it exports some, streams of one runtime use locales of
the other: messages lose their numbers, or the process crashes. A toolchain may also link an unwinder into the library.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest
import torch

from tests.packaging.conftest import ROOT

BUILT = sorted(ROOT.glob(f"build/cmake-*{sys.implementation.cache_tag}/CMakeFiles/fdkernels_cpu*.dir/**/*.o"))
SOURCES = {str(source.relative_to(ROOT)) for source in (ROOT / "csrc").rglob("*.cpp")} | {"sources.cpp"}
# Without objects of sources that no longer exist.
OBJECTS = [file for file in BUILT if str(file).partition(".dir/")[2].removesuffix(".o") in SOURCES]
CALLS = """
import sys, torch
if "relinked" in sys.argv:
    import torch._dynamo.testing  # without whose libraries a refusal ends the process, as of torch 2.13
from fdkernels.fdiv.arguments import FDIV
torch.ops.load_library(sys.argv[1])
from tests.ops import raw_fdiv
call = raw_fdiv()
good = FDIV.operands(call)
assert torch.ops.fdkernels.fdiv_native(*good)[0].isfinite()
# torch's own headers refuse a tensor of bits, in words that a C++ stream formats.
bits = call._replace(teacher=torch.empty(call.teacher.shape, dtype=torch.uint8).view(torch.bits8))
calls = [FDIV.operands(call._replace(teacher=call.teacher[:2])), (*good[:-1], torch.zeros(3, dtype=torch.float64))]
for bad in calls if "relinked" in sys.argv else [*calls, FDIV.operands(bits)]:
    try:
        torch.ops.fdkernels.fdiv_native(*bad)
    except RuntimeError as error:
        print(error)
"""
OURS = ["teacher: expected the shape of student", "numbers: expected 14 contiguous float64 values on the CPU"]


def messages(library: Path, *how: str) -> list[str]:
    said = subprocess.run([sys.executable, "-c", CALLS, library, *how], cwd=ROOT, capture_output=True, text=True)
    assert said.returncode == 0, said.stderr
    return said.stdout.splitlines()


def test_refusals_as_linked() -> None:
    *ours, of_torch = messages(ROOT / "fdkernels/libfdkernels_cpu.so")
    assert ours == OURS
    assert re.search(r", torch/csrc/stable/\S+\.h:\d+, Not yet supported ScalarType 21\b", of_torch)


@pytest.mark.skipif(
    sysconfig.get_platform() != "linux-x86_64" or not OBJECTS, reason="not built in place, or elsewhere"
)
def test_refusals_where_the_runtime_is_exported_and_the_unwinder_linked(tmp_path: Path) -> None:
    compiler = shutil.which("g++")
    if compiler is None:
        pytest.skip("no g++")
    library = tmp_path / "libfdkernels_cpu.so"
    libtorch = Path(torch.__file__).parent / "lib"
    subprocess.run(
        [compiler, "-shared", "-static-libstdc++", "-static-libgcc", "-o", library, *OBJECTS, f"-L{libtorch}",
         "-ltorch_cpu", "-Wl,--allow-shlib-undefined"], check=True,
    )  # fmt: skip
    assert messages(library, "relinked") == OURS
