"""What importing the package costs, and which modules it brings."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.cpu_only("importing probes no device")

ROOT = Path(__file__).parents[2]
BUDGET = 0.07  # of the time of `import torch`: 70 ms if that takes a second; an op's registration takes some 5

MEASURE = """
import json, sys, time
begin = time.process_time()
import torch, numpy
torch_seconds = time.process_time() - begin
torch.cuda.is_available = torch.cuda.device_count = torch.cuda.init = None  # calling one would raise
modules, before = set(sys.modules), time.process_time()
import fdkernels
seconds = time.process_time() - before
with open("/proc/self/maps") as maps:
    kernels = "libfdkernels" in maps.read()
print(json.dumps([seconds / torch_seconds, sorted(set(sys.modules) - modules), kernels]))
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


def measure() -> tuple[float, list[str], bool]:
    """From a fresh interpreter: the import's time over torch's, the new modules, whether kernels are loaded."""
    run = python(MEASURE)
    assert run.returncode == 0, run.stderr
    part, modules, kernels = json.loads(run.stdout)
    return part, modules, kernels


def test_import_adds_little_to_torch():
    """One of five runs within the budget is enough: other work of the machine only adds processor time."""
    parts = [measure()[0]]
    while parts[-1] > BUDGET and len(parts) < 5:
        parts.append(measure()[0])
    assert parts[-1] <= BUDGET, parts


def test_import_brings_nothing_heavy_and_probes_no_device():
    _, modules, kernels = measure()
    assert "fdkernels.fdiv.api" in modules
    assert [name for name in modules if name in UNWANTED] == []
    assert not kernels


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
