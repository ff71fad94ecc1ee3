"""Stages cases and plans, for the first minutes on a GPU: is every schedule right, and what does each one cost."""

from __future__ import annotations

import functools
import os

from benchmarks.formulas import BINS, HEADS
from benchmarks.shapes import PRACTICE, TINY
from tests.gpu_check import bench, sanitize
from tests.gpu_check.sanitize import Subject
from tests.gpu_check.stage import PLAN, Stage

# What the planner chooses, and everything that it can be made to choose.
PLANS = ("", "cluster:1", "cluster:2", "cluster:4", "cluster:8", "cluster:16", "grid:1", "grid:2", "grid")
ROUNDS = ("--rounds", "10")
CALL = ("--heads", str(HEADS), "--bins", str(BINS))  # the one that is timed


def run_cases(stage: Stage) -> None:
    """tests.gpu_check.small_cases in each plan, then what is planned for the shapes of practice on this device."""
    subjects = [*(Subject("native", plan) for plan in (PLANS if stage.is_gpu else PLANS[:1])), Subject("triton")]
    jobs = (functools.partial(sanitize.plainly, stage, subject, []) for subject in subjects)
    stage.together(jobs, max(1, (os.cpu_count() or 1) // 4))
    for name, shape in PRACTICE.items():
        planned(stage, name, ",".join(map(str, shape.sizes)))


def planned(stage: Stage, name: str, sizes: str) -> None:
    title = f"plan, {name}"
    if not stage.has_time(title):
        return
    device = "present" if stage.is_gpu else "h200"
    done = stage.python(title, "-m", "fdkernels", "plan", "--shape", sizes, *CALL, "--device", device)
    stage.details.setdefault("plans", {})[name] = done.output.strip()
    stage.add(title, done.status, done.seconds, "" if done.status == "ok" else done.tail())


def run_plans(stage: Stage) -> None:
    """Our rows at the shapes of practice, bf16, in few rounds, in each plan."""
    plans = PLANS if stage.is_gpu else PLANS[:1]
    shapes = "practice" if stage.is_gpu else next(iter(TINY))
    arguments = (
        "fused_fdiv_loss", "--shapes", shapes, "--dtype", "bf16", "--backend", "native", "--baseline", "none", *ROUNDS,
    )  # fmt: skip
    for i, plan in enumerate(plans):
        name = plan or "as planned"
        report = f"bench-plan-{plan.replace(':', '-') or 'free'}.json"
        bench.measure(stage, name, report, 1 / (len(plans) - i), arguments, {PLAN: plan})
