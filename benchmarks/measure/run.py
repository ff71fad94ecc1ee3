"""All cases of a run, and the report of them."""

from __future__ import annotations

import functools
import json
import math
import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks.cases.formulas import FORMULAS
from benchmarks.cases.shapes import Case
from benchmarks.measure.rows import CEILING, Measured, Options, Skipped, count_later, described, measure, method
from benchmarks.report.comparisons import compared
from benchmarks.report.reading import SCHEMA, Report
from benchmarks.report.terminal import brief, table

# The part of a run's seconds after which no case is begun: on a GPU, counting comes after all timing.
TIMED = {"cpu": 1.0, "cuda": 0.75}


class Task(NamedTuple):
    what: str
    case: Case
    do: Callable[[Case], None]
    until: float  # seconds into the run, after which it is not begun
    counts: bool = False
    ours: bool = True


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

    An interrupt (Ctrl-C) ends the run early, with what is done so far in the report and the rest among the skipped.

    Args:
        seconds: after which nothing further is begun; that is then among the skipped. On a GPU a quarter is kept for
            counting.
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

    def show(case: Case, form: Callable[[list[dict[str, Any]], list[dict[str, Any]]], str]) -> None:
        rows = [asdict(row) for row in done[case].rows]
        if rows:
            say(form(rows, compared(rows)))

    def time_case(case: Case) -> None:
        done[case] = measure(FORMULAS[case.formula], case, options)

    def count_case(case: Case, compiled: bool) -> None:
        count_later(done[case], FORMULAS[case.formula], case, options, compiled)

    tasks = [Task(str(case), case, time_case, TIMED[options.device] * seconds) for case in cases]
    if on_gpu:  # what has to be compiled once more comes last
        for compiled, more in ((False, ""), (True, ", compiled")):
            count = functools.partial(count_case, compiled=compiled)
            tasks += [
                Task(f"{case}{more}: launches and memory", case, count, seconds, counts=True, ours=not compiled)
                for case in cases
            ]
    stopped = False
    for task in tasks:
        if task.counts and task.case not in done:
            continue
        late = time.monotonic() - begun > task.until
        if stopped or late:
            why = "stopped by hand" if stopped else f"no time: {task.until:g} s were over"
            skipped.append(Skipped(task.what, why, "stopped" if stopped else "no time", task.ours))
            continue
        try:
            task.do(task.case)
        except KeyboardInterrupt:
            stopped = True
            skipped.append(Skipped(task.what, "stopped by hand", "stopped", task.ours))
            continue
        except Exception as error:
            skipped.append(Skipped(task.what, described(error), "failed", task.ours))
        write()
        if not task.counts and task.case in done:
            show(task.case, brief if on_gpu else table)
    for case in done if on_gpu else ():
        show(case, table)
    setting["load_average_after"] = round(os.getloadavg()[0], 2)
    return write()


def make_report(
    done: Mapping[Case, Measured], skipped: Sequence[Skipped], device: str, setting: dict[str, Any]
) -> Report:
    # Through JSON, so that what is returned is what is written. It has no NaN, which a wrong variant's error can be.
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
    """The limit as the case with the most bytes found it; each row has that of its own case."""
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
