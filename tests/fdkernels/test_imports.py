"""What importing the package costs and brings with it."""

import os
import statistics
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
BUDGET = 0.050  # seconds beyond `import torch`

TIMED = """
import time, torch, numpy
before = time.perf_counter(), time.process_time()
import fdkernels
after = time.perf_counter(), time.process_time()
print(min(a - b for a, b in zip(after, before)))
"""

UNWANTED = (
    "triton",
    "diffusers",
    "matplotlib",
    "sklearn",
    "scipy",
    "hypothesis",
    "mpmath",
    "torch._dynamo",
    "torch._inductor",
)


def python(code: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT), **environment},
        capture_output=True,
        text=True,
        check=True,
    )


def test_import_adds_at_most_50_ms_to_torch():
    """The median of several; processor time where the machine is busy with something else."""
    times = [float(python(TIMED).stdout) for _ in range(5)]
    assert statistics.median(times) <= BUDGET, times


def test_import_brings_nothing_heavy():
    code = f"import torch, sys; before = set(sys.modules); import fdkernels; new = set(sys.modules) - before\n" \
           f"print([name for name in {UNWANTED!r} if name in new])"  # fmt: skip
    assert python(code).stdout.strip() == "[]"


def test_import_loads_no_kernels_and_probes_no_device():
    code = """
import torch
torch.cuda.is_available = torch.cuda.device_count = torch.cuda.init = None  # calling one raises
import fdkernels
with open("/proc/self/maps") as maps:
    print("libfdkernels" in maps.read())
"""
    assert python(code).stdout.strip() == "False"


USE = """
import torch, fdkernels as fdk
x = torch.randn(8, 3, requires_grad=True)
for _ in range(3):
    fdk.fused_fdiv_loss(x, torch.randn(8, 3), torch.randn(8, 3), torch.randn(8)).backward()
"""


def test_log_names_each_ops_backend_once():
    logged = python(USE, FDKERNELS_LOG="1").stderr
    assert logged.count("fused_fdiv_loss") == 1 and "native" in logged and "cpu" in logged
    assert python(USE, FDKERNELS_LOG="0").stderr == ""


def test_every_backend_that_runs_here_is_tested():
    from fdkernels.backends import available
    from tests.contracts import BACKENDS

    assert {name for name, why in available("cpu").items() if why is None} <= set(BACKENDS)
