"""Stage bench: `python -m benchmarks`, its report in a file beside the stage's JSON."""

from __future__ import annotations

import json
from typing import Any

from benchmarks.comparisons import case_of
from tests.gpu_check.stage import Stage

REPORT = "benchmark.json"
LAST_CASE = 60.0  # seconds kept for what is under way when the others have to stop
REHEARSAL = ("--shapes", "tiny", "--dtype", "bf16", "--mode", "eager", "--rounds", "6")


def run(stage: Stage) -> None:
    seconds = max(stage.left() - LAST_CASE, 0.5 * stage.left())
    file = stage.options.out / REPORT
    file.unlink(missing_ok=True)
    done = stage.python(
        "benchmarks", "-m", "benchmarks", "--device", stage.options.device, "--json", str(file),
        "--seconds", f"{seconds:.0f}", *(() if stage.is_gpu else REHEARSAL),
    )  # fmt: skip
    report = json.loads(file.read_text()) if file.exists() else {"rows": [], "comparisons": [], "skipped": []}
    late = [each["what"] for each in report["skipped"] if each["kind"] == "no time"]
    status = "timed out" if done.status == "ok" and late else done.status
    text = f"no time for {'; '.join(late)}" if status == "timed out" else done.tail()
    stage.add("benchmarks", status, done.seconds, "" if status == "ok" else text, rows=len(report["rows"]))
    for each in report["skipped"]:
        if each["kind"] != "no time":
            status = "failed" if each["kind"] == "failed" and each["ours"] else "refused"
            stage.add(each["what"], status, text=each["why"])
    stage.details |= {"report": REPORT}
    stage.summary += [described(row, report["comparisons"]) for row in report["rows"] if row["ours"]]


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
