"""The page's first table: for each formula what it gains, how close it comes to the ceiling, and what eager moves."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

from benchmarks.comparisons import Report, case_of
from benchmarks.reader import Reader, Shown
from benchmarks.shown import drawable, mark, ours_to_show, row_of, significant

Spread = tuple[Shown, ...]
"""Worst, median and best; of two values both, of a single one that. Of an even number the lower median."""
NOTES = {
    "slower": "slower",
    "no difference": "no difference",
    "ours wrong": "ours wrong",
    "other wrong": "baseline wrong",
}


class Against(NamedTuple):
    spread: Spread
    worst: str
    """The verdict of the worst."""
    notes: list[tuple[str, Shown, str]]
    """Of what is not faster: what, how often, and in words."""


class Line(NamedTuple):
    formula: Shown
    ours: Shown | None
    eager: Against
    compiled: Against
    ceiling: Spread
    moved: Spread


def lines(reader: Reader) -> list[Line]:
    report = reader.report
    variants = ours_to_show(report)
    cases: dict[tuple[str, ...], list[int]] = {}
    for i, c in enumerate(report["comparisons"]):
        if c["ours"] in variants:
            cases.setdefault((c["op"], c["formula"], c["ours"]), []).append(i)

    def line(here: list[int]) -> Line:
        first = f"comparisons/{here[0]}"
        modes = {i: mark(reader.row(report["comparisons"][i], "other") | {"wrong": False}) for i in here}
        eager = [i for i in here if modes[i] == "eager"]
        ours = sorted({row_of(report, report["comparisons"][i], "ours") for i in here})
        right = [i for i in ours if not report["rows"][i]["wrong"]]
        others = {i: row_of(report, report["comparisons"][i], "other") for i in eager}
        return Line(
            reader.shown(f"{first}/formula"),
            reader.shown(f"{first}/ours") if len(variants) > 1 else None,
            against(reader, eager),
            against(reader, better(report, [i for i in here if modes[i] in ("compile", "max-autotune")])),
            spread(right, lambda i: report["rows"][i]["percent_of_ceiling"],
                   lambda i: reader.shown(f"rows/{i}/percent_of_ceiling", significant)),
            spread(eager, lambda i: reader.ratio(*bytes_of(report, i, others[i])),
                   lambda i: reader.quotient(*bytes_of(report, i, others[i]), significant)),
        )  # fmt: skip

    return [line(here) for here in cases.values()]


def bytes_of(report: Report, comparison: int, other: int) -> tuple[str, str]:
    ours = row_of(report, report["comparisons"][comparison], "ours")
    return f"rows/{other}/counted_bytes", f"rows/{ours}/counted_bytes"


def better(report: Report, among: Iterable[int]) -> list[int]:
    """Of each case the comparison with the fastest baseline; one that is wrong only where none is right."""
    found: dict[tuple[str, ...], list[int]] = {}
    for i in among:
        found.setdefault(case_of(report["comparisons"][i]), []).append(i)

    def slowness(i: int) -> tuple[bool, float]:
        c = report["comparisons"][i]
        return not drawable(c), c["ratio"] or 0.0

    return [min(here, key=slowness) for here in found.values()]


def against(reader: Reader, among: Sequence[int]) -> Against:
    comparisons = reader.report["comparisons"]
    right = [i for i in among if drawable(comparisons[i])]
    found = spread(
        right, lambda i: comparisons[i]["ratio"], lambda i: reader.shown(f"comparisons/{i}/ratio", significant)
    )
    worst = min(right, key=lambda i: comparisons[i]["ratio"], default=None)
    notes = [(name, reader.count(name, among), text) for name, text in NOTES.items()]
    verdict = "" if worst is None else comparisons[worst]["verdict"]
    return Against(found, verdict, [note for note in notes if note[1].text != "0"])


def spread(among: Iterable[int], value: Callable[[int], float | None], shown: Callable[[int], Shown]) -> Spread:
    ordered = sorted((number, i) for i in among if (number := value(i)) is not None)
    places = sorted({0, (len(ordered) - 1) // 2, len(ordered) - 1}) if ordered else []
    return tuple(shown(ordered[place][1]) for place in places)
