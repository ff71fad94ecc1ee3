"""The skeletons of csrc/core/cpu with another op than fdiv: every sample divided by its norm, compiled for the test."""

import ctypes
import os
import shutil
import subprocess
from pathlib import Path

import pytest
import torch

pytestmark = pytest.mark.cpu_only("compiled for the host")

SOURCE = Path(__file__).with_name("normalize.cpp")
DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)  # in the order of DType in core/tensors.h


@pytest.fixture(scope="module")
def normalize(tmp_path_factory):
    compiler = os.environ.get("CXX") or shutil.which("c++") or shutil.which("g++")
    assert compiler is not None, "no C++ compiler; it built the package"
    library = tmp_path_factory.mktemp("normalize") / "normalize.so"
    csrc = SOURCE.parents[2] / "csrc"
    command = [
        compiler,
        "-std=c++20",
        "-O1",
        "-Wall",
        "-Werror",
        "-fopenmp-simd",
        "-shared",
        "-fPIC",
        "-pthread",
        f"-I{csrc}",
        SOURCE,
    ]
    subprocess.run([*command, "-o", library], check=True)
    function = ctypes.CDLL(str(library)).normalize

    def call(x, threads):
        y = torch.empty(x.shape)
        pointers = (ctypes.c_void_p(v.data_ptr()) for v in (x, y))
        sizes = map(ctypes.c_int64, (*x.shape, threads))
        function(next(pointers), DTYPES.index(x.dtype), next(pointers), *sizes)
        return y

    return call


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", [(0, 5), (1, 1), (5, 273), (2, 513), (7, 16_384), (3, 40_000), (2, 1_000_003)])
def test_another_op(normalize, shape, dtype):
    x = torch.randn(shape, generator=torch.Generator().manual_seed(1)).to(dtype)
    y = normalize(x, threads=1)
    expected = x.double() / x.double().norm(dim=1, keepdim=True)
    torch.testing.assert_close(y.double(), expected, rtol=2e-6, atol=0)
    assert torch.equal(y, normalize(x, threads=3)), "bits that depend on the number of threads"


def test_sums_that_overflow_float32_are_added_again_in_double(normalize):
    y = normalize(torch.full((2, 100), 3e19), threads=1)
    torch.testing.assert_close(y, torch.full_like(y, 0.1))
