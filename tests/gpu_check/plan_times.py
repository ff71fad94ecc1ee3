"""python -m tests.gpu_check.plan_times: forwards of the native backend in each schedule that can hold them.

One process, since a schedule is chosen a call: every schedule of a case is captured and then timed in turns with the others,
beside what the plan's model predicts for it. Gradients are kept, so that they go to memory as in training.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.formulas import FORMULAS, Formula, Inputs, rotation
from benchmarks.gpu_timing import Replay, device_timings
from benchmarks.measure import input_sets
from benchmarks.predicted import present
from benchmarks.shapes import GROUPS, SHAPES, Case
from fdkernels import RatioNormalizer, _core
from tests.gpu_check.stage import PLAN

# Each with the shapes of its kind; weights are left out of the last two, which are the general kernels'.
CASES = {
    "practice": (
        *(("fastgen", shape, dtype) for dtype in ("bf16", "fp32") for shape in GROUPS["practice"]),
        *(("dmd2_pixel", shape, "bf16") for shape in ("cifar", "imagenet64", "sdxl", "pixels512")),
        *(("dmd2_latent", shape, "bf16") for shape in ("sd15", "sdxl")),
        ("self_forcing", "wan", "bf16"),
    ),
    "large": (
        *(("fastgen", shape, "bf16") for shape in GROUPS["large"]),
        ("fastgen", "sdxl_large", "fp32"), ("dmd2_latent", "sdxl_large", "bf16"), ("self_forcing", "wan_large", "bf16"),
    ),
}  # fmt: skip
SLOW = 4.0  # times the best prediction, beyond which a schedule is not timed


def schedule(plan: dict[str, Any]) -> str:
    return f"{plan['schedule']}:{plan['teams' if plan['schedule'] == 'grid' else 'team']}"


def forward(formula: Formula, chosen: str) -> Any:
    """A step whose result is the gradient itself, as the forward has left it."""
    normalizer = RatioNormalizer(10, (0.0, 1.0), 0.9).to("cuda")

    def step(v: Inputs) -> Tensor:
        os.environ[PLAN] = chosen
        loss = formula.ours(v, normalizer, "native")
        assert loss.grad_fn is not None
        return loss.grad_fn.saved_tensors[0]  # type: ignore[attr-defined]

    return step


def times_of(name: str, shape: str, dtype: str, rounds: int) -> list[dict[str, Any]]:
    formula = FORMULAS[name]
    case: Case = formula.case(shape, SHAPES[shape].sizes, dtype)
    elements = case.elements // case.shape[0]
    plans = _core.plans(case.shape[0], elements, limits=present(), student=dtype, **formula.plan(case))
    plans = [plan for plan in plans if plan["seconds"] <= SLOW * plans[0]["seconds"]]
    data = rotation(case, "cuda", input_sets(formula, case, "cuda"))
    replays = {schedule(plan): Replay(forward(formula, schedule(plan)), data) for plan in plans}
    timings = device_timings(replays, rounds, "cuda")
    found = []
    for plan in plans:
        key = schedule(plan)
        time, low, high = timings[key].microseconds(replays[key].calls)
        found.append({
            "formula": name, "shape": shape, "dtype": dtype, "plan": key, "time_us": time, "low_us": low, "high_us": high,
            "predicted_us": 1e6 * plan["seconds"], **{k: v for k, v in plan.items() if k != "seconds"},
        })  # fmt: skip
    return found


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.gpu_check.plan_times", description=__doc__)
    parser.add_argument("--group", choices=tuple(CASES), required=True)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--json", type=Path, required=True)
    options = parser.parse_args()
    everything: list[dict[str, Any]] = []
    for case in CASES[options.group]:
        try:
            found = times_of(*case, options.rounds)
        except Exception as error:
            print(f"{case}: {type(error).__name__}: {error}", flush=True)
            continue
        everything += found
        options.json.write_text(json.dumps(everything))
        best = min(found, key=lambda each: each["time_us"])
        figures = "  ".join(f"{each['plan']} {each['time_us']:.2f} ({each['predicted_us']:.1f})" for each in found)
        print(f"{' '.join(case)}: {found[0]['time_us'] / best['time_us']:.2f} of {best['plan']}; {figures}", flush=True)
        torch.cuda.empty_cache()
    return 0


if __name__ == "__main__":
    sys.exit(main())
