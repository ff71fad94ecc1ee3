"""A benchmark's report as one self-contained HTML page, for desk and phone, light or dark; it reads without scripts.

The report is embedded as JSON, and whatever the page shows of it names its source in `data-from`: a place
(`rows/3/time_us`), a quotient (`rows/3/time_us over rows/3/predicted_us`), a count (`count {"verdict": "slower"}`, over
the comparisons), or several of these, separated by " | ".
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import jinja2

from benchmarks.figures import (
    CLOSE,
    MARKS,
    VERDICTS,
    Form,
    LogScale,
    Report,
    checked,
    dimensions,
    drawable,
    duration,
    error,
    mark,
    off,
    percent,
    plain,
    rate,
    row_of,
    short,
    significant,
    size,
    times,
)

FARTHEST = 6
CEILING: dict[str, Form] = {"name": plain, "gb_per_s": rate, "low": rate, "high": rate}


def write(report: Report, path: Path) -> None:
    path.write_text(render(report), encoding="utf-8")


def render(report: Report) -> str:
    """The page. Raises ValueError where the report is not of this schema."""
    report = finite(checked(report))
    reader = Reader(report)
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True)
    template = environment.from_string(Path(__file__).with_name("page.html.in").read_text(encoding="utf-8"))
    return template.render(
        **BOX, zip=zip, setting=report["setting"], shown=reader.shown,
        environment=[(name, reader.shown(f"setting/{name}", form)) for name, form in settings(report["setting"])],
        ceiling=[reader.shown(f"ceiling/{key}", form) for key, form in CEILING.items()],
        summaries=summaries(reader),
        speedups=Speedups(reader),
        roofline=roofline(reader),
        predictions=predictions(reader),
        farthest=farthest(reader),
        columns=columns(reader),
        table=table(reader),
        skipped=[
            [reader.shown(f"skipped/{i}/{key}") for key in ("what", "why")]
            for i in range(len(report.get("skipped", ())))
        ],
        embedded=json.dumps(report, ensure_ascii=False, allow_nan=False).replace("<", "\\u003c"),
    )  # fmt: skip


def finite(value: Any) -> Any:
    """With null for NaN and infinities, which JSON does not have."""
    if isinstance(value, dict):
        return {key: finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


# Text with its source.


class Shown(NamedTuple):
    text: str
    source: str


@dataclass(frozen=True)
class Reader:
    report: Report

    def value(self, place: str) -> Any:
        found: Any = self.report
        for key in place.split("/"):
            found = found[int(key)] if isinstance(found, list) else found.get(key)
        return found

    def shown(self, place: str, form: Form = plain) -> Shown:
        value = self.value(place)
        return Shown("–" if value is None else form(value), place)

    def quotient(self, over: str, under: str, form: Form = times) -> Shown:
        a, b = self.value(over), self.value(under)
        return Shown(form(a / b) if a is not None and b else "–", f"{over} over {under}")

    def count(self, **wanted: str) -> Shown:
        number = sum(all(c[key] == value for key, value in wanted.items()) for c in self.report["comparisons"])
        return Shown(str(number), f"count {json.dumps(wanted, ensure_ascii=False)}")


def settings(setting: Report) -> Iterable[tuple[str, Form]]:
    """Places within the setting, those within nested tables too."""
    for name, value in setting.items():
        if isinstance(value, dict):
            yield from ((f"{name}/{inner}", form) for inner, form in settings(value))
        else:
            yield name, plain


# The table.


class Column(NamedTuple):
    title: str
    key: str
    form: Form
    numeric: bool
    meaning: str
    interval: tuple[str, str] | None = None


COLUMNS = (
    Column("shape", "shape_name", plain, False, "where in practice it occurs"),
    Column("size", "shape", dimensions, False, "batch first"),
    Column("dtype", "dtype", plain, False, "of student, teacher and fake"),
    Column("formula", "formula", plain, False, "whose loss is computed"),
    Column("variant", "variant", plain, False, "what computes it; ours are in bold"),
    Column("time", "time_us", duration, True, "median and its interval", ("low_us", "high_us")),
    Column("timed by", "timed_by", plain, False, "plain calls, replays of a CUDA graph, or the wall clock"),
    Column("wall time", "wall_us", duration, True, "of plain calls, to the GPU's end", ("wall_low_us", "wall_high_us")),
    Column("CPU time", "call_us", duration, True, "until a call returns, the GPU still at work"),
    Column("kernel time", "kernel_us", duration, True, "sum of its kernels' times under the profiler"),
    Column("bandwidth", "gb_per_s", rate, True, "fewest bytes over time"),
    Column("of ceiling", "percent_of_ceiling", percent, True, "that, of the ceiling measured beside it"),
    Column("ceiling", "ceiling_gb_per_s", rate, True, "measured beside it, on a CPU at this size"),
    Column("predicted", "predicted_us", duration, True, "predicted bytes over that ceiling"),
    Column("error", "gradient_error", error, True, "of the gradient (or weight), relative, against double precision"),
    Column("fewest bytes", "min_bytes", size, True, "each input read once, the gradient written once"),
    Column("counted bytes", "counted_bytes", size, True, "what its ops really read and write"),
    Column("extra memory", "extra_bytes", size, True, "at its peak, beside the inputs"),
    Column("launches", "launches", plain, True, "kernels, copies and fills; on a CPU ops that touch memory"),
    Column("syncs", "syncs", plain, True, "how often the host waits for the device"),
    Column("op", "op", plain, False, "the function called"),
    Column("input sets", "input_sets", plain, True, "in rotation; a single one stays in cache"),
    Column("rounds", "rounds", plain, True, "of interleaved timing"),
)


class Cell(NamedTuple):
    shown: tuple[Shown, ...]
    value: Any


class Line(NamedTuple):
    row: int
    ours: bool
    wrong: Shown | None
    cells: list[Cell]


def columns(reader: Reader) -> list[Column]:
    """Those in which there is something."""
    return [column for column in COLUMNS if any(row.get(column.key) is not None for row in reader.report["rows"])]


def table(reader: Reader) -> list[Line]:
    def cell(i: int, column: Column) -> Cell:
        shown = [reader.shown(f"rows/{i}/{column.key}", column.form)]
        shown += [reader.shown(f"rows/{i}/{key}", column.form) for key in column.interval or ()]
        return Cell(tuple(shown), reader.value(f"rows/{i}/{column.key}") if column.numeric else shown[0].text)

    return [
        Line(i, row["ours"], why_wrong(reader, i), [cell(i, column) for column in columns(reader)])
        for i, row in enumerate(reader.report["rows"])
    ]


def why_wrong(reader: Reader, row: int) -> Shown | None:
    return reader.shown(f"rows/{row}/wrong_because") if reader.report["rows"][row]["wrong"] else None


# Speed-ups.


class Summary(NamedTuple):
    ours: Shown
    other: Shown
    least: Shown | None
    most: Shown | None
    verdicts: dict[str, Shown]


def summaries(reader: Reader) -> list[Summary]:
    """For each pair of variants the range of ratios, and how often which verdict was given."""
    found = []
    comparisons = list(enumerate(reader.report["comparisons"]))
    for ours, other in dict.fromkeys((c["ours"], c["other"]) for _, c in comparisons):
        here = [i for i, c in comparisons if (c["ours"], c["other"]) == (ours, other)]
        right = [i for i in here if drawable(comparisons[i][1])]
        right.sort(key=lambda i: comparisons[i][1]["ratio"])
        counts = {verdict: reader.count(ours=ours, other=other, verdict=verdict) for verdict in VERDICTS}
        found.append(
            Summary(
                reader.shown(f"comparisons/{here[0]}/ours"), reader.shown(f"comparisons/{here[0]}/other"),
                reader.shown(f"comparisons/{right[0]}/ratio", significant) if right else None,
                reader.shown(f"comparisons/{right[-1]}/ratio", times) if right else None,
                {verdict: count for verdict, count in counts.items() if count.text != "0"},
            )
        )  # fmt: skip
    return found


class Bar(NamedTuple):
    comparison: int
    other: Shown
    verdict: str
    ratio: Shown
    interval: tuple[Shown, Shown]
    wrong: Shown | None
    start: float
    """Of bar and whisker, start and length in percent of the scale."""
    length: float
    whisker: tuple[float, float]


class Speedups:
    """Bars on one logarithmic scale, in percent of its width, by op and formula, then by shape, dtype and variant."""

    def __init__(self, reader: Reader) -> None:
        self.reader = reader
        comparisons = reader.report["comparisons"]
        ends = [c[key] for c in comparisons if drawable(c) for key in ("low", "high")]
        self.scale = LogScale.around([*ends, 0.8, 1.6], 0.0, 100.0, room=1.05)
        self.ticks = [(self.scale(tick), f"{tick:g}") for tick in self.scale.powers_of_two()]
        self.one = self.scale(1.0)
        self.groups: dict[tuple[Shown, Shown], dict[tuple[str, ...], tuple[tuple[Shown, ...], list[Bar]]]] = {}
        group_of, block_of = ("op", "formula"), ("shape_name", "dtype", "ours")
        names: dict[tuple[str, ...], tuple[Shown, Shown]] = {}
        for i, c in enumerate(comparisons):
            place = f"comparisons/{i}"
            title = names.setdefault(
                tuple(c[key] for key in group_of), (reader.shown(f"{place}/op"), reader.shown(f"{place}/formula"))
            )
            size_of = reader.shown(f"rows/{row_of(reader.report, c, 'ours')}/shape", dimensions)
            name, dtype, ours = (reader.shown(f"{place}/{key}") for key in block_of)
            blocks = self.groups.setdefault(title, {})
            blocks.setdefault(tuple(c[key] for key in block_of), ((name, size_of, dtype, ours), []))[1].append(
                self.bar(i, c)
            )

    def bar(self, i: int, c: Report) -> Bar:
        place = f"comparisons/{i}"
        wrong = None
        start = length = 0.0
        whisker = (0.0, 0.0)
        if c["verdict"] == "wrong":
            rows = [row_of(self.reader.report, c, which) for which in ("other", "ours")]
            reasons = [reason for row in rows if (reason := why_wrong(self.reader, row))]
            wrong = reasons[0] if reasons else Shown("", "")
        elif drawable(c):
            end, low, high = (self.scale(c[key]) for key in ("ratio", "low", "high"))
            start, length = min(self.one, end), abs(end - self.one)
            whisker = (low, high - low)
        low_text, high_text = (self.reader.shown(f"{place}/{key}", significant) for key in ("low", "high"))
        return Bar(
            i, self.reader.shown(f"{place}/other"), c["verdict"], self.reader.shown(f"{place}/ratio", times),
            (low_text, high_text), wrong, start, length, whisker,
        )  # fmt: skip


# The two plots.


class Point(NamedTuple):
    row: int
    mark: str
    x: float
    y: float
    low: float
    high: float
    title: tuple[Shown, ...]


class Plot(NamedTuple):
    """In the units of BOX; y grows downwards."""

    x_ticks: list[tuple[float, str]]
    y_ticks: list[tuple[float, str]]
    line: list[tuple[float, float]]
    band: list[tuple[float, float]]
    points: list[Point]
    marks: dict[str, str]


BOX = {"width": 480, "height": 360, "left": 74, "right": 464, "top": 34, "bottom": 304}
X_ENDS, Y_ENDS = (BOX["left"], BOX["right"]), (BOX["bottom"], BOX["top"])


def point(reader: Reader, i: int, x: float, scale: LogScale, more: tuple[Shown, ...] = ()) -> Point:
    row = reader.report["rows"][i]
    y, low, high = (scale(row[key] or row["time_us"]) for key in ("time_us", "low_us", "high_us"))
    names = ("shape_name", "dtype", "formula", "variant")
    title = [*(reader.shown(f"rows/{i}/{key}") for key in names), reader.shown(f"rows/{i}/time_us", duration), *more]
    return Point(i, mark(row), x, y, low, high, tuple(title))


def times_of(rows: list[tuple[int, Report]]) -> list[float]:
    return [row[key] for _, row in rows for key in ("time_us", "low_us", "high_us") if row[key]]


def roofline(reader: Reader) -> Plot | None:
    """Time against fewest bytes; the line is bytes / ceiling, which nothing that comes from memory can be below."""
    rows = [(i, row) for i, row in enumerate(reader.report["rows"]) if row["time_us"] and row["min_bytes"]]
    if not rows:
        return None
    x = LogScale.around([row["min_bytes"] for _, row in rows], *X_ENDS)
    ceiling, ends = reader.report["ceiling"], (x.low, x.high)
    limits = {key: [end / ceiling[key] / 1e3 for end in ends] for key in ("gb_per_s", "low", "high") if ceiling[key]}
    y = LogScale.around([*times_of(rows), *limits.get("gb_per_s", ())], *Y_ENDS)

    def drawn(key: str) -> list[tuple[float, float]]:
        return [(x(end), y(limit)) for end, limit in zip(ends, limits.get(key, ()), strict=False)]

    points = [point(reader, i, x(row["min_bytes"]), y) for i, row in rows]
    return plot(x, y, size, drawn("gb_per_s"), drawn("high") + drawn("low")[::-1], points)


def predictions(reader: Reader) -> Plot | None:
    """Measured against predicted time; the line is where both are the same, in a band of what counts as met."""
    rows = [(i, row) for i, row in enumerate(reader.report["rows"]) if row["predicted_us"] and row["time_us"]]
    if not rows:
        return None
    x = LogScale.around([row["predicted_us"] for _, row in rows], *X_ENDS)
    y = LogScale.around(times_of(rows), *Y_ENDS)

    def along(factor: float) -> list[tuple[float, float]]:
        return [(x(end), y(end * factor)) for end in (x.low, x.high)]

    def said(i: int) -> Shown:
        return reader.shown(f"rows/{i}/predicted_us", lambda us: f"predicted {duration(us)}")

    points = [point(reader, i, x(row["predicted_us"]), y, (said(i),)) for i, row in rows]
    return plot(x, y, duration, along(1), along(CLOSE) + along(1 / CLOSE)[::-1], points)


def plot(
    x: LogScale,
    y: LogScale,
    x_form: Form,
    line: list[tuple[float, float]],
    band: list[tuple[float, float]],
    points: list[Point],
) -> Plot:
    used = {point.mark for point in points}
    x_ticks = [(x(tick), short(x_form(tick))) for tick in x.decades()]
    y_ticks = [(y(tick), short(duration(tick))) for tick in y.decades()]
    return Plot(x_ticks, y_ticks, line, band, points, {key: text for key, text in MARKS.items() if key in used})


def farthest(reader: Reader) -> list[list[Shown]]:
    """Our rows whose prediction is off most: names, measured over predicted, measured, predicted."""
    rows = [(off(row), i) for i, row in enumerate(reader.report["rows"]) if row["ours"] and off(row)]
    names = ("shape_name", "dtype", "formula", "variant")
    return [
        [
            *(reader.shown(f"rows/{i}/{key}") for key in names),
            reader.quotient(f"rows/{i}/time_us", f"rows/{i}/predicted_us"),
            reader.shown(f"rows/{i}/time_us", duration),
            reader.shown(f"rows/{i}/predicted_us", duration),
        ]
        for _, i in sorted(rows, reverse=True)[:FARTHEST]
    ]
