"""python -m tools.gpu_check.one_call: one forward and backward, warmed up, on inputs that no cache holds.

`ncu` measures it between cudaProfilerStart and Stop. With --kernels, torch.profiler measures it instead, and the
program prints JSON. Exit code 3: the backend cannot run here; the output says why.
"""

from __future__ import annotations

import argparse
import json
import sys
import warnings
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

from benchmarks.cases.formula import Step
from benchmarks.cases.formulas import FORMULAS, Inputs, make_inputs
from benchmarks.cases.shapes import DTYPES, SHAPES
from benchmarks.measure.counting import trace
from fdkernels import backends
from tools.gpu_check.stage import UNAVAILABLE

FLUSHED = 2**29  # bytes, more than any L2 cache


def ops(step: Step, inputs: Inputs) -> list[dict[str, Any]]:
    """The ops of a call on the CPU, each with its own time."""
    with profile(activities=[ProfilerActivity.CPU]) as found:
        step(inputs)
    return [{"name": event.key, "us": event.self_cpu_time_total} for event in found.key_averages()]


def flush() -> None:
    """Fill the cache with data that was read: evicted data that was written would count as the call's writes."""
    torch.zeros(FLUSHED, dtype=torch.uint8, device="cuda").sum()
    torch.cuda.synchronize()


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tools.gpu_check.one_call", description=__doc__)
    parser.add_argument("--backend", choices=backends.BACKENDS, required=True)
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--shape", choices=tuple(SHAPES), default="sdxl")
    parser.add_argument("--dtype", choices=tuple(DTYPES), default="bf16")
    parser.add_argument("--kernels", action="store_true", help="print what torch.profiler sees")
    options = parser.parse_args()
    reason = backends.unavailable(options.backend, options.device)
    if reason is not None:
        print(f"{options.backend} is unavailable: {reason}")
        return UNAVAILABLE
    warnings.filterwarnings("ignore", message="normalize_weight over")
    formula = FORMULAS["fastgen"]
    case = formula.case(options.shape, SHAPES[options.shape].sizes, options.dtype)
    warm, measured = (make_inputs(case, options.device, seed) for seed in (0, 1))
    step = formula.our_step(options.backend, options.device)
    for _ in range(3):
        step(warm)
    if options.device == "cpu":
        print(json.dumps(ops(step, measured)))
        return 0
    flush()
    if options.kernels:
        print(json.dumps(trace(lambda: step(measured), "cuda").work))
        return 0
    print(f"elements: {measured.student.numel()}")
    torch.cuda.profiler.start()
    step(measured)
    torch.cuda.synchronize()
    torch.cuda.profiler.stop()
    return 0


if __name__ == "__main__":
    sys.exit(main())
