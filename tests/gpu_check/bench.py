"""Stage bench: `python -m benchmarks.gpu`, its rows in the stage's JSON."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

from tests.gpu_check.stage import Stage

LAST_SHAPE = 60.0  # seconds kept for the shape that is being timed when the others have to stop


def run(stage: Stage) -> None:
    seconds = max(stage.left() - LAST_SHAPE, 0.5 * stage.left())
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "rows.json"
        done = stage.python(
            "benchmarks.gpu", "-m", "benchmarks.gpu", "--device", stage.options.device, "--json", str(file),
            "--seconds", f"{seconds:.0f}", "--rounds", "30" if stage.is_gpu else "5",
        )  # fmt: skip
        found = json.loads(file.read_text()) if file.exists() else {"rows": [], "not_run": []}
    rows = found["rows"]
    timed = [row for row in rows if row["failure"] is None]
    status = "timed out" if done.status == "ok" and found["not_run"] else done.status
    text = f"no time for {', '.join(found['not_run'])}" if status == "timed out" else done.tail()
    stage.add("benchmarks.gpu", status, done.seconds, "" if status == "ok" else text, rows=len(timed))
    for row in rows:
        if row["failure"] is not None:
            status = "refused" if row["failure"].startswith("unavailable") else "failed"
            stage.add(f"{row['name']} {row['dtype']} {row['variant']}", status, text=row["failure"])
    stage.details |= {"rows": rows, "not_run": found["not_run"]}
    for pair in dict.fromkeys((row["name"], row["dtype"]) for row in timed):
        ours = [row for row in timed if (row["name"], row["dtype"]) == pair and "eager" not in row["variant"]]
        stage.summary.append(f"{pair[0]} {pair[1]}: " + "; ".join(described(row) for row in ours))


def described(row: dict[str, Any]) -> str:
    microseconds = (row["gpu_us"] or row["call_us"])[0]
    eager = [f"{row[key]:.1f}" for key in ("x_eager_gpu", "x_eager_call") if row[key]]
    return f"{row['variant']} {microseconds:.4g} µs, {100 * row['of_copy']:.0f} % of copy, {'/'.join(eager)} × eager"
