"""python -m benchmarks.page REPORT.json PAGE.html: a report as a page, as `python -m benchmarks --html` writes it.

One self-contained file, for desk and phone, light or dark; it reads without scripts.

The report is embedded as JSON, and whatever the page shows of it names its source in `data-from`
(benchmarks/reader.py).
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks.comparisons import CASE, Report, dimensions, load
from benchmarks.glance import lines as glance
from benchmarks.plots import BOX, farthest, predictions, roofline
from benchmarks.reader import Reader, Shown
from benchmarks.shown import (
    COLOURS,
    MARKS,
    VERDICTS,
    Form,
    LogScale,
    commit,
    count,
    day,
    drawable,
    duration,
    error,
    ours_to_show,
    percent,
    plain,
    rate,
    row_of,
    significant,
    size,
    times,
    variant,
    whole,
)

HERE = Path(__file__).parent
CEILING: dict[str, Form] = {"name": plain, "measured_on": plain, "gb_per_s": rate, "low": rate, "high": rate}
CUDA = {"torch": "torch", "cuda": "CUDA", "driver": "driver", "clocks": "clocks"}
# What the header says of the setting, where there is such a thing, by kind of device.
HEADER: dict[str, dict[str, tuple[str, Form]]] = {
    "cpu": {"threads": ("threads", plain), "torch": ("torch", plain)},
    "cuda": {key: (label, plain) for key, label in CUDA.items()},
}
MEASURED: dict[str, tuple[str, Form]] = {"date": ("", day), "commit": ("commit", commit)}
VARIANTS = {
    "native": "fdkernels' kernels in C++ or CUDA",
    "triton": "fdkernels' kernels in Triton",
    "reference": "fdkernels' specification, in plain PyTorch",
    "eager": "the peer's chain, op by op",
    "compile": "that chain under torch.compile, forward and backward together",
    "max-autotune": "the same in mode max-autotune-no-cudagraphs",
}
"""By the last word of a variant's name."""


def write(report: Report, path: Path) -> None:
    path.write_text(render(report), encoding="utf-8")


def render(report: Report) -> str:
    import jinja2  # here, so that the rest works without it

    reader = Reader(report)
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(HERE), autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True
    )
    setting, found = report["setting"], table(reader)
    header = {**HEADER.get(setting.get("kind"), {}), **MEASURED}
    used = {variant(row["variant"]).split()[-1] for row in report["rows"]}
    return environment.get_template("page.html.in").render(
        **BOX, zip=zip, colours=COLOURS, marks=MARKS, reader=reader,
        header=[
            (label, reader.shown(f"setting/{key}", form)) for key, (label, form) in header.items() if setting.get(key)
        ],
        environment=[(reader.name(f"setting/{name}"), reader.shown(f"setting/{name}")) for name in settings(setting)],
        ceiling={key: reader.shown(f"ceiling/{key}", form) for key, form in CEILING.items()},
        glance=glance(reader),
        options=options(reader),
        speedups=Speedups(reader),
        roofline=roofline(reader),
        predictions=predictions(reader),
        farthest=farthest(reader),
        table=found,
        method=[reader.shown(f"method/{i}") for i in range(len(report.get("method", ())))],
        formulas=[
            (reader.key(f"formulas/{name}"), reader.shown(f"formulas/{name}")) for name in report.get("formulas", ())
        ],
        variants={name: meaning for name, meaning in VARIANTS.items() if name in used},
        skipped=[
            [reader.shown(f"skipped/{i}/{key}") for key in ("what", "why")]
            for i in range(len(report.get("skipped", ())))
        ],
        embedded=json.dumps(report, ensure_ascii=False, allow_nan=False).replace("<", "\\u003c"),
    )  # fmt: skip


def settings(setting: Report) -> Iterable[str]:
    """Places within the setting, those within nested tables too."""
    for name, value in setting.items():
        if isinstance(value, dict):
            yield from (f"{name}/{inner}" for inner in settings(value))
        else:
            yield name


def options(reader: Reader) -> list[tuple[str, str, list[tuple[str, Shown]]]]:
    """The filter's selects: title, key, and each value with its text. Those that would hold one value are left out."""
    keys = {"shape": "shape_name", "dtype": "dtype", "formula": "formula", "variant": "variant", "verdict": "verdict"}
    found = []
    for title, key in keys.items():
        where, form = ("comparisons" if key == "verdict" else "rows"), (variant if key == "variant" else plain)
        found.append((title, key, [(value, reader.shown(place, form)) for value, place in reader.distinct(where, key)]))
    return [each for each in found if len(each[2]) > 1]


# Speed-ups.


class Verdict(NamedTuple):
    comparison: int
    name: str
    ratio: Shown
    interval: tuple[Shown, Shown]
    by_calls: bool
    """On a GPU, where others compare replays of a graph."""
    faults: tuple[tuple[Shown | None, Shown], ...]
    """Of a wrong one: whose result is wrong (None: ours), and why."""


def verdict(reader: Reader, i: int) -> Verdict:
    c, place = reader.report["comparisons"][i], f"comparisons/{i}"
    faults = []
    for which in ("ours", "other"):
        row = row_of(reader.report, c, which)
        if reader.report["rows"][row]["wrong"]:
            who = reader.shown(f"{place}/other", variant) if which == "other" else None
            faults.append((who, reader.shown(f"rows/{row}/wrong_because")))
    low, high = (reader.shown(f"{place}/{key}", significant) for key in ("low", "high"))
    ratio = reader.shown(f"{place}/ratio", times)
    return Verdict(i, c["verdict"], ratio, (low, high), c["timed_by"] == "wall", tuple(faults))


class Bar(NamedTuple):
    verdict: Verdict
    other: Shown
    words: str
    start: float
    """Of bar and whisker, start and length in percent of the scale."""
    length: float
    whisker: tuple[float, float]


class Block(NamedTuple):
    name: Shown
    size: Shown
    dtype: Shown
    in_cache: bool
    ours: Shown | None
    bars: list[Bar]


class Speedups:
    """Bars on one logarithmic scale, in percent of its width, by op and formula, then by shape, dtype and variant."""

    def __init__(self, reader: Reader) -> None:
        self.reader = reader
        comparisons = reader.report["comparisons"]
        ends = [c[key] for c in comparisons if drawable(c) for key in ("low", "high")]
        self.scale = LogScale.around([*ends, 0.5, 2], 0.0, 100.0, room=1.05)
        self.ticks = [(self.scale(tick), f"{tick:g}") for tick in self.scale.powers_of_two()]
        self.one = self.scale(1.0)
        self.groups: dict[tuple[str, ...], tuple[tuple[Shown, Shown], dict[tuple[str, ...], Block]]] = {}
        several = len({c["ours"] for c in comparisons}) > 1
        for i, c in enumerate(comparisons):
            op, formula, name, dtype, ours = (
                reader.shown(f"comparisons/{i}/{key}") for key in ("op", "formula", "shape_name", "dtype", "ours")
            )
            _, blocks = self.groups.setdefault((op.text, formula.text), ((op, formula), {}))
            key = (name.text, dtype.text, ours.text)
            if key not in blocks:
                row = row_of(reader.report, c, "ours")
                in_cache = reader.report["rows"][row]["input_sets"] == 1
                sizes = reader.shown(f"rows/{row}/shape", dimensions)
                blocks[key] = Block(name, sizes, dtype, in_cache, ours if several else None, [])
            blocks[key].bars.append(self.bar(i, c))

    def bar(self, i: int, c: Report) -> Bar:
        start = length = 0.0
        whisker = (0.0, 0.0)
        if drawable(c):
            end, low, high = (self.scale(c[key]) for key in ("ratio", "low", "high"))
            start, length = min(self.one, end), abs(end - self.one)
            whisker = (low, high - low)
        found, other = verdict(self.reader, i), self.reader.shown(f"comparisons/{i}/other", variant)
        sizes = dimensions(self.reader.row(c, "ours")["shape"])
        said = "by plain calls" if found.by_calls else ""
        words = (*(c[key] for key in (*CASE, "ours", "other", "verdict")), sizes, other.text, said)
        return Bar(found, other, " ".join(words).lower(), start, length, whisker)


# The table.


class Column(NamedTuple):
    title: str
    key: str
    form: Form
    meaning: str
    interval: tuple[str, str] | None = None
    descending: bool = False
    """Whether it is first sorted from the largest."""
    over: str | None = None
    numeric: bool = True


COLUMNS = (
    Column("of ceiling", "percent_of_ceiling", percent, "bandwidth, of the ceiling in this row", descending=True),
    Column("bandwidth", "gb_per_s", rate, "fewest bytes over time", descending=True),
    Column("ceiling", "ceiling_gb_per_s", rate, "measured beside it, on a CPU on as many bytes", descending=True),
    Column("× fewest bytes", "counted_bytes", times, "counted bytes over the fewest", over="min_bytes"),
    Column("predicted", "predicted_us", duration, "predicted bytes over the ceiling in this row"),
    Column("error", "gradient_error", error, "of the gradient (or weight), relative, against double precision"),
    Column("launches", "launches", whole, "kernels, copies and fills; on a CPU ops that touch memory"),
    Column("syncs", "syncs", count, "how often the host waits for the device"),
    Column("CPU time", "call_us", duration, "until a call returns, the GPU at work", ("call_low_us", "call_high_us")),
    Column("wall time", "wall_us", duration, "of plain calls, to the GPU's end", ("wall_low_us", "wall_high_us")),
    Column("kernel time", "kernel_us", duration, "sum of its kernels' times under the profiler"),
    Column("fewest bytes", "min_bytes", size, "each input read once, the gradient written once", descending=True),
    Column("counted bytes", "counted_bytes", size, "what its ops really read and write", descending=True),
    Column("extra memory", "extra_bytes", size, "at its peak, beside the inputs", descending=True),
    Column("elements", "shape", whole, "of one tensor", descending=True),
    Column("timed by", "timed_by", plain, "calls, a CUDA graph, or wall: calls to the GPU's end", numeric=False),
    Column("graphs", "graphs", whole, "that torch.compile made for all sets of inputs, forward alone"),
    Column("input sets", "input_sets", whole, "in rotation; a single one stays in cache"),
    Column("rounds", "rounds", whole, "of interleaved timing"),
    Column("op", "op", plain, "the function called", numeric=False),
)  # fmt: skip
TIME = Column("time", "time_us", duration, "median and its interval", ("low_us", "high_us"))


class Cell(NamedTuple):
    shown: Shown | None
    value: Any
    interval: tuple[Shown, ...] = ()
    verdict: Verdict | None = None


class Line(NamedTuple):
    row: int
    ours: bool
    wrong: Shown | None
    variant: Shown
    case: tuple[Shown, ...]
    words: str
    verdicts: str
    cells: list[Cell]


class Table(NamedTuple):
    columns: list[Column]
    lines: list[Line]
    everywhere: list[tuple[str, Shown]]
    """Of the columns that hold one value, which is said once."""


def cell(reader: Reader, i: int, column: Column) -> Cell:
    place = f"rows/{i}/{column.key}"
    if column.over:
        over = f"rows/{i}/{column.over}"
        return Cell(reader.quotient(place, over, column.form), reader.ratio(place, over))
    if column.key == "shape":
        return Cell(reader.product(place), math.prod(reader.value(place)))
    interval = tuple(reader.shown(f"rows/{i}/{key}", column.form) for key in column.interval or ())
    return Cell(reader.shown(place, column.form), reader.value(place), interval)


def table(reader: Reader) -> Table:
    report = reader.report
    numbers = range(len(report["rows"]))
    kept, everywhere = [TIME], []
    for column in COLUMNS:
        values = [cell(reader, i, column).value for i in numbers]
        if len(values) > 1 and values[0] is not None and len(set(values)) == 1:
            everywhere.append((column.title, cell(reader, 0, column).shown or Shown("", "")))
        elif any(value is not None for value in values):
            kept.append(column)
    # Per row of ours or of a baseline the comparisons that it is in, by the variant of ours.
    judged: dict[int, dict[str, int]] = {i: {} for i in numbers}
    verdicts: dict[int, set[str]] = {i: set() for i in numbers}
    for number, c in enumerate(report["comparisons"]):
        judged[row_of(report, c, "other")][c["ours"]] = number
        for which in ("ours", "other"):
            verdicts[row_of(report, c, which)].add(c["verdict"])
    ours = [name for name in ours_to_show(report) if any(name in found for found in judged.values())]

    def comparison(i: int, name: str) -> Cell:
        if name not in judged[i]:
            return Cell(None, None)
        number = judged[i][name]
        return Cell(None, report["comparisons"][number]["ratio"], verdict=verdict(reader, number))

    found = []
    for i, row in enumerate(report["rows"]):
        name = reader.shown(f"rows/{i}/variant", variant)
        case = [("shape_name", plain), ("shape", dimensions), ("dtype", plain), ("formula", plain)]
        cells = [cell(reader, i, column) for column in kept]
        cells[1:1] = [comparison(i, each) for each in ours]
        words = (*(row[key] for key in (*CASE, "variant")), dimensions(row["shape"]), name.text, *sorted(verdicts[i]))
        found.append(
            Line(
                i, row["ours"], reader.shown(f"rows/{i}/wrong_because") if row["wrong"] else None, name,
                tuple(reader.shown(f"rows/{i}/{key}", form) for key, form in case),
                " ".join((*words, "by plain calls" if row["timed_by"] == "wall" else "")).lower(),
                "|".join(each for each in VERDICTS if each in verdicts[i]), cells,
            )
        )  # fmt: skip
    titles = {name: "ours is" if len(ours) == 1 else f"{name} is" for name in ours}
    meaning = "a row's time over ours, with its interval"
    kept[1:1] = [Column(title, "", times, meaning, descending=True) for title in titles.values()]
    return Table(kept, found, everywhere)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.page", description="A report as a page.")
    parser.add_argument("report", type=Path, metavar="REPORT.json", help="of python -m benchmarks --json")
    parser.add_argument("page", type=Path, metavar="PAGE.html")
    given = parser.parse_args()
    try:
        write(load(given.report), given.page)
    except ModuleNotFoundError as failure:
        parser.error(f"{failure}: pip install jinja2")
    except (ValueError, OSError) as failure:
        parser.error(str(failure))


if __name__ == "__main__":
    main()
