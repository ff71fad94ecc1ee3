"""The CUDA library of this checkout, if it was built: what it holds, and that it loads without a GPU."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest
import torch

from fdkernels import _core, backends
from tests.packaging.conftest import ROOT

LIBRARY = ROOT / "fdkernels/libfdkernels_cuda.so"
BUILT = _core.build_info()["cuda_archs"]

needs_library = pytest.mark.skipif(not BUILT, reason="built without CUDA")


def test_there_is_one_where_build_info_says_so() -> None:
    assert LIBRARY.exists() == bool(BUILT)


@needs_library
def test_loads_without_a_gpu() -> None:
    assert backends.load_native("cuda") is None
    for op in ("fdiv_native", "fdiv_weight_native", "scale_native", "scale_native_"):
        assert torch._C._dispatch_has_kernel_for_dispatch_key(f"fdkernels::{op}", "CUDA"), op


@needs_library
def test_holds_the_code_that_build_info_names() -> None:
    nvidia = pytest.importorskip("triton.backends.nvidia")
    cuobjdump = Path(nvidia.__path__[0]) / "bin" / "cuobjdump"
    if not cuobjdump.exists():
        pytest.skip("Triton's wheel brings no cuobjdump here")

    def archs(option: str) -> set[str]:
        return set(re.findall(r"\.sm_(\d+)\.", subprocess.check_output([cuobjdump, option, LIBRARY], text=True)))

    assert archs("--list-elf") | {f"{arch}+PTX" for arch in archs("--list-ptx")} == set(BUILT)
