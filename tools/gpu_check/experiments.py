"""Stages cases and plans, for the first minutes on a GPU: is every schedule right, and what does each one cost?"""

from __future__ import annotations

import functools
import os

from benchmarks.cases.formulas import BINS, HEADS
from benchmarks.cases.shapes import PRACTICE
from tools.gpu_check import sanitize
from tools.gpu_check.sanitize import Subject
from tools.gpu_check.stage import Stage

# "": the planner's own choice; the others force a schedule.
PLANS = ("", "cluster:1", "cluster:2", "cluster:4", "cluster:8", "cluster:16", "grid:1", "grid:2", "grid")
CALL = ("--heads", str(HEADS), "--bins", str(BINS))  # of the call that is timed


def run_cases(stage: Stage) -> None:
    """Run tools.gpu_check.small_cases in each plan, then record the plans for the shapes of practice on this device."""
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
    """Time each shape's forward in each schedule: is the planned one the fastest?"""
    groups = ("practice", "large") if stage.is_gpu else ("rehearsal",)
    for i, group in enumerate(groups):
        if not stage.has_time(group):
            continue
        file = stage.options.out / f"plans-{group}.json"
        done = stage.python(
            group, "-m", "tools.gpu_check.plan_times", "--group", group, "--device", stage.options.device,
            "--json", str(file), limit=stage.left() / (len(groups) - i),
        )  # fmt: skip
        stage.add(group, done.status, done.seconds, "" if done.status == "ok" else done.tail())
        stage.summary += [line for line in done.output.splitlines() if ": planned takes " in line]
