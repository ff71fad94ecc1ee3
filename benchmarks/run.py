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

from benchmarks.comparisons import SCHEMA, Report, compared
from benchmarks.formulas import FORMULAS
from benchmarks.measure import CEILING, Kind, Measured, Options, Skipped, count_later, described, measure, method
from benchmarks.shapes import Case
from benchmarks.terminal import Progress, brief, table

# The part of a run's seconds after which no case is begun: on a GPU, counting comes after all timing.
TIMED = {"cpu": 1.0, "cuda": 0.75}
COUNTS = "launches and memory"


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
    begun, for_timing = time.monotonic(), TIMED[options.device] * seconds
    running = Run(cases, options, setting, file, list(unavailable), say)
    try:
        running.time_all(begun + for_timing, f"no time: {for_timing:g} s were over")
        if options.device == "cuda":
            running.count_all(begun + seconds, f"no time: {seconds:g} s were over")
    except KeyboardInterrupt:
        running.skip_rest("stopped by hand", "stopped")
    finally:
        running.progress.clear()
    if options.device == "cuda":
        running.show_all()
    setting["load_average_after"] = round(os.getloadavg()[0], 2)
    return running.write()


class Run:
    def __init__(
        self,
        cases: Sequence[Case],
        options: Options,
        setting: dict[str, Any],
        file: Path | None,
        skipped: list[Skipped],
        say: Callable[[str], object],
    ) -> None:
        self.cases, self.options, self.setting = cases, options, setting
        self.file, self.skipped, self.say = file, skipped, say
        self.done: list[tuple[Case, Measured]] = []
        self.tried = self.counted = 0
        # On a GPU everything is timed before anything is traced.
        self.progress = Progress(len(cases) * (3 if options.device == "cuda" else 1))

    def time_all(self, until: float, if_late: str) -> None:
        for i, case in enumerate(self.cases):
            if time.monotonic() > until:
                self.skip_rest(if_late, "no time")
                break
            self.progress.show(i, str(case))
            found = []
            try:
                found = [measure(FORMULAS[case.formula], case, self.options)]
            except Exception as error:
                self.skipped.append(Skipped(str(case), described(error), "failed"))
            self.done += [(case, each) for each in found]
            self.tried += 1
            self.write()
            for each in found:
                self.show(each, table if self.options.device == "cpu" else brief)

    def count_all(self, until: float, if_late: str) -> None:
        # What has to be compiled once more comes last.
        for compiled in (False, True):
            for case, found in self.done:
                if time.monotonic() > until:
                    self.skip_rest(if_late, "no time")
                    return
                self.progress.show(len(self.cases) + self.counted, f"counting: {case}")
                try:
                    count_later(found, FORMULAS[case.formula], case, self.options, compiled)
                except Exception as error:
                    self.skipped.append(Skipped(f"{case}: {COUNTS}", described(error), "failed", not compiled))
                self.counted += 1
                self.write()

    def skip_rest(self, why: str, kind: Kind) -> None:
        self.skipped += [Skipped(str(case), why, kind) for case in self.cases[self.tried :]]
        self.tried = len(self.cases)
        if self.options.device == "cuda":
            n = len(self.done)
            mine, peers = self.done[self.counted :], self.done[max(0, self.counted - n) :]
            self.skipped += [Skipped(f"{case}: {COUNTS}", why, kind) for case, _ in mine]
            self.skipped += [Skipped(f"{case}, compiled: {COUNTS}", why, kind, ours=False) for case, _ in peers]
            self.counted = 2 * n

    def show_all(self) -> None:
        for _, found in self.done:
            self.show(found, table)

    def show(self, found: Measured, form: Callable[[list[dict[str, Any]], list[dict[str, Any]]], str]) -> None:
        self.progress.clear()
        rows = [asdict(row) for row in found.rows]
        if rows:
            self.say(form(rows, compared(rows)))

    def write(self) -> Report:
        report = make_report(self.done, self.skipped, self.options.device, self.setting)
        if self.file is not None:
            text = json.dumps(report, indent=1, ensure_ascii=False, allow_nan=False)
            self.file.write_text(text + "\n", encoding="utf-8")
        return report


def make_report(
    done: Sequence[tuple[Case, Measured]], skipped: Sequence[Skipped], device: str, setting: dict[str, Any]
) -> Report:
    # Through JSON, so that what is returned is what is written.
    rows = json.loads(json.dumps([finite(asdict(row)) for _, found in done for row in found.rows]))
    used = {case.formula for case, _ in done}
    timed_at = list(dict.fromkeys(found.clocks for _, found in done if found.clocks))
    busy = max((found.busy for _, found in done if found.busy is not None), default=None)
    return {
        "schema": SCHEMA,
        "setting": setting | {"clocks_while_timing": timed_at, "cpu_busy_while_timing_percent": busy},
        "method": method(device),
        "formulas": {name: formula.title for name, formula in FORMULAS.items() if name in used},
        "ceiling": ceiling(done, device),
        "rows": rows,
        "comparisons": compared(rows),
        "skipped": [each._asdict() for each in (*skipped, *(each for _, found in done for each in found.skipped))],
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
