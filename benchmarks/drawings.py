"""The README's figure, in matplotlib, which the train extra brings."""

from __future__ import annotations

import hashlib
import textwrap
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.comparisons import Report
from benchmarks.shown import (
    COLOURS,
    MARKS,
    MODES,
    LogScale,
    drawable,
    duration,
    launch_bound,
    mark,
    row_of,
    short,
    size,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes

LIGHT = {name: light for name, (light, _) in COLOURS.items()}
WIDTH = 8  # inches, so that 10 points are legible in a README's column
LABEL_CHARACTERS = 28
LABEL_ROOM = 0.028  # between two upright labels, of the axes' width
BELOW_LIMIT = 60  # the room for labels, as a factor of the time
Cases = dict[tuple[str, ...], tuple[int, dict[str, Report]]]


def digest(source: Path) -> str:
    """Of what a figure depends on: the report, and how it is drawn."""
    drawn_by = (Path(__file__), Path(__file__).with_name("shown.py"))
    return hashlib.sha256(b"".join(file.read_bytes() for file in (source, *drawn_by))).hexdigest()


def draw_speedups(axes: Axes, report: Report, found: Cases) -> None:
    """A line for each of our rows, on it a mark with its interval for each baseline."""
    several = len({key[-1] for key in found}) > 1
    labels = []
    ends = [0.5, 2.0]
    for y, (key, (i, compared)) in enumerate(found.items()):
        _, formula, shape_name, dtype, ours = key
        name = f"{formula} · {' '.join((shape_name, dtype, *([ours] if several else [])))}"
        labels.append(textwrap.fill(name, LABEL_CHARACTERS))
        notes = []
        for n, (mode, c) in enumerate(compared.items()):
            if not drawable(c):
                notes.append("ours wrong" if report["rows"][i]["wrong"] else f"{MODES[mode]} wrong")
                continue
            if c["timed_by"] == "wall":
                notes.append(f"{MODES[mode]} by plain calls")
            drawn = MARKS[mark(report["rows"][row_of(report, c, "other")])]
            ratio, low, high = c["ratio"], c["low"], c["high"]
            ends += [low, high]
            at = y + 0.3 * (n - (len(compared) - 1) / 2) / max(1, len(compared) - 1)
            axes.errorbar(ratio, at, xerr=[[ratio - low], [high - ratio]], fmt=drawn.marker, color=LIGHT[drawn.colour],
                          ms=6, elinewidth=1.2, capsize=2.5)  # fmt: skip
        colour = LIGHT["wrong"] if any("wrong" in note for note in notes) else LIGHT["soft"]
        axes.text(1.01, y, "\n".join(dict.fromkeys(notes)), color=colour, transform=axes.get_yaxis_transform(),
                  va="center", fontsize=8)  # fmt: skip
    scale = LogScale.around(ends, 0, 1, room=1.1)
    axes.set_xscale("log", base=2)
    axes.set_xticks(scale.powers_of_two())
    axes.set_xlim(scale.low, scale.high)
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:g} ×")
    axes.set_yticks(range(len(labels)), labels)
    axes.set_ylim(len(labels) - 0.4, -0.6)
    axes.grid(axis="y", visible=False)
    axes.axvline(1, color=LIGHT["text"], lw=1.2)
    axes.axvspan(scale.low, 1, color=LIGHT["slow"], alpha=0.08, lw=0)
    axes.set_xlabel("← slower  ·  the other's time over ours  ·  faster →")
    axes.set_title("Speed-up (no difference where the interval crosses one)", loc="left")


def draw_roofline(axes: Axes, report: Report) -> None:
    """Time against fewest bytes: the report's ceiling as a line, each case's own limit as a dash."""
    rows = [row for row in report["rows"] if row["time_us"] and not launch_bound(row)]
    ceiling = report["ceiling"]
    if not rows:
        axes.set_axis_off()
        return
    scale = LogScale.around([row["min_bytes"] for row in rows], 0, 1, room=1.4)
    for name, drawn in MARKS.items():
        for by_calls in (False, True):
            here = [row for row in rows if mark(row) == name and (row["timed_by"] == "wall") == by_calls]
            colour = LIGHT[drawn.colour]
            if here:
                x, y = ([row[key] for row in here] for key in ("min_bytes", "time_us"))
                label = drawn.text + (", by plain calls" if by_calls else "")
                axes.plot(x, y, drawn.marker, color=colour, mfc=colour if drawn.filled else LIGHT["card"], ms=6,
                          alpha=0.4 if by_calls else 1, label=label)  # fmt: skip
    limits = sorted({(row["min_bytes"], row["min_bytes"] / row["ceiling_gb_per_s"] / 1e3) for row in rows})
    axes.plot(
        [x for x, _ in limits],
        [y for _, y in limits],
        "_",
        color=LIGHT["text"],
        ms=12,
        mew=2.5,
        label="limit at this size",
    )
    if ceiling["gb_per_s"]:
        line = [end / ceiling["gb_per_s"] / 1e3 for end in (scale.low, scale.high)]
        axes.plot([scale.low, scale.high], line, "--", color=LIGHT["soft"], lw=1.2,
                  label=f"{ceiling['name']} on {ceiling['measured_on']}")  # fmt: skip
    label_limits(axes, rows, scale)
    axes.set_ylim(min(y for _, y in limits) / BELOW_LIMIT, max(row["time_us"] for row in rows) * 2)
    axes.set(xscale="log", yscale="log", xlim=(scale.low, scale.high), xlabel="fewest bytes", ylabel="time of a call")
    axes.set_xticks(scale.decades())
    axes.xaxis.set_major_formatter(lambda value, _: short(size(value)))
    axes.yaxis.set_major_formatter(lambda value, _: short(duration(value)))
    axes.minorticks_off()
    axes.set_title("Time against bytes", loc="left")


def label_limits(axes: Axes, rows: list[Report], scale: LogScale) -> None:
    """Shape and dtype below the limits, where no point can lie: from the left, where there is room."""
    last = -1.0
    for row in sorted((row for row in rows if mark(row) == "ours"), key=lambda row: row["min_bytes"]):
        if scale(row["min_bytes"]) - last >= LABEL_ROOM:
            last = scale(row["min_bytes"])
            limit = row["min_bytes"] / row["ceiling_gb_per_s"] / 1e3
            axes.annotate(f"{row['shape_name']} {row['dtype']}", (row["min_bytes"], limit), (0, -6), rotation=90,
                          textcoords="offset points", ha="center", va="top", fontsize=8, color=LIGHT["text"],
                          bbox={"facecolor": LIGHT["card"], "edgecolor": "none", "pad": 1})  # fmt: skip


def draw(report: Report, found: Cases, source: Path, path: Path) -> None:
    """The figure as PNG, which says what it was drawn from."""
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    style: dict[Any, Any] = {
        "axes.grid": True, "axes.axisbelow": True, "grid.color": LIGHT["line"], "axes.edgecolor": LIGHT["even"],
        "axes.spines.top": False, "axes.spines.right": False, "axes.titleweight": "bold", "font.size": 10,
        "legend.frameon": False, "figure.facecolor": LIGHT["card"],
    }  # fmt: skip
    with rc_context(style):
        heights = (1.0 + 0.4 * len(found), 4.2)
        figure = Figure(figsize=(WIDTH, sum(heights) + 0.7), layout="constrained")
        upper, lower = figure.subplots(2, 1, height_ratios=heights)
        draw_speedups(upper, report, found)
        draw_roofline(lower, report)
        figure.legend(*lower.get_legend_handles_labels(), loc="outside lower center", ncols=2)
        figure.savefig(path, dpi=150, metadata={"Drawn-From-SHA256": digest(source), "Software": None})
