"""Verdicts: our rows against the peers' of the same run, and a run against an older one (`--compare`)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from benchmarks.cases.shapes import dimensions
from benchmarks.report.reading import CASE, TIME, Report, Row, case_of

# Compared if both reports have them. The device's name alone does not tell virtual machines apart.
SAME_MACHINE = ("kind", "device", "threads", "cores", "cpu_cache_mib")
TOLERANCE = 0.15  # part of a time by which two processes on one machine may differ beyond their intervals
PLAIN_CALLS = ("wall_us", "wall_low_us", "wall_high_us")


def compared(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """Compare each of our rows with each of the peers' rows of the same case.

    `ratio` is how many times faster ours is, by the medians; its interval is made of the ends of both rows' intervals.
    If those overlap, the verdict is "no difference"; if one of the two rows is wrong, there is no ratio.
    """
    found = []
    for ours in (row for row in rows if row["ours"]):
        for other in rows:
            if not other["ours"] and case_of(other) == case_of(ours):
                names = {**dict(zip(CASE, case_of(ours), strict=True)), "ours": ours["variant"]}
                found.append({**names, "other": other["variant"], **judged(ours, other)})
    return found


def judged(ours: Row, other: Row) -> dict[str, Any]:
    if ours["wrong"] or other["wrong"]:
        return {"ratio": None, "low": None, "high": None, "verdict": "wrong", "timed_by": None}
    # Our graph's replay against a peer's plain calls would flatter ours: then plain calls are compared on both sides.
    alike = ours["timed_by"] == other["timed_by"]
    keys = TIME if alike else PLAIN_CALLS
    median, low, high = (ours[key] for key in keys)
    other_median, other_low, other_high = (other[key] for key in keys)
    return {
        "ratio": other_median / median,
        "low": other_low / high,
        "high": other_high / low,
        "verdict": "faster" if high < other_low else "slower" if low > other_high else "no difference",
        "timed_by": ours["timed_by"] if alike else "wall",
    }


# ---- a run against an older one


class Change(NamedTuple):
    row: str
    verdict: str  # worse, better, no difference, or not compared
    what: str
    ratio: float | None = None  # the older time over the newer


def apart(old: Report, new: Report) -> list[str]:
    """The differences that show that two reports are of different machines, whose times cannot be compared."""
    values = {key: (old["setting"].get(key), new["setting"].get(key)) for key in SAME_MACHINE}
    return [f"{key}: {a} before, {b} now" for key, (a, b) in values.items() if a != b and None not in (a, b)]


def changed(old: Report, new: Report) -> list[Change]:
    """The change of each of our rows. A row is worse if it is wrong now, or is missing although the newer run has its
    case; on the same machine also if its time is longer, with intervals apart by more than TOLERANCE."""
    before, after = ({key_of(row): row for row in each["rows"] if row["ours"]} for each in (old, new))
    tried, same_machine = {key_of(row)[:-1] for row in new["rows"]}, not apart(old, new)
    found = []
    for key, row in before.items():
        name = ", ".join(key)
        if key not in after:
            lost = key[:-1] in tried
            verdict, what = ("worse", "no longer there") if lost else ("not compared", "not in this run")
            found.append(Change(name, verdict, what))
        elif after[key]["wrong"] or row["wrong"]:
            what = "wrong now" if after[key]["wrong"] else "wrong before"
            found.append(Change(name, "not compared" if row["wrong"] else "worse", what))
        elif same_machine:
            ratio, low, high = (judged(after[key], row)[each] for each in ("ratio", "low", "high"))
            verdict = "better" if low > 1 + TOLERANCE else "worse" if high * (1 + TOLERANCE) < 1 else "no difference"
            found.append(Change(name, verdict, f"{ratio:.2f} × ({low:.2f} to {high:.2f})", ratio))
    return found + [Change(", ".join(key), "not compared", "new") for key in after if key not in before]


def key_of(row: Row) -> tuple[str, ...]:
    return (*(row[key] for key in CASE), dimensions(row["shape"]), row["variant"])
