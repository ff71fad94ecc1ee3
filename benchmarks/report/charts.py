"""The charts of a report, in matplotlib: as SVG for the page, as PNG for docs/speed.md."""

from __future__ import annotations

import hashlib
import io
import math
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator

from benchmarks.report.reading import Report, Row, compared_rows, ours_to_show, row_of
from benchmarks.report.shown import COLOURS, MARKS, MODES, Form, duration, mark, short, size

LIGHT = {name: light for name, (light, _) in COLOURS.items()}
LINE = 0.27  # inches of a line in the chart of speed-ups
LABEL_ROOM = 0.028  # least distance of two upright labels, as a part of the axes' width
BELOW_LIMIT = 60  # room for labels below the lowest limit, as a factor of the time


# {(mark, whether a GPU's time is that of plain calls): [(x, y, number of the row), ...]}
Points = dict[tuple[str, bool], list[tuple[float, float, int]]]


def scatter(axes: Axes, found: Points) -> None:
    """Draw filled marks, and hollow ones for times by plain calls. On the page each mark links to its row."""
    for (name, by_calls), points in found.items():
        drawn, colour = MARKS[name], LIGHT[MARKS[name].colour]
        x, y, rows = zip(*points, strict=True)
        marks = axes.scatter(
            x, y, 38, marker=drawn.marker, linewidths=1.4, zorder=3,
            edgecolors=colour, facecolors=LIGHT["card"] if by_calls else colour,
            label=drawn.text + (", by plain calls" if by_calls else ""),
        )  # fmt: skip
        marks.set_urls([f"#row-{row}" for row in rows])


def speedups(axes: Axes, report: Report) -> None:
    """A line for each of our rows, under its formula; on it a mark with its interval for each baseline."""
    rows, found = report["rows"], compared_rows(report)
    several, formulas = len(ours_to_show(report)) > 1, list(dict.fromkeys(rows[i]["formula"] for i in found))
    ticks: list[str] = []
    headings: list[int] = []
    marks, ends = Points(), [0.5, 2.0]
    for i in sorted(found, key=lambda i: formulas.index(rows[i]["formula"])):
        row, notes = rows[i], []
        if not headings or ticks[headings[-1]] != row["formula"]:
            headings.append(len(ticks))
            ticks.append(row["formula"])
        for n, (mode, number) in enumerate(found[i].items()):
            c = report["comparisons"][number]
            if c["verdict"] == "wrong":
                notes.append("ours wrong" if row["wrong"] else f"{MODES[mode]} wrong")
                continue
            other, at = row_of(report, c, "other"), len(ticks) + 0.36 * (n / max(1, len(found[i]) - 1) - 0.5)
            name = mark(rows[other])
            marks.setdefault((name, c["timed_by"] == "wall"), []).append((c["ratio"], at, other))
            axes.hlines(at, c["low"], c["high"], LIGHT[MARKS[name].colour], lw=1.4)
            ends += [c["low"], c["high"]]
        axes.text(1.01, len(ticks), "\n".join(dict.fromkeys(notes)), color=LIGHT["wrong"], fontsize=8, va="center",
                  transform=axes.get_yaxis_transform())  # fmt: skip
        ticks.append(" ".join((row["shape_name"], row["dtype"], *([row["variant"]] if several else []))))
    scatter(axes, marks)
    axes.set_xscale("log", base=2)
    axes.set_xticks([2.0**p for p in range(math.ceil(math.log2(min(ends))), math.floor(math.log2(max(ends))) + 1)])
    axes.set_xlim(min(ends) / 1.1, max(ends) * 1.1)
    axes.minorticks_off()
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:g} ×")
    axes.set_yticks(range(len(ticks)), ticks)
    for line in headings:
        axes.get_yticklabels()[line].set(fontweight="bold", color=LIGHT["text"])
    axes.set_ylim(len(ticks) - 0.3, -0.7)
    axes.grid(axis="y", visible=False)
    axes.tick_params(axis="y", length=0)
    axes.axvline(1, color=LIGHT["text"], lw=1.2)
    axes.axvspan(axes.get_xlim()[0], 1, color=LIGHT["slow"], alpha=0.08, lw=0)
    axes.set_xlabel("← slower  ·  the other's time over ours  ·  faster →")
    axes.set_title("Speed-up (no difference where the interval crosses one)", loc="left")


def roofline(axes: Axes, report: Report) -> None:
    """Time against fewest bytes: the report's ceiling as a line, each case's own limit as a dash."""
    rows = {i: row for i, row in enumerate(report["rows"]) if has_a_limit(row)}
    bytes_moved = [row["min_bytes"] for row in rows.values()]
    low, high = min(bytes_moved) / 1.4, max(bytes_moved) * 1.4
    marks = Points()
    for i, row in sorted(rows.items(), key=lambda each: list(MARKS).index(mark(each[1]))):
        marks.setdefault((mark(row), row["timed_by"] == "wall"), []).append((row["min_bytes"], row["time_us"], i))
    scatter(axes, marks)
    limits = {(row["min_bytes"], row["min_bytes"] / row["ceiling_gb_per_s"] / 1e3): row for row in rows.values()}
    axes.plot(*zip(*sorted(limits), strict=True), "_", color=LIGHT["text"], ms=12, mew=2.5, label="limit at this size")
    ceiling = report["ceiling"]
    if ceiling["gb_per_s"]:
        axes.plot([low, high], [end / ceiling["gb_per_s"] / 1e3 for end in (low, high)], "--", color=LIGHT["soft"],
                  lw=1.2, label=f"{ceiling['name']} on {ceiling['measured_on']}")  # fmt: skip
    last = -1.0
    for (moved, limit), row in sorted(limits.items(), key=lambda each: each[0]):  # where there is room for its name
        at = math.log(moved / low) / math.log(high / low)
        if at - last >= LABEL_ROOM:
            last = at
            axes.annotate(f"{row['shape_name']} {row['dtype']}", (moved, limit), (0, -6), rotation=90,
                          textcoords="offset points", ha="center", va="top", fontsize=8, color=LIGHT["text"],
                          bbox={"facecolor": LIGHT["card"], "edgecolor": "none", "pad": 1})  # fmt: skip
    top, bottom = 2 * max(row["time_us"] for row in rows.values()), min(us for _, us in limits) / BELOW_LIMIT
    axes.set(xlim=(low, high), ylim=(bottom, top), xscale="log", yscale="log", xlabel="fewest bytes",
             ylabel="time of a call")  # fmt: skip
    axes.set_title("Time against bytes", loc="left")

    def ticks(axis: Axis, form: Form, span: float) -> None:
        axis.set_major_locator(LogLocator(10, subs=(1.0,) if span > 300 else (1.0, 2.0, 5.0)))
        axis.set_major_formatter(lambda value, _: short(form(value)))

    ticks(axes.xaxis, size, high / low)
    ticks(axes.yaxis, duration, top / bottom)
    axes.minorticks_off()


def has_a_limit(row: Row) -> bool:
    """Whether it has a time, and tensors of N elements, so that bandwidth has a ceiling."""
    return bool(row["time_us"]) and row["percent_of_ceiling"] is not None


CHARTS = {"speedups": speedups, "roofline": roofline}


def drawable(report: Report) -> list[str]:
    """The charts that have something to show."""
    found = {"speedups": bool(compared_rows(report)), "roofline": any(map(has_a_limit, report["rows"]))}
    return [name for name, there in found.items() if there]


def save(report: Report, names: Sequence[str], target: Any, **options: Any) -> None:
    """Charts in one column, with one legend."""
    colours = {
        "text": ("text.color", "axes.labelcolor", "axes.titlecolor"), "soft": ("xtick.labelcolor", "ytick.labelcolor"),
        "field": ("axes.edgecolor", "xtick.color", "ytick.color"), "card": ("axes.facecolor", "figure.facecolor"),
        "line": ("grid.color",),
    }  # fmt: skip
    style: dict[Any, Any] = {
        **{key: LIGHT[colour] for colour, keys in colours.items() for key in keys}, "axes.grid": True,
        "axes.axisbelow": True, "axes.spines.top": False, "axes.spines.right": False, "axes.titleweight": "bold",
        "font.size": 10, "legend.frameon": False, "svg.fonttype": "none", "svg.hashsalt": " ".join(names),
    }  # fmt: skip
    lines = len(compared_rows(report)) + len({row["formula"] for row in report["rows"]})
    heights = [0.9 + LINE * lines if name == "speedups" else 4.4 for name in names]
    with rc_context(style):
        figure = Figure(figsize=(8.0, sum(heights) + 0.7), layout="constrained")
        handles: dict[str, Any] = {}
        places = figure.subplots(len(names), height_ratios=heights, squeeze=False).flat
        for axes, name in zip(places, names, strict=True):
            CHARTS[name](axes, report)
            drawn, labels = axes.get_legend_handles_labels()
            handles = dict(zip(labels, drawn, strict=True)) | handles
        figure.legend(handles.values(), handles.keys(), loc="outside lower center", ncols=3)
        figure.savefig(target, dpi=150, **options)


def png(report: Report, source: Path, path: Path) -> None:
    """Draw the charts as PNG, with the digest of what they were drawn from in the metadata."""
    drawn_from = {"Drawn-From-SHA256": digest(source), "Software": None}
    save(report, list(CHARTS), path, format="png", metadata=drawn_from)


def digest(source: Path) -> str:
    """Of the report and of the files that draw it: after any change of these, comments too, `make figures`."""
    drawn_by = [Path(__file__).with_name(f"{name}.py") for name in ("charts", "shown", "reading")]
    return hashlib.sha256(b"".join(file.read_bytes() for file in (source, *drawn_by))).hexdigest()


def svg(report: Report, name: str, title: str) -> str:
    """A chart for a page: in the page's colors, light or dark, and without ids that two charts would share."""
    written, metadata = io.StringIO(), dict.fromkeys(("Creator", "Date", "Format", "Type"))
    save(report, [name], written, format="svg", metadata=metadata)
    text = written.getvalue()
    text = re.sub(r'<g id="[\w.]+_\d+">', "<g>", text[text.index("<svg") :])
    for colour, light in LIGHT.items():
        text = text.replace(light, f"var(--{colour})")
    return text.replace("<svg ", f'<svg role="img" aria-label="{title}" ', 1)
