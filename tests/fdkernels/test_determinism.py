"""Same inputs, same bits: across repeats, thread counts and, to rounding, instruction sets."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests import device
from tests.cases import make, normalizer, same_bits

pytestmark = pytest.mark.contract("determinism")

SHAPES = ((64, 3, 8, 8), (1, 300_001), (3, 4, 70, 70), (700, 5))
SLOW = dict(zip(SHAPES, ((6, 3, 8, 8), (1, 30_001), (2, 4, 9, 9), (40, 5)), strict=True))


def same(first, second):
    pairs = [(first.loss, second.loss), (first.grad, second.grad), (first.mean, second.mean)]
    pairs += list(zip(first.stats, second.stats, strict=True))
    return all(same_bits(a, b) for a, b in pairs)


def case(shape, dtype):
    return make(shape, dtype, normalizer=normalizer(), reduction="mean", divergence="jeffreys")


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("dtype", (torch.bfloat16, torch.float32), ids=str)
def test_repeats(backend, shape, dtype):
    call = case(SLOW[shape] if device.is_slow(backend) else shape, dtype)
    first = call.run(backend, stats=True)
    for _ in range(1 if device.is_slow(backend) else 20):
        assert same(first, call.run(backend, stats=True))


@pytest.mark.backends("reference", "native")  # the interpreter runs one program after the other
@pytest.mark.cpu_only("on a GPU: tests/gpu")
def test_a_thousand_repeats(backend):
    call = case((64, 3, 8, 8), torch.float32)
    first = call.run(backend)
    for _ in range(1000):
        outcome = call.run(backend)
        assert torch.equal(first.grad, outcome.grad) and torch.equal(first.loss, outcome.loss)


@pytest.mark.backends("reference", "native")
@pytest.mark.cpu_only("threads")
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("dtype", (torch.bfloat16, torch.float16, torch.float32, torch.float64), ids=str)
def test_thread_counts(backend, shape, dtype):
    call = case(shape, dtype)
    threads, outcomes = torch.get_num_threads(), []
    try:
        for count in (1, 2, 3, 5):
            torch.set_num_threads(count)
            outcomes.append(call.run(backend, stats=True))
    finally:
        torch.set_num_threads(threads)
    if backend == "reference":
        # PyTorch's own reductions may split by the number of threads: right, but not bit for bit.
        for outcome in outcomes:
            torch.testing.assert_close(
                outcome.grad, outcomes[0].grad, rtol=1.6e-2 if dtype == torch.bfloat16 else 2e-3, atol=0
            )
    else:
        assert all(same(outcomes[0], outcome) for outcome in outcomes[1:])


@pytest.mark.cpu_only("instruction sets")
@pytest.mark.backends("native")  # the reference has no instruction sets of its own
@pytest.mark.parametrize("level", ("baseline", "v3", "v4"))
def test_instruction_sets(backend, level):
    """Every kernel that run-time dispatch could pick on this machine is held to the oracle."""
    flags = set(Path("/proc/cpuinfo").read_text().split()) if Path("/proc/cpuinfo").exists() else set()
    needs = {"baseline": set(), "v3": {"avx2", "fma"}, "v4": {"avx512f", "avx512bw", "avx512vl", "avx512dq"}}[level]
    if not needs <= flags:
        pytest.skip(f"this processor has no x86-64-{level}: {sorted(needs - flags)} missing")
    script = Path(__file__).with_name("check_instruction_set.py")
    root = Path(__file__).parents[2]
    run = subprocess.run(
        [sys.executable, str(script), backend, level],
        env={**os.environ, "FDKERNELS_CPU_ISA": level, "PYTHONPATH": str(root)},
        cwd=root,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert run.returncode == 0, run.stdout + run.stderr
