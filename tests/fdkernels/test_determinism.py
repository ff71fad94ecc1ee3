"""Every instruction set gives the same answers, to rounding."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.contract("determinism")


@pytest.mark.cpu_only("instruction sets")
@pytest.mark.backends("native")  # the reference has no instruction sets of its own
@pytest.mark.parametrize("level", ("baseline", "v3", "v4"))
def test_instruction_sets(backend, level):
    """Every instruction set that dispatch could pick on this machine is compared with the oracle."""
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


@pytest.mark.cpu_only("instruction sets")
@pytest.mark.backends("native")
def test_unknown_instruction_set_is_refused(backend):
    code = (
        "import torch, fdkernels as fdk; x = torch.zeros(8, 4);"
        "fdk.fused_fdiv_loss(x, x, x, divergence='rkl', backend='native')"
    )
    run = subprocess.run(
        [sys.executable, "-c", code], env={**os.environ, "FDKERNELS_CPU_ISA": "avx9"}, capture_output=True, text=True
    )
    assert run.returncode != 0
    assert "FDKERNELS_CPU_ISA" in run.stderr and "avx9" in run.stderr
