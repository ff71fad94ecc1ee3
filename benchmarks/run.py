"""All cases of a run, and the report of them."""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from benchmarks.comparisons import SCHEMA, compared
from benchmarks.formulas import FORMULAS
from benchmarks.measure import CEILING, Measured, Options, Skipped, counted_later, described, measure
from benchmarks.setting import clocks
from benchmarks.shapes import Case
from benchmarks.terminal import Progress, table

Report = dict[str, Any]


def run(
    cases: Sequence[Case],
    options: Options,
    setting: dict[str, Any],
    *,
    seconds: float = math.inf,
    file: Path | None = None,
    unavailable: Sequence[Skipped] = (),
    say: Callable[[str], object] = print,
) -> Report:
    """Measure the cases, print each as it is done, and let the JSON file grow on the way.

    Args:
        seconds: after which no further case is begun; those are then among the skipped.
        file: for the report.
        unavailable: backends that are skipped from the start.
    """
    begun = time.monotonic()
    done: list[tuple[Case, Measured]] = []
    skipped: list[Skipped] = list(unavailable)
    # On a GPU everything is timed before anything is traced.
    steps = len(cases) * (2 if options.device == "cuda" else 1)
    progress = Progress(steps)

    def late() -> bool:
        return time.monotonic() - begun > seconds

    def write() -> Report:
        report = make_report(done, skipped, options.device, setting)
        if file is not None:
            text = json.dumps(report, indent=1, ensure_ascii=False, allow_nan=False)
            file.write_text(text + "\n", encoding="utf-8")
        return report

    def show(rows: list[dict[str, Any]]) -> None:
        progress.clear()
        if rows:
            say(f"\n{table(rows, compared(rows))}")

    for i, case in enumerate(cases):
        if late():
            skipped += [Skipped(str(each), f"no time: {seconds:g} s were over") for each in cases[i:]]
            break
        progress.show(i, str(case))
        try:
            found = measure(FORMULAS[case.formula], case, options)
        except Exception as error:
            skipped.append(Skipped(str(case), described(error)))
            continue
        skipped += found.skipped
        done.append((case, found))
        if options.device == "cpu":
            show([asdict(row) for row in found.rows])
        write()
    if options.device == "cuda":
        for i, (case, found) in enumerate(done):
            progress.show(len(cases) + i, f"counting: {case}")
            if not late():
                try:
                    found.rows = counted_later(found.rows, FORMULAS[case.formula], case, options)
                except Exception as error:
                    skipped.append(Skipped(f"{case}: launches and memory", described(error)))
            show([asdict(row) for row in found.rows])
    progress.clear()
    setting |= {"clocks_after": clocks(options.device), "load_average_after": round(os.getloadavg()[0], 2)}
    return write()


def make_report(
    done: Sequence[tuple[Case, Measured]], skipped: Sequence[Skipped], device: str, setting: dict[str, Any]
) -> Report:
    # Through JSON, so that what is returned is what is written.
    rows = json.loads(json.dumps([finite(asdict(row)) for _, found in done for row in found.rows]))
    return {
        "schema": SCHEMA,
        "setting": setting,
        "ceiling": ceiling(done, device),
        "rows": rows,
        "comparisons": compared(rows),
        "skipped": [each._asdict() for each in skipped],
    }


def finite(row: dict[str, Any]) -> dict[str, Any]:
    """Null for what JSON has no number for: the error of a wrong variant can be NaN."""
    return {key: None if isinstance(v, float) and not math.isfinite(v) else v for key, v in row.items()}


def ceiling(done: Sequence[tuple[Case, Measured]], device: str) -> dict[str, Any]:
    """The limit as the case with the most bytes found it; each row has that of its own case."""
    measured = [(found.ceiling_bytes, case, found.ceiling) for case, found in done]
    if not measured:
        return {"name": CEILING[device], "gb_per_s": None, "low": None, "high": None, "measured_on": None}
    moved, case, timing = max(measured, key=lambda each: each[0])
    return {
        "name": CEILING[device],
        "gb_per_s": moved / timing.median / 1e9,
        "low": moved / timing.high / 1e9,
        "high": moved / timing.low / 1e9,
        "measured_on": f"{case.shape_name} {case.dtype}" if device == "cpu" else f"{moved // 2 >> 20} MiB",
    }
