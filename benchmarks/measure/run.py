"""Runs all cases, and makes their report."""

from __future__ import annotations

import functools
import json
import math
import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from benchmarks.cases.formulas import FORMULAS
from benchmarks.cases.shapes import Case
from benchmarks.measure.rows import CEILING, Measured, Options, Skipped, count_later, described, measure, method
from benchmarks.report.comparisons import compared
from benchmarks.report.reading import SCHEMA, Report
from benchmarks.report.terminal import table


def run(
    cases: Sequence[Case], options: Options, setting: dict[str, Any], *, seconds: float = math.inf,
    file: Path | None = None, unavailable: Sequence[Skipped] = (), say: Callable[[str], object] = print,
) -> Report:  # fmt: skip
    """Measure the cases, print their rows, and write the JSON file anew after each step.

    Args:
        seconds: after this time nothing further begins, and what is left is reported as skipped. On a GPU a quarter is
            kept for counting.
        file: for the report.
        unavailable: backends that are skipped from the start.
    """
    begun, on_gpu = time.monotonic(), options.device == "cuda"
    done: dict[Case, Measured] = {}
    skipped = list(unavailable)

    def write() -> Report:
        report = make_report(done, skipped, options.device, setting)
        if file is not None:
            text = json.dumps(report, indent=1, ensure_ascii=False, allow_nan=False)
            file.write_text(text + "\n", encoding="utf-8")
        return report

    def attempt(what: str, do: Callable[[], object], until: float, ours: bool = True) -> None:
        if time.monotonic() - begun > until:
            skipped.append(Skipped(what, f"no time: {until:g} s were over", "no time", ours))
            return
        try:
            do()
        except Exception as error:
            skipped.append(Skipped(what, described(error), "failed", ours))
        write()

    def show(case: Case) -> None:
        rows = [asdict(row) for row in done[case].rows] if case in done else []
        if rows:
            say(table(rows, compared(rows)))

    def time_case(case: Case) -> None:
        done[case] = measure(FORMULAS[case.formula], case, options)

    for case in cases:
        attempt(str(case), functools.partial(time_case, case), (0.75 if on_gpu else 1.0) * seconds)
        if not on_gpu:
            show(case)
    # On a GPU counting comes after all timing; what has to be compiled once more comes last.
    for compiled in (False, True) if on_gpu else ():
        for case, found in done.items():
            count = functools.partial(count_later, found, FORMULAS[case.formula], case, options, compiled)
            attempt(f"{case}{', compiled' * compiled}: launches and memory", count, seconds, ours=not compiled)
    for case in done if on_gpu else ():
        show(case)
    setting["load_average_after"] = round(os.getloadavg()[0], 2)
    return write()


def make_report(
    done: Mapping[Case, Measured], skipped: Sequence[Skipped], device: str, setting: dict[str, Any]
) -> Report:
    # Through JSON, so that the returned report equals the written one. JSON has no NaN (a wrong variant's error can be
    # NaN): it becomes None.
    text = json.dumps([asdict(row) for each in done.values() for row in each.rows])
    rows = json.loads(text, parse_constant=lambda _: None)
    used = {case.formula for case in done}
    timed_at = list(dict.fromkeys(found.clocks for found in done.values() if found.clocks))
    return {
        "schema": SCHEMA,
        "setting": setting | {"clocks_while_timing": timed_at},
        "method": method(device),
        "formulas": {name: formula.title for name, formula in FORMULAS.items() if name in used},
        "ceiling": ceiling(done, device),
        "rows": rows,
        "comparisons": compared(rows),
        "skipped": [each._asdict() for each in (*skipped, *(s for found in done.values() for s in found.skipped))],
    }


def ceiling(done: Mapping[Case, Measured], device: str) -> dict[str, Any]:
    """The limit that the case with the most bytes measured; each row has the limit of its own case."""
    if not done:
        return {"name": CEILING[device], "gb_per_s": None, "low": None, "high": None, "measured_on": None}
    case, found = max(done.items(), key=lambda each: each[1].ceiling_bytes)
    moved, timing = found.ceiling_bytes, found.ceiling
    return {
        "name": CEILING[device],
        "gb_per_s": moved / timing.median / 1e9,
        "low": moved / timing.high / 1e9,
        "high": moved / timing.low / 1e9,
        "measured_on": f"{case.shape_name} {case.dtype}" if device == "cpu" else f"{moved // 2 >> 20} MiB",
    }
