"""python -m tools.gpu_check.plan_times: times forwards of the native backend in each schedule that may be worth it.

One process is enough, since each call chooses its schedule: all schedules of a case are captured, then timed in turns.
Each time is printed beside the plan model's prediction. Gradients are kept, so that they go to memory as in training.
On a CPU, which has one schedule, this is a rehearsal.
"""

from __future__ import annotations

import argparse
import functools
import json
import os
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from benchmarks.cases.formulas import BINS, FORMULAS, Formula, Inputs, rotation
from benchmarks.cases.shapes import LARGE, PRACTICE, SHAPES
from benchmarks.measure.gpu_timing import Replay, device_timings
from benchmarks.measure.rows import input_sets
from fdkernels import RatioNormalizer, _core, devices
from fdkernels.call_shape import CallShape
from tools.gpu_check.stage import PLAN

if TYPE_CHECKING:
    from fdkernels._core import Plan

# (formula, shape, dtype) of each group; the last three of "practice" use the general kernels.
CASES = {
    "practice": (
        *(("fastgen", shape, dtype) for dtype in ("bf16", "fp32") for shape in PRACTICE),
        *(("dmd2_pixel", shape, "bf16") for shape in ("cifar", "imagenet64", "sdxl", "pixels512")),
        ("dmd2_latent", "sd15", "bf16"), ("dmd2_latent", "sdxl", "bf16"), ("self_forcing", "wan", "bf16"),
    ),
    "large": (
        *(("fastgen", shape, "bf16") for shape in LARGE),
        ("fastgen", "sdxl_large", "fp32"), ("dmd2_latent", "sdxl_large", "bf16"), ("self_forcing", "wan_large", "bf16"),
    ),
    "rehearsal": (("fastgen", "tiny", "bf16"),),
}  # fmt: skip
SLOW = 4.0  # a schedule that is predicted this many times slower than the best is not timed


def schedule(plan: Plan) -> str:
    return f"{plan['schedule']}:{plan['teams' if plan['schedule'] == 'grid' else 'team']}"


def forward(formula: Formula, chosen: str, device: str) -> Callable[[Inputs], Tensor]:
    """A step that returns the gradient that the forward has saved."""
    normalizer = RatioNormalizer(BINS, (0.0, 1.0), 0.9).to(device)

    def step(v: Inputs) -> Tensor:
        os.environ[PLAN] = chosen
        loss: Any = formula.ours(v, normalizer, "native")  # torch 2.11 frees what is saved with the loss
        return loss.grad_fn.saved_tensors[0]

    return step


def times_of(name: str, shape: str, dtype: str, rounds: int, device: str) -> list[dict[str, Any]]:
    """A row for each schedule, the planned one first."""
    formula = FORMULAS[name]
    case = formula.case(shape, SHAPES[shape].sizes, dtype)
    limits = devices.present(torch.cuda.current_device()) if device == "cuda" else devices.PRESETS["h100"]
    batch = case.shape[0]
    plans = _core.plans(CallShape(batch, case.elements // batch, student=dtype, **formula.plan(case)), limits)
    plans = [plan for plan in plans if plan["seconds"] <= SLOW * plans[0]["seconds"]]
    data = rotation(case, device, input_sets(formula, case, device))
    timed: dict[str, Callable[[], object]] = {}
    calls = {}
    for chosen in map(schedule, plans[: None if device == "cuda" else 1]):
        step = forward(formula, chosen, device)
        replay = Replay(step, data) if device == "cuda" else None
        timed[chosen], calls[chosen] = (replay, replay.calls) if replay else (functools.partial(step, data[0]), 1)
    timings = device_timings(timed, rounds, device)
    rows = []
    for plan in plans[: len(timed)]:
        time_us, low_us, high_us = timings[schedule(plan)].microseconds(calls[schedule(plan)])
        rows.append({
            "case": f"{name} {shape} {dtype}", "plan": schedule(plan), "predicted_us": 1e6 * plan["seconds"],
            "time_us": time_us, "low_us": low_us, "high_us": high_us,
        })  # fmt: skip
    return rows


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tools.gpu_check.plan_times", description=__doc__)
    parser.add_argument("--group", choices=tuple(CASES), required=True)
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--json", type=Path, required=True, help="written anew after each case")
    options = parser.parse_args()
    warnings.filterwarnings("ignore", message="normalize_weight over")
    rows: list[dict[str, Any]] = []
    for case in CASES[options.group]:
        found = times_of(*case, options.rounds, options.device)
        rows += found
        options.json.write_text(json.dumps(rows, indent=1) + "\n")
        best = min(found, key=lambda row: row["time_us"])
        figures = ", ".join(f"{row['plan']} {row['time_us']:.1f} ({row['predicted_us']:.1f})" for row in found)
        over = found[0]["time_us"] / best["time_us"]
        print(f"{found[0]['case']}: planned takes {over:.2f} of {best['plan']}; µs (predicted): {figures}", flush=True)
        if options.device == "cuda":
            torch.cuda.empty_cache()
    return 0


if __name__ == "__main__":
    sys.exit(main())
