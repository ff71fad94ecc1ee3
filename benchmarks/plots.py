"""The page's two plots: time against bytes, and measured against predicted time."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from benchmarks.comparisons import Report
from benchmarks.reader import Reader, Shown
from benchmarks.shown import (
    CLOSE,
    MARKS,
    Form,
    LogScale,
    duration,
    launch_bound,
    mark,
    off,
    rate,
    short,
    size,
    variant,
)

FARTHEST = 6
BOX = {"width": 480, "height": 400, "left": 74, "right": 464, "top": 88, "bottom": 344}
X_ENDS, Y_ENDS = (BOX["left"], BOX["right"]), (BOX["bottom"], BOX["top"])
LABEL_ROOM = 19  # between two labels, which are slanted, in the units of BOX
NAMES: dict[str, Form | None] = {"shape_name": None, "dtype": None, "formula": None, "variant": variant}

Numbered = list[tuple[int, Report]]


class Point(NamedTuple):
    row: int
    mark: str
    by_calls: bool
    """On a GPU, where others are replays of a graph."""
    x: float
    y: float
    low: float
    high: float
    title: tuple[Shown, ...]


class Limit(NamedTuple):
    row: int
    x: float
    y: float
    title: tuple[Shown, ...]


class Label(NamedTuple):
    x: float
    texts: tuple[Shown, ...]


class Plot(NamedTuple):
    """In the units of BOX; y grows downwards."""

    x_ticks: list[tuple[float, str]]
    y_ticks: list[tuple[float, str]]
    line: list[tuple[float, float]]
    band: list[tuple[float, float]]
    points: list[Point]
    marks: dict[str, str]
    limits: list[Limit]
    labels: list[Label]


def named(reader: Reader, i: int, *keys: str) -> tuple[Shown, ...]:
    forms = {key: form for key, form in NAMES.items() if key in keys or not keys}
    return tuple(reader.shown(f"rows/{i}/{key}", form or str) for key, form in forms.items())


def point(reader: Reader, i: int, x: float, scale: LogScale, more: tuple[Shown, ...] = ()) -> Point:
    row = reader.report["rows"][i]
    y, low, high = (scale(row[key] or row["time_us"]) for key in ("time_us", "low_us", "high_us"))
    title = (*named(reader, i), reader.shown(f"rows/{i}/time_us", duration), *more)
    return Point(i, mark(row), row["timed_by"] == "wall", x, y, low, high, title)


def times_of(rows: Numbered) -> list[float]:
    return [row[key] for _, row in rows for key in ("time_us", "low_us", "high_us") if row[key]]


def roofline(reader: Reader) -> Plot | None:
    """Time against fewest bytes, the line of the report's ceiling, and the limit of each case by its own."""
    rows = [(i, row) for i, row in enumerate(reader.report["rows"]) if row["time_us"] and not launch_bound(row)]
    if not rows:
        return None
    x = LogScale.around([row["min_bytes"] for _, row in rows], *X_ENDS)
    ceiling, ends = reader.report["ceiling"], (x.low, x.high)
    line = {key: [end / ceiling[key] / 1e3 for end in ends] for key in ("gb_per_s", "low", "high") if ceiling[key]}
    # Once a case: its rows have one limit.
    limits = {(row["min_bytes"], row["min_bytes"] / row["ceiling_gb_per_s"] / 1e3): i for i, row in reversed(rows)}
    y = LogScale.around([*times_of(rows), *line.get("gb_per_s", ()), *(us for _, us in limits)], *Y_ENDS)

    def drawn(key: str) -> list[tuple[float, float]]:
        return [(x(end), y(limit)) for end, limit in zip(ends, line.get(key, ()), strict=False)]

    points = [point(reader, i, x(row["min_bytes"]), y) for i, row in rows]
    dashes = [
        Limit(i, x(moved), y(us), (*named(reader, i, "shape_name", "dtype", "formula"),
                                   reader.shown(f"rows/{i}/ceiling_gb_per_s", rate)))
        for (moved, us), i in limits.items()
    ]  # fmt: skip
    return plot(x, y, size, drawn("gb_per_s"), drawn("high") + drawn("low")[::-1], points, dashes)


def predictions(reader: Reader) -> Plot | None:
    """Measured against predicted time; the line is where both are the same, in a band of what counts as met."""
    rows = [(i, row) for i, row in enumerate(reader.report["rows"]) if row["predicted_us"] and row["time_us"]]
    rows = [(i, row) for i, row in rows if not launch_bound(row)]
    if not rows:
        return None
    # One range, so that the line is in the picture.
    values = [*times_of(rows), *(row["predicted_us"] for _, row in rows)]
    x, y = LogScale.around(values, *X_ENDS), LogScale.around(values, *Y_ENDS)
    ends = (x.low, x.high)

    def along(factor: float) -> list[tuple[float, float]]:
        return [(x(end), y(end * factor)) for end in ends]

    points = [
        point(reader, i, x(row["predicted_us"]), y, (reader.shown(f"rows/{i}/predicted_us", predicted),))
        for i, row in rows
    ]
    return plot(x, y, duration, along(1), along(CLOSE) + along(1 / CLOSE)[::-1], points)


def predicted(us: float) -> str:
    return f"predicted {duration(us)}"


def plot(
    x: LogScale,
    y: LogScale,
    x_form: Form,
    line: list[tuple[float, float]],
    band: list[tuple[float, float]],
    points: list[Point],
    limits: Iterable[Limit] = (),
) -> Plot:
    used = {point.mark for point in points}
    x_ticks = [(x(tick), short(x_form(tick))) for tick in x.decades()]
    y_ticks = [(y(tick), short(duration(tick))) for tick in y.decades()]
    marks = {key: found.text for key, found in MARKS.items() if key in used}
    return Plot(x_ticks, y_ticks, line, band, points, marks, list(limits), labels(limits))


def labels(limits: Iterable[Limit]) -> list[Label]:
    """Shape and dtype of the cases, from the left, where there is room."""
    found: list[Label] = []
    for limit in sorted(limits, key=lambda limit: limit.x):
        if not found or limit.x - found[-1].x >= LABEL_ROOM:
            found.append(Label(limit.x, limit.title[:2]))
    return found


def farthest(reader: Reader) -> list[list[Shown]]:
    """Our rows whose prediction fails, worst first: names, measured over predicted, measured, predicted."""
    rows = [
        (off(row), i)
        for i, row in enumerate(reader.report["rows"])
        if row["ours"] and off(row) > CLOSE and mark(row) == "ours" and not launch_bound(row)
    ]
    return [
        [
            *named(reader, i),
            reader.quotient(f"rows/{i}/time_us", f"rows/{i}/predicted_us"),
            reader.shown(f"rows/{i}/time_us", duration),
            reader.shown(f"rows/{i}/predicted_us", duration),
        ]
        for _, i in sorted(rows, reverse=True)[:FARTHEST]
    ]
