"""Verdicts: our rows against the peers' of the same run, and a run against an older one (`--compare`)."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Literal, NamedTuple

from benchmarks.cases.setting import why_no_measurement
from benchmarks.cases.shapes import dimensions
from benchmarks.report.reading import CASE, KEY, TIME, Report, Row, case_of, numbers

SAME_MACHINE = ("kind", "device", "threads")
# Where both reports have them: a virtual machine's processor has a name that fits many.
SAME_IF_KNOWN = ("cores", "cpu_cache_mib")
NAMED = ("torch", "triton", "driver", "cuda", "compile_modes")
# How much an error or a size may grow before it counts; they do not vary as times do. Below the floor an error is that
# of a few roundings in float32, which another processor may do otherwise.
ERROR_GROWTH, ERROR_FLOOR, SIZE_GROWTH = 1.5, 2e-7, 1.01
# What is compared of times, where both rows have it.
TIMES = {
    "": TIME,
    "plain calls ": ("wall_us", "wall_low_us", "wall_high_us"),
    "host's part of a call ": ("call_us", "call_low_us", "call_high_us"),
}

# Which times of two reports can be compared: a busy CPU does not slow a graph's replay on a GPU.
Which = Literal["all", "graphs", "none"]


def compared(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """Each of our rows against each of the peers' at its case.

    `ratio` is how many times faster ours is, from medians; its interval is that of the extremes of both intervals.
    Where these overlap there is "no difference"; where one of the two is wrong there is no ratio.
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
    # A graph's replay against plain calls would flatter ours: then plain calls are compared with plain calls.
    alike = ours["timed_by"] == other["timed_by"]
    keys = TIMES["" if alike else "plain calls "]
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
    what: str
    worse: bool

    def __str__(self) -> str:
        return f"{'worse ' if self.worse else 'better'} {self.row}: {self.what}"


class Verdict(NamedTuple):
    notes: list[str]
    changes: list[Change]
    compared: int
    times_compared: bool

    @property
    def regressions(self) -> list[Change]:
        return [change for change in self.changes if change.worse]


def changed(old: Report, new: Report, tolerance: float) -> Verdict:
    """What changed in our rows, beyond the noise: intervals apart by more than a part `tolerance` of the older one.

    Times count where both ran on the same device with as many threads, and no other work beside them; launches, memory
    and errors on the same kind of device. Rightness counts always, and so does a row that the newer run has lost though
    it ran its case.
    """
    same_kind = old["setting"].get("kind") == new["setting"].get("kind")
    which, notes = comparable(old["setting"], new["setting"])
    before, after = keyed(old["rows"]), keyed(new["rows"])
    shared = [key for key in after if key in before]
    tried = {(*case_of(row), dimensions(row["shape"])) for row in new["rows"]}
    name = {key: ", ".join(map(str, key)) for key in (*before, *after)}
    gone = {key: (*key[: len(CASE)], key[-1]) in tried for key in before if key not in after}
    changes = [Change(name[key], "no longer there", True) for key, lost in gone.items() if lost]
    notes += [f"not in this run: {name[key]}" for key, lost in gone.items() if not lost]
    notes += [f"new: {name[key]}" for key in after if key not in before]
    for key in shared:
        found = differences(before[key], after[key], tolerance, which, same_kind)
        changes += [Change(name[key], what, worse) for what, worse in found]
    if not shared:
        notes.append("the two have no row in common")
    times_compared = any(True for key in shared for _ in times_of(before[key], after[key], which))
    return Verdict(notes, changes, len(shared), times_compared)


def comparable(old: Report, new: Report) -> tuple[Which, list[str]]:
    """Which times of two settings can be compared, and what to say of that."""

    def differ(keys: Iterable[str], if_known: bool = False) -> list[str]:
        values = {key: (old.get(key), new.get(key)) for key in keys}
        return [key for key, (a, b) in values.items() if a != b and not (if_known and None in (a, b))]

    apart = differ(SAME_MACHINE) + differ(SAME_IF_KNOWN, if_known=True)
    notes = [f"{key}: {old.get(key)} before, {new.get(key)} now" for key in (*apart, *differ(NAMED))]
    if apart:
        return "none", [*notes, "another machine: times are not compared"]
    unfit = {"older": why_no_measurement(old), "newer": why_no_measurement(new)}
    busy = [f"in the {which} run {why}" for which, why in unfit.items() if why]
    if not busy:
        return "all", notes
    what = "times, except for those of CUDA graphs," if new.get("kind") == "cuda" else "times"
    return "graphs", [*notes, f"{what} are not compared: {'; '.join(busy)}. Compare two runs on a machine at rest"]


def keyed(rows: Iterable[Row]) -> dict[tuple[Any, ...], Row]:
    """Our rows, by what they measure."""
    return {(*(row[key] for key in KEY), dimensions(row["shape"])): row for row in rows if row["ours"]}


def differences(old: Row, new: Row, tolerance: float, which: Which, same_kind: bool) -> Iterable[tuple[str, bool]]:
    """(in words, whether it is for the worse) of each difference that is beyond the noise."""
    before: Any
    after: Any
    if new["wrong"] and not old["wrong"]:
        yield f"wrong now: {new.get('wrong_because')}", True
        return
    if same_kind:
        before, after = (row.get("gradient_error") for row in (old, new))
        if numbers(before, after) and after > max(ERROR_FLOOR, ERROR_GROWTH * before):
            yield f"error {before:.1e} before, {after:.1e} now", True
        for name in ("launches", "syncs", "extra_bytes"):
            before, after = (row.get(name) for row in (old, new))
            allowed = SIZE_GROWTH if name == "extra_bytes" else 1
            if numbers(before, after) and (after > allowed * before or allowed * after < before):
                yield f"{name} {before:,} before, {after:,} now", after > before
    if old["timed_by"] == "graph" and new["timed_by"] == "wall":
        yield "no longer captured in a CUDA graph", True
    for what, (was, was_low, was_high, now, low, high) in times_of(old, new, which):
        worse, better = low > was_high * (1 + tolerance), high * (1 + tolerance) < was_low
        if worse or better:
            text = f"{was:.4g} µs ({was_low:.4g} to {was_high:.4g}) before, {now:.4g} ({low:.4g} to {high:.4g}) now"
            yield f"{what}{text}, {100 * (now / was - 1):+.0f} %", worse


def times_of(old: Row, new: Row, which: Which) -> Iterable[tuple[str, list[float]]]:
    """(which time, median, low, high before and now) of those that both have and that can be compared."""
    timed_by = {old["timed_by"], new["timed_by"]}
    for what, keys in TIMES.items():
        times: list[Any] = [row.get(key) for row in (old, new) for key in keys]
        fits = which == "all" or (which == "graphs" and not what and timed_by == {"graph"})
        if fits and (what or len(timed_by) == 1) and numbers(*times):
            yield what, times
