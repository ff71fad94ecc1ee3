"""A report as a page: what `python -m benchmarks --html` writes.

One self-contained file, for desk and phone, light or dark, readable without scripts. The report is embedded as JSON;
each figure on the page has `data-from`, its path in that JSON.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NamedTuple

import jinja2
from markupsafe import Markup

from benchmarks.cases.shapes import dimensions
from benchmarks.report import charts, shown
from benchmarks.report.reading import Report, ours_to_show, row_of
from benchmarks.report.shown import Form, duration, percent, plain, rate, significant, size, times, variant

COUNT = "{:.3g}".format  # a count, or the mean of several
# The entries of the setting that the header shows, if the report has them.
HEADER = {"threads": plain, "torch": plain, "cuda": plain, "driver": plain, "commit": shown.commit, "date": plain}
CAPTIONS = {
    "speedups": "Right of the line fdkernels is faster, left of it slower; a mark has the interval of its ratio. A"
    " wrong result is not compared.",
    "roofline": "A dash is what memory allows a case at its own size, in cache if it fits there. What lies above its"
    " dash moves more than the fewest bytes, or waits.",
}


class Column(NamedTuple):
    title: str
    key: str
    form: Form
    meaning: str
    interval: tuple[str, str] | None = None
    descending: bool = False  # whether it is first sorted from the largest


COLUMNS = (
    Column("time", "time_us", duration, "median and its interval", ("low_us", "high_us")),
    Column("of ceiling", "percent_of_ceiling", percent, "bandwidth, of the ceiling in this row", descending=True),
    Column("bandwidth", "gb_per_s", rate, "fewest bytes over time", descending=True),
    Column("ceiling", "ceiling_gb_per_s", rate, "measured beside it, on a CPU on as many bytes", descending=True),
    Column(
        "error", "gradient_error", "{:.1e}".format, "of the gradient (or weight), relative, against double precision"
    ),
    Column("launches", "launches", COUNT, "kernels, copies and fills; on a CPU ops that touch memory"),
    Column("syncs", "syncs", COUNT, "how often the host waits for a GPU; on a CPU, how often it would"),
    Column("CPU time", "call_us", duration, "until a call returns, the GPU at work", ("call_low_us", "call_high_us")),
    Column("wall time", "wall_us", duration, "of plain calls, to the GPU's end", ("wall_low_us", "wall_high_us")),
    Column("kernel time", "kernel_us", duration, "sum of its kernels' times under the profiler"),
    Column("fewest bytes", "min_bytes", size, "each input read once, the gradient written once", descending=True),
    Column(
        "counted bytes",
        "counted_bytes",
        size,
        "what its ops read and write; a fused op: what it has to",
        descending=True,
    ),
    Column("extra memory", "extra_bytes", size, "at its peak, beside the inputs", descending=True),
    Column("timed by", "timed_by", plain, "calls, a CUDA graph, or wall: calls to the GPU's end"),
    Column("input sets", "input_sets", COUNT, "in rotation; a single one stays in cache"),
    Column("rounds", "rounds", COUNT, "of interleaved timing"),
)


def render(report: Report) -> str:
    def at(path: str, form: Form = plain) -> Markup:
        return Markup('<span data-from="{}">{}</span>').format(path, shown.shown(value_at(report, path), form))

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent), autoescape=True, undefined=jinja2.StrictUndefined,
        trim_blocks=True, lstrip_blocks=True,
    )  # fmt: skip
    setting = report["setting"]
    judged = {(row_of(report, c, "other"), c["ours"]): i for i, c in enumerate(report["comparisons"])}
    return environment.get_template("page.html.in").render(
        report=report, at=at, colours=shown.COLOURS, captions=CAPTIONS, judged=judged,
        columns=[c for c in COLUMNS if any(row.get(c.key) is not None for row in report["rows"])],
        header={key: form for key, form in HEADER.items() if setting.get(key)}, settings=list(setting),
        charts={name: Markup(charts.svg(report, name, CAPTIONS[name])) for name in charts.drawable(report)},
        ours=ours_to_show(report),
        embedded=json.dumps(report, ensure_ascii=False, allow_nan=False).replace("<", "\\u003c"),
        significant=significant, times=times, variant=variant, dimensions=dimensions, rate=rate,
    )  # fmt: skip


def value_at(report: Report, path: str) -> Any:
    found: Any = report
    for key in path.split("/"):
        found = found[int(key)] if isinstance(found, list) else found.get(key)
    return found
