"""What importing the package costs and brings with it."""

import json
import os
import statistics
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
BUDGET = 0.050  # seconds beyond `import torch`

MEASURE = """
import json, sys, time, torch, numpy
torch.cuda.is_available = torch.cuda.device_count = torch.cuda.init = None  # calling one would raise
modules, before = set(sys.modules), (time.perf_counter(), time.process_time())
import fdkernels
after = time.perf_counter(), time.process_time()
with open("/proc/self/maps") as maps:
    kernels = "libfdkernels" in maps.read()
print(json.dumps([min(a - b for a, b in zip(after, before)), sorted(set(sys.modules) - modules), kernels]))
"""

UNWANTED = ("triton", "diffusers", "matplotlib", "sklearn", "scipy", "hypothesis", "mpmath", "torch._dynamo")


def python(code: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT), **environment},
        capture_output=True,
        text=True,
    )


@pytest.fixture(scope="module")
def imports():
    """Several fresh interpreters' (seconds, modules, whether kernels were loaded)."""
    runs = [python(MEASURE) for _ in range(5)]
    assert all(run.returncode == 0 for run in runs), runs[0].stderr
    return [json.loads(run.stdout) for run in runs]


def test_import_adds_at_most_50_ms_to_torch(imports):
    """The median of several; of processor time, where the machine is busy with something else."""
    times = [seconds for seconds, _, _ in imports]
    assert statistics.median(times) <= BUDGET, times


def test_import_brings_nothing_heavy(imports):
    _, modules, _ = imports[0]
    assert "fdkernels.fdiv.api" in modules
    assert [name for name in modules if name in UNWANTED] == []


def test_import_loads_no_kernels_and_probes_no_device(imports):
    assert not any(kernels for _, _, kernels in imports)


USE = """
import torch, fdkernels as fdk
x = torch.randn(8, 3, requires_grad=True)
for _ in range(3):
    fdk.fused_fdiv_loss(x, torch.randn(8, 3), torch.randn(8, 3), torch.randn(8)).backward()
"""


def test_log_names_each_ops_backend_once():
    run = python(USE, FDKERNELS_LOG="1")
    assert run.returncode == 0, run.stderr
    assert run.stderr.count("fused_fdiv_loss") == 1 and "native" in run.stderr and "cpu" in run.stderr


def test_nothing_is_logged_unasked():
    run = python(USE, FDKERNELS_LOG="0")
    assert run.returncode == 0 and run.stderr == ""


def test_every_backend_that_runs_here_is_tested():
    from fdkernels.backends import available
    from tests.contracts import BACKENDS

    assert {name for name, why in available("cpu").items() if why is None} <= set(BACKENDS)
