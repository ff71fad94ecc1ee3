"""Stage bench: `python -m benchmarks`, its report in the stage's JSON."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

from tests.gpu_check.stage import Stage

LAST_CASE = 60.0  # seconds kept for what is being timed when the others have to stop, and for counting
REHEARSAL = ("--shapes", "tiny", "--dtype", "bf16", "--mode", "eager", "--rounds", "5")
NO_TIME, UNAVAILABLE = "no time", "unavailable"  # how benchmarks begins to say why


def run(stage: Stage) -> None:
    seconds = max(stage.left() - LAST_CASE, 0.5 * stage.left())
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "report.json"
        done = stage.python(
            "benchmarks", "-m", "benchmarks", "--device", stage.options.device, "--json", str(file),
            "--seconds", f"{seconds:.0f}", *(() if stage.is_gpu else REHEARSAL),
        )  # fmt: skip
        report = json.loads(file.read_text()) if file.exists() else {"rows": [], "comparisons": [], "skipped": []}
    late = [each["what"] for each in report["skipped"] if each["why"].startswith(NO_TIME)]
    status = "timed out" if done.status == "ok" and late else done.status
    text = f"no time for {'; '.join(late)}" if status == "timed out" else done.tail()
    stage.add("benchmarks", status, done.seconds, "" if status == "ok" else text, rows=len(report["rows"]))
    for each in report["skipped"]:
        if not each["why"].startswith(NO_TIME):
            stage.add(each["what"], "refused" if each["why"].startswith(UNAVAILABLE) else "failed", text=each["why"])
    stage.details |= {"report": report}
    stage.summary += [described(row, report["comparisons"]) for row in report["rows"] if row["ours"]]


def described(row: dict[str, Any], comparisons: list[dict[str, Any]]) -> str:
    same = ("op", "shape_name", "dtype", "formula")
    others = [
        f"{c['ratio']:.2f} × {c['other']}" if c["ratio"] else f"{c['other']} not compared"
        for c in comparisons
        if c["ours"] == row["variant"] and all(c[key] == row[key] for key in same)
    ]
    return (
        f"{row['formula']} {row['shape_name']} {row['dtype']} {row['variant']}: {row['time_us']:.4g} µs, "
        f"{row['percent_of_ceiling']:.0f} % of the ceiling; {', '.join(others)}"
    )
