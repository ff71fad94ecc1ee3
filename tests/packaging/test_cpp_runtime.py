"""A toolchain may link the C++ runtime into the library; the process then has two runtimes: the library's and torch's.

Streams of one runtime then use locales of the other: messages lost their numbers, or the process crashed.
"""

from __future__ import annotations

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
import sys, torch, torch._dynamo.testing  # without whose libraries a refusal ends the process, as of torch 2.13
from fdkernels.fdiv.arguments import FDIV
torch.ops.load_library(sys.argv[1])
from tests.ops import raw_fdiv
call = raw_fdiv()
good = FDIV.operands(call)
assert torch.ops.fdkernels.fdiv_native(*good)[0].isfinite()
for bad in (FDIV.operands(call._replace(teacher=call.teacher[:2])), (*good[:-1], torch.zeros(3, dtype=torch.float64))):
    try:
        torch.ops.fdkernels.fdiv_native(*bad)
    except RuntimeError as error:
        print(error)
"""


@pytest.mark.skipif(
    sysconfig.get_platform() != "linux-x86_64" or not OBJECTS, reason="not built in place, or elsewhere"
)
def test_refusals_with_a_runtime_of_its_own(tmp_path: Path) -> None:
    compiler = shutil.which("g++")
    if compiler is None:
        pytest.skip("no g++")
    library = tmp_path / "libfdkernels_cpu.so"
    libtorch = Path(torch.__file__).parent / "lib"
    subprocess.run(
        [compiler, "-shared", "-static-libstdc++", "-static-libgcc", "-o", library, *OBJECTS, f"-L{libtorch}",
         "-ltorch_cpu", "-Wl,--allow-shlib-undefined"], check=True,
    )  # fmt: skip
    said = subprocess.run([sys.executable, "-c", CALLS, library], cwd=ROOT, capture_output=True, text=True)
    assert said.returncode == 0, said.stderr
    assert said.stdout.splitlines() == [
        "teacher: expected the shape of student",
        "numbers: expected 14 contiguous float64 values on the CPU",
    ]
