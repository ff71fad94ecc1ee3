"""Stage bench: runs `python -m benchmarks` three times, the most important run first, each with its own report.

The runs: every shape without peers; eager peers; the quick choice with compiled peers too, which take minutes to
compile. Stage own is the first run alone, stage peers the second.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from benchmarks.report.reading import case_of
from tools.gpu_check.children import Done
from tools.gpu_check.stage import Stage

LAST_CASE = 60.0  # seconds kept for the case that is running when the time is over
REHEARSAL = ("--shapes", "tiny", "--dtype", "bf16", "--rounds", "6")


class Part(NamedTuple):
    report: str
    share: float
    """Share of the stage's remaining time."""
    on_gpu: tuple[str, ...]
    on_cpu: tuple[str, ...]


PARTS = {
    "own": Part(
        "bench-own.json", 0.5, ("--shapes", "practice,large", "--dtype", "bf16,fp32", "--baseline", "none"),
        (*REHEARSAL, "--baseline", "none"),
    ),
    "peers": Part(
        "bench-peers.json", 0.4, ("--shapes", "practice", "--dtype", "bf16", "--backend", "native", "--mode", "eager"),
        (*REHEARSAL, "--mode", "eager"),
    ),
    # Eager peers run again: docs/speed.md shows a report that has both eager and compiled peers.
    "compiled": Part("benchmark.json", 1.0, (), (*REHEARSAL, "--baseline", "fastgen", "--mode", "eager")),
}  # fmt: skip


def run(stage: Stage) -> None:
    for name in PARTS:
        run_part(stage, name, PARTS[name].share)


def run_alone(name: str) -> Callable[[Stage], None]:
    return lambda stage: run_part(stage, name, 1.0)


def run_part(stage: Stage, name: str, share: float) -> None:
    part = PARTS[name]
    measure(stage, name, part.report, share, part.on_gpu if stage.is_gpu else part.on_cpu)


def measure(stage: Stage, name: str, report: str, share: float, arguments: Sequence[str]) -> None:
    """Run the benchmark once, in a share of the stage's remaining time."""
    if not stage.has_time(name):
        return
    limit = share * stage.left()
    file = stage.options.out / report
    file.unlink(missing_ok=True)
    seconds = max(limit - LAST_CASE, 0.5 * limit)
    done = stage.python(
        name, "-m", "benchmarks", "--device", stage.options.device, "--json", str(file),
        "--seconds", f"{seconds:.0f}", *arguments, limit=limit + LAST_CASE,
    )  # fmt: skip
    stage.details.setdefault("reports", {})[name] = report
    found = json.loads(file.read_text()) if file.exists() else {"rows": [], "comparisons": [], "skipped": []}
    stage.summary += [f"{name}: {described(row, found['comparisons'])}" for row in found["rows"] if row["ours"]]
    note(stage, name, done, found)


def note(stage: Stage, name: str, done: Done, report: dict[str, Any]) -> None:
    """Add the run, and each thing that it had to skip, as parts of the stage."""
    late = [each["what"] for each in report["skipped"] if each["kind"] == "no time"]
    others = [each for each in report["skipped"] if each["kind"] != "no time"]
    status = done.status
    if status == "ok" and late:
        status, text = "timed out", f"no time for {'; '.join(late)}"
    else:
        text = "" if status == "ok" else done.tail()
    stage.add(name, status, done.seconds, text, rows=len(report["rows"]))
    for each in others:
        status = "failed" if each["kind"] == "failed" and each["ours"] else "refused"
        stage.add(f"{name}: {each['what']}", status, text=each["why"])


def described(row: dict[str, Any], comparisons: list[dict[str, Any]]) -> str:
    others = [
        f"{c['ratio']:.2f} × {c['other']}" if c["ratio"] else f"{c['other']} not compared"
        for c in comparisons
        if c["ours"] == row["variant"] and case_of(c) == case_of(row)
    ]
    part = "" if row["percent_of_ceiling"] is None else f", {row['percent_of_ceiling']:.0f} % of the ceiling"
    call = "" if row["call_us"] is None else f", {row['call_us']:.0f} µs a call on the host"
    name = f"{row['formula']} {row['shape_name']} {row['dtype']} {row['variant']}"
    figures = f"{name}: {row['time_us']:.4g} µs{part}{call}"
    return "; ".join([figures, *([", ".join(others)] if others else [])])
