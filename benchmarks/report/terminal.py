"""The tables that the terminal shows."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

from benchmarks.cases.shapes import dimensions
from benchmarks.report.comparisons import TOLERANCE, Change
from benchmarks.report.reading import CASE, Row, case_of
from benchmarks.report.shown import duration, percent, significant, size

HEADER = "variant|median|95 % interval|GB/s|of limit|memory|B/elem.|launches|syncs|error|fdkernels is"


def name_of(row: Row) -> str:
    shown = ("fdkernels " if row["ours"] else "") + row["variant"]
    return shown + (" (plain calls)" if row["timed_by"] == "wall" else "")


def cells(row: Row, verdicts: Sequence[str]) -> list[str]:
    moved = row["counted_bytes"] and row["counted_bytes"] / math.prod(row["shape"])
    forms: list[tuple[Any, Any]] = [
        (row["gb_per_s"], significant), (row["percent_of_ceiling"], percent), (row["extra_bytes"], size),
        (moved, significant), (row["launches"], str), (row.get("syncs"), "{:g}".format),
        (row["gradient_error"], "{:.1e}".format),
    ]  # fmt: skip
    interval = f"{duration(row['low_us'])} – {duration(row['high_us'])}"
    shown = ("–" if value is None else form(value) for value, form in forms)
    return [name_of(row), duration(row["time_us"]), interval, *shown, "; ".join(verdicts)]


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
    """The table of one case."""
    here, first = [c for c in comparisons if case_of(c) == case_of(rows[0])], rows[0]
    several, sets = len({c["ours"] for c in here}) > 1, first["input_sets"]
    lines = [HEADER.split("|")]
    for row in rows:
        verdicts = [verdict_text(c, several) for c in here if c["other"] == row["variant"] and not row["ours"]]
        lines.append(cells(row, [f"WRONG: {row['wrong_because']}"] if row["wrong"] else verdicts))
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    form = "  ".join([f"{{:<{widths[0]}}}", *(f"{{:>{width}}}" for width in widths[1:-1]), "{}"])
    residence = "in cache" if sets == 1 else f"{sets} sets of inputs in turn"
    title = f"{first['op']}, {first['formula']}: {first['shape_name']} {dimensions(first['shape'])} {first['dtype']}"
    title += f", {residence}, limit {first['ceiling_gb_per_s']:.3g} GB/s, {first['rounds']} rounds"
    return "\n".join(["", title, *(form.format(*line).rstrip() for line in lines)])


def summary(comparisons: Sequence[Row]) -> list[str]:
    """How often ours was faster, and the cases where it was not."""
    counts = [f"{v} {sum(c['verdict'] == v for c in comparisons)}" for v in ("faster", "slower", "no difference")]
    lines = [f"fdkernels: {', '.join(counts)}"]
    for c in (c for c in comparisons if c["verdict"] != "faster"):
        ratio = "" if c["ratio"] is None else f", {c['ratio']:.2f} ×"
        lines.append(f"  {c['verdict']}: {' '.join(c[key] for key in CASE)}, {c['ours']} to {c['other']}{ratio}")
    return lines


def report_changes(changes: Sequence[Change], apart: Sequence[str]) -> str:
    counts = {verdict: sum(c.verdict == verdict for c in changes) for verdict in ("worse", "better", "no difference")}
    lines = [f"{change.verdict}: {change.row}: {change.what}" for change in changes]
    machine = [*apart, "another machine: times are not compared"] if apart else []
    total = f"{sum(counts.values())} rows of fdkernels compared: {', '.join(f'{n} {v}' for v, n in counts.items())}"
    return "\n".join([*machine, *lines, f"{total} (older time over newer, beyond both intervals and {TOLERANCE:.0%})"])
