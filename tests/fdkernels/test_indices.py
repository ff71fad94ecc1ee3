"""The CUDA kernels' index arithmetic for samples too large for any test, compiled for the host. Undefined behavior
(a signed overflow, a shift too far) traps."""

import ctypes
import itertools
import os
import random
import shutil
import subprocess
from pathlib import Path

import pytest

pytestmark = pytest.mark.cpu_only("compiled for the host")

SOURCE = Path(__file__).with_name("indices.cpp")
CSRC = Path(__file__).parents[2] / "csrc"


@pytest.fixture(scope="module")
def indices(tmp_path_factory):
    compiler = os.environ.get("CXX") or shutil.which("c++") or shutil.which("g++")
    assert compiler is not None, "no C++ compiler; it built the package"
    library = tmp_path_factory.mktemp("indices") / "indices.so"
    checks = ("-fsanitize=undefined", "-fno-sanitize=vptr", "-fsanitize-undefined-trap-on-error")
    command = [compiler, "-std=c++20", "-O1", "-shared", "-fPIC", *checks, f"-I{CSRC}", SOURCE, "-o", library]
    subprocess.run(command, check=True)
    loaded = ctypes.CDLL(str(library))
    loaded.quotient.restype = ctypes.c_int64
    return loaded


def numbers(function, count, *arguments):
    """The array that a function of 64-bit numbers fills."""
    found = (ctypes.c_int64 * count)()
    function(*map(ctypes.c_int64, arguments), found)
    return list(found)


def test_shares_of_huge_samples(indices):
    for elements in (2**31 - 1, 2**31, 2**33 + 12345, 2**40 + 1):
        for blocks in (1, 16, 132, 148):
            share = -(-elements // (8 * blocks)) * 8
            parts = [numbers(indices.part_of_rank, 2, elements, share, rank) for rank in range(blocks)]
            assert parts[0][0] == 0 and parts[-1][1] == elements
            assert all(a[1] == b[0] for a, b in itertools.pairwise(parts))


@pytest.mark.parametrize("vector", (2, 4, 8))
def test_entries_of_tables(indices, vector):
    choose = random.Random(vector)
    for _ in range(3000):
        rows = choose.choice((1, 2, 3, 7, 16, 1000, 2**20, 2**33 + 1))
        inner = choose.choice((1, 2, 3, 4, 8, 12, 1001, 2**20, 2**31 + 3))
        i = choose.choice((0, 1, 2**31 - 3, 2**32 - 2, 2**40 + 5, choose.randrange(2**44)))
        i = i // vector * vector  # vectors start at their own multiples
        found = numbers(indices.entries_of, vector, vector, rows, inner, i)
        assert found == [(i + k) // inner % rows for k in range(vector)]


def test_division(indices):
    choose = random.Random(0)
    for _ in range(3000):
        i, by = choose.randrange(2 ** choose.randrange(1, 62)), choose.randrange(1, 2 ** choose.randrange(1, 40))
        assert indices.quotient(ctypes.c_int64(i), ctypes.c_int64(by)) == i // by
