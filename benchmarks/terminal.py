"""Tables and the progress bar."""

from __future__ import annotations

import math
import shutil
import sys
import time
from collections.abc import Iterable, Sequence
from typing import TextIO

from benchmarks.comparisons import CASE, Row, Verdict, case_of, dimensions

HEADER = (
    f"{'median µs':>10} {'95 % interval':>17} {'GB/s':>6} {'% limit':>7} {'pred. µs':>8} {'MiB':>7} {'B/elem.':>7} "
    f"{'launches':>8} {'error':>8}  fdkernels is"
)


def cell(value: float | None, width: int, form: str = ".4g") -> str:
    return f"{'–' if value is None else format(value, form):>{width}}"


def microseconds(value: float) -> str:
    return f"{value:,.0f}" if value >= 1000 else f"{value:.4g}"


def name_of(row: Row) -> str:
    shown = ("fdkernels " if row["ours"] else "") + row["variant"]
    return shown + (" (plain calls)" if row["timed_by"] == "wall" else "")


def format_row(row: Row, verdicts: Sequence[str]) -> str:
    elements = math.prod(row["shape"])
    extra, counted = row["extra_bytes"], row["counted_bytes"]
    interval = f"{microseconds(row['low_us'])} – {microseconds(row['high_us'])}"
    predicted = "–" if row["predicted_us"] is None else microseconds(row["predicted_us"])
    return (
        f"{microseconds(row['time_us']):>10} {interval:>17} "
        f"{cell(row['gb_per_s'], 6, '.3g')} {cell(row['percent_of_ceiling'], 7, '.3g')} "
        f"{predicted:>8} {cell(None if extra is None else extra / 2**20, 7, '.3g')} "
        f"{cell(None if counted is None else counted / elements, 7, '.3g')} {cell(row['launches'], 8)} "
        f"{cell(row['gradient_error'], 8, '.1e')}  {'; '.join(verdicts)}"
    ).rstrip()


def verdict_text(comparison: Row, several: bool) -> str:
    if comparison["verdict"] == "wrong":
        text = "not compared"
    else:
        ratio = f"{comparison['ratio']:.2f} × ({comparison['low']:.2f} to {comparison['high']:.2f})"
        text = f"no different, {ratio}" if comparison["verdict"] == "no difference" else ratio
        text += " SLOWER" if comparison["verdict"] == "slower" else ""
        text += " by plain calls" if comparison["timed_by"] == "wall" else ""
    return f"{comparison['ours']} {text}" if several else text


def table(rows: Sequence[Row], comparisons: Iterable[Row]) -> str:
    """One case."""
    here = [c for c in comparisons if case_of(c) == case_of(rows[0])]
    several = len({c["ours"] for c in here}) > 1
    first = rows[0]
    sets = first["input_sets"]
    residence = "in cache" if sets == 1 else f"{sets} sets of inputs in turn"
    shape = dimensions(first["shape"])
    width = max(len(name_of(row)) for row in rows)
    lines = [
        "",
        f"{first['op']}, {first['formula']}: {first['shape_name']} {shape} {first['dtype']}, {residence}, "
        f"limit {first['ceiling_gb_per_s']:.3g} GB/s, {first['rounds']} rounds",
        f"{'variant':{width}} {HEADER}",
    ]
    for row in rows:
        if row["wrong"]:
            verdicts = [f"WRONG: {row['wrong_because']}"]
        else:
            verdicts = [verdict_text(c, several) for c in here if c["other"] == row["variant"] and not row["ours"]]
        lines.append(f"{name_of(row):{width}} {format_row(row, verdicts)}")
    return "\n".join(lines)


def brief(rows: Sequence[Row], comparisons: Iterable[Row]) -> str:
    """One case in a line, before it is counted."""
    times = [f"{name_of(row)} {microseconds(row['time_us'])} µs" for row in rows]
    return f"timed {rows[0]['formula']}, {rows[0]['shape_name']} {rows[0]['dtype']}: {', '.join(times)}"


def summary(comparisons: Sequence[Row]) -> list[str]:
    """How often ours was faster, and by name where it was not."""
    count = {name: sum(c["verdict"] == name for c in comparisons) for name in ("faster", "slower", "no difference")}
    lines = [f"fdkernels: faster {count['faster']}, slower {count['slower']}, no difference {count['no difference']}"]
    for c in comparisons:
        if c["verdict"] != "faster":
            ratio = "" if c["ratio"] is None else f", {c['ratio']:.2f} ×"
            case = " ".join(str(c[key]) for key in CASE)
            lines.append(f"  {c['verdict']}: {case}, {c['ours']} to {c['other']}{ratio}")
    return lines


def report_changes(verdict: Verdict, tolerance: float) -> str:
    better = [change for change in verdict.changes if not change.worse]
    return "\n".join(
        [
            *verdict.notes,
            *map(str, verdict.changes),
            f"{verdict.compared} rows of fdkernels compared: {len(verdict.regressions)} worse, {len(better)} better ("
            + (f"times: beyond both intervals and {100 * tolerance:g} %)" if verdict.times_compared else "no times)"),
        ]
    )


class Progress:
    """A bar on a terminal's last line; where there is no terminal, nothing."""

    WIDTH = 24

    def __init__(self, total: int, stream: TextIO = sys.stderr) -> None:
        self.total, self.stream, self.begun = total, stream, time.monotonic()
        self.shown = stream.isatty()

    def show(self, done: int, what: str) -> None:
        if not self.shown:
            return
        filled = round(self.WIDTH * done / max(1, self.total))
        seconds = time.monotonic() - self.begun
        bar = "█" * filled + "░" * (self.WIDTH - filled)
        columns = shutil.get_terminal_size().columns - 1  # or it would wrap, and the next one not erase it
        self.stream.write("\r\033[K" + f"{bar} {done}/{self.total} {seconds:.0f} s  {what}"[:columns])
        self.stream.flush()

    def clear(self) -> None:
        if self.shown:
            self.stream.write("\r\033[K")
            self.stream.flush()
