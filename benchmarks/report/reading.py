"""Reports as JSON: what one has to hold, and which rows belong together."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

SCHEMA = 1
CASE = ("op", "shape_name", "dtype", "formula")
KEY = (*CASE, "variant")
PARTS = {"setting": dict, "ceiling": dict, "rows": list, "comparisons": list, "skipped": list}
TIME = ("time_us", "low_us", "high_us")
NEEDED = (*KEY, "shape", "ours", "wrong", "timed_by", *TIME)

Row = dict[str, Any]
Report = dict[str, Any]


def load(path: Path) -> Report:
    """Load a report. Raises ValueError if the file is none."""
    try:
        report = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(f"{path}: {error}") from None
    found = report.get("schema") if isinstance(report, dict) else None
    if found != SCHEMA:
        raise ValueError(f"{path}: expected a report of schema {SCHEMA}, got {found!r}")
    for key, kind in PARTS.items():
        if not isinstance(report.get(key), kind):
            raise ValueError(f"{path}: {key}: expected a {kind.__name__}, got {type(report.get(key)).__name__}")
    for i, row in enumerate(report["rows"]):
        missing = [key for key in NEEDED if not isinstance(row, dict) or key not in row]
        if missing:
            raise ValueError(f"{path}: rows: row {i} has no {missing[0]!r}")
    return report


def case_of(row: Mapping[str, Any]) -> tuple[Any, ...]:
    return (*(row[key] for key in CASE),)


def row_of(report: Report, comparison: Row, which: str) -> int:
    """The row of a comparison's variant: `which` is "ours" or "other"."""
    for i, row in enumerate(report["rows"]):
        if row["variant"] == comparison[which] and case_of(row) == case_of(comparison):
            return i
    raise ValueError(f"comparisons: no row of {which} {comparison[which]!r} for {comparison}")


def ours_to_show(report: Report) -> list[str]:
    """Our variants, without the reference unless it is the only one."""
    found = {row["variant"]: row["backend"] for row in report["rows"] if row["ours"]}
    return [name for name, backend in found.items() if backend != "reference"] or list(found)


def compared_rows(report: Report) -> dict[int, dict[str, int]]:
    """Our rows that are compared: {number of the row: {mode of the peer: number of the comparison}}."""
    found: dict[int, dict[str, int]] = {}
    variants = ours_to_show(report)
    for number, c in enumerate(report["comparisons"]):
        if c["ours"] in variants:
            mode = report["rows"][row_of(report, c, "other")]["mode"]
            found.setdefault(row_of(report, c, "ours"), {})[mode] = number
    return found
