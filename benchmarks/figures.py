"""python -m benchmarks.figures: README's figures and tables of speed, from the reports in benchmarks/results.

Also how numbers and marks look, here and on the page.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.axes import Axes

SCHEMA = 1
ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks/results"
README = ROOT / "README.md"
IMAGES = ROOT / "docs/images"
BEGIN, END = "<!-- speed -->\n", "<!-- end -->"
VERDICTS = ("faster", "slower", "no difference", "wrong")
CLOSE = 1.25
"""A prediction within this factor of the measurement counts as met."""
MARKS = {
    "ours": "fdkernels",
    "reference": "fdkernels, reference",
    "eager": "eager",
    "compile": "torch.compile, default",
    "autotune": "torch.compile, max-autotune",
    "other": "other",
    "wrong": "wrong result",
}
# matplotlib's marker, colour, and whether filled.
DRAWN = {
    "ours": ("o", "#2a6ac0", True),
    "reference": ("o", "#2a6ac0", False),
    "eager": ("s", "#b3520a", False),
    "compile": ("^", "#7a3fb0", False),
    "autotune": ("D", "#1e7d52", False),
    "other": ("P", "#5a6270", False),
    "wrong": ("x", "#b42318", True),
}

Report = dict[str, Any]
Form = Callable[[Any], str]


def checked(report: Report) -> Report:
    """The report. Raises ValueError where it is not of this schema."""
    if report.get("schema") != SCHEMA:
        raise ValueError(f"report: expected schema {SCHEMA}, got {report.get('schema')!r}")
    return report


def drawable(comparison: Report) -> bool:
    return comparison["verdict"] != "wrong" and all(comparison[key] for key in ("ratio", "low", "high"))


def mark(row: Report) -> str:
    """Which of MARKS a row is drawn as."""
    if row["wrong"]:
        return "wrong"
    if row["ours"]:
        return "reference" if row["backend"] == "reference" else "ours"
    modes = {"eager": "eager", "compile default": "compile", "compile max-autotune-no-cudagraphs": "autotune"}
    return modes.get(row["mode"] or "", "other")


def row_of(report: Report, comparison: Report, which: str) -> int:
    """The row of a comparison's variant: `which` is "ours" or "other"."""
    same = ("op", "shape_name", "dtype", "formula")
    for i, row in enumerate(report["rows"]):
        if row["variant"] == comparison[which] and all(row[key] == comparison[key] for key in same):
            return i
    raise ValueError(f"comparisons: no row of {which} {comparison[which]!r} for {comparison}")


def off(row: Report) -> float:
    """The factor between prediction and measurement, whichever is larger; 0 where there is none."""
    if not (row["predicted_us"] and row["time_us"]):
        return 0.0
    ratio: float = row["time_us"] / row["predicted_us"]
    return max(ratio, 1 / ratio)


@dataclass(frozen=True)
class LogScale:
    """From values to positions."""

    low: float
    high: float
    start: float
    end: float

    @classmethod
    def around(cls, values: Iterable[float], start: float, end: float, room: float = 1.25) -> LogScale:
        positive = [value for value in values if value > 0] or [1.0]
        return cls(min(positive) / room, max(positive) * room, start, end)

    def __call__(self, value: float) -> float:
        part = math.log(value / self.low) / math.log(self.high / self.low)
        return round(self.start + part * (self.end - self.start), 2)

    def decades(self) -> list[float]:
        """Powers of ten, with their double and fivefold where there would be fewer than three."""
        powers = [10.0**p for p in range(math.floor(math.log10(self.low)), math.ceil(math.log10(self.high)) + 1)]
        inside = [p for p in powers if self.low <= p <= self.high]
        if len(inside) < 3:
            inside = [p * digit for p in powers for digit in (1, 2, 5) if self.low <= p * digit <= self.high]
        return inside

    def powers_of_two(self) -> list[float]:
        step = 1 if self.high / self.low < 256 else 2
        exponents = range(math.ceil(math.log2(self.low)), math.floor(math.log2(self.high)) + 1)
        return [2.0**p for p in exponents if p % step == 0]


# Numbers as text: three significant digits and a unit.


def significant(value: float) -> str:
    digits = 2 if value == 0 else max(0, 2 - math.floor(math.log10(abs(value))))
    return f"{value:,.{digits}f}" if digits < 7 else f"{value:.2e}"


def duration(us: float) -> str:
    if us < 1e3:
        return f"{significant(us)}\u00a0µs"
    return f"{significant(us / 1e3)}\u00a0ms" if us < 1e6 else f"{significant(us / 1e6)}\u00a0s"


def size(count: float) -> str:
    for power, unit in ((4, "TB"), (3, "GB"), (2, "MB"), (1, "kB")):
        if count >= 1000**power:
            return f"{significant(count / 1000**power)}\u00a0{unit}"
    return f"{count:.0f}\u00a0B"


def rate(gb_per_s: float) -> str:
    return f"{significant(gb_per_s)}\u00a0GB/s"


def times(ratio: float) -> str:
    return f"{significant(ratio)}\u00a0×"


def percent(value: float) -> str:
    return f"{significant(value)}\u00a0%"


def error(value: float) -> str:
    return f"{value:.1e}"


def short(text: str) -> str:
    """Of a tick: without zeros after the point."""
    number, unit = text.split("\u00a0")
    return f"{float(number.replace(',', '')):g} {unit}"


def dimensions(shape: list[int]) -> str:
    return "×".join(map(str, shape))


def plain(value: Any) -> str:
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)


# The README.


MODES = {
    "eager": "eager",
    "compile default": "`torch.compile`",
    "compile max-autotune-no-cudagraphs": "max-autotune",
}


def cases(report: Report) -> dict[tuple[str, ...], tuple[int, dict[str, Report]]]:
    """Our rows that are compared, by op, formula, shape, dtype and variant: the row, and its comparisons by mode."""
    found: dict[tuple[str, ...], tuple[int, dict[str, Report]]] = {}
    for c in report["comparisons"]:
        i, other = row_of(report, c, "ours"), report["rows"][row_of(report, c, "other")]
        if other["mode"] in MODES and report["rows"][i]["backend"] != "reference":
            key = tuple(c[name] for name in ("op", "formula", "shape_name", "dtype", "ours"))
            found.setdefault(key, (i, {}))[1][other["mode"]] = c
    return found


def shown_ratio(comparison: Report | None) -> str:
    if comparison is None:
        return "–"
    if comparison["verdict"] == "wrong":
        return "wrong result"
    ratio = times(comparison["ratio"])
    return ratio if comparison["verdict"] == "faster" else f"{ratio}, {comparison['verdict']}"


def table(report: Report) -> str:
    """Markdown: a line for each of our rows that is compared."""
    rows, found = report["rows"], cases(report)
    modes = [mode for mode in MODES if any(mode in compared for _, compared in found.values())]
    head = [
        "formula",
        "shape",
        "dtype",
        "ours",
        "time",
        "of the ceiling",
        *(f"against {MODES[mode]}" for mode in modes),
    ]
    lines = [head, ["---"] * len(head)]
    for i, compared in found.values():
        row = rows[i]
        shape = f"{row['shape_name']} {dimensions(row['shape'])}"
        figures = [duration(row["time_us"]), percent(row["percent_of_ceiling"])]
        ratios = [shown_ratio(compared.get(mode)) for mode in modes]
        lines.append([row["formula"], shape, row["dtype"], row["variant"], *figures, *ratios])
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def section(report: Report, source: Path) -> str:
    """Markdown: what was measured where, the figure, the table."""
    setting, ceiling = report["setting"], report["ceiling"]
    threads = f", {setting['threads']} threads" if setting["kind"] == "cpu" else f", CUDA {setting['cuda']}"
    image = figure_path(source).relative_to(ROOT).as_posix()
    return (
        f"{setting['device']}{threads}, torch {setting['torch']}, commit {setting['commit'][:7]}, "
        f"{setting['date'][:10]} (`{source.relative_to(ROOT).as_posix()}`). Ceiling: {ceiling['name']}, "
        f"{rate(ceiling['gb_per_s'])}. Times are medians; a ratio is the other's time over ours.\n\n"
        f"![Speed-ups with their intervals, and time against bytes; the table has the numbers]({image})\n\n"
        f"{table(report)}"
    ).replace("\u00a0", " ")


def reports(folder: Path) -> dict[Path, Report]:
    """The reports that the README shows: the CPU's, then the GPUs'. Empty while the CPU's has not been measured."""
    found = [path for path in (folder / "cpu.json", *sorted(folder.glob("gpu*.json"))) if path.exists()]
    return {path: checked(json.loads(path.read_text(encoding="utf-8"))) for path in found}


def readme(text: str, found: dict[Path, Report]) -> str:
    """The README with the sections between its marks."""
    written = "\n".join(section(report, path) for path, report in found.items())
    pattern = re.compile(re.escape(BEGIN) + ".*?" + re.escape(END), re.DOTALL)
    if len(pattern.findall(text)) != 1:
        raise ValueError(f"README: expected one {BEGIN.strip()} … {END}")
    return pattern.sub(lambda _: BEGIN + written + END, text)


# The figures, in matplotlib, which the train extra brings.


def figure_path(source: Path) -> Path:
    return IMAGES / f"speed-{source.stem}.png"


def digest(source: Path) -> str:
    return hashlib.sha256(source.read_bytes()).hexdigest()


def draw_speedups(axes: Axes, report: Report) -> None:
    """A line of marks for each of our rows: filled where there is a difference, hollow where none."""
    found = cases(report)
    several = len({key[-1] for key in found}) > 1
    labels = []
    for y, (key, (_, compared)) in enumerate(found.items()):
        _, formula, shape_name, dtype, ours = key
        labels.append(" · ".join((formula, shape_name, dtype, *([ours] if several else []))))
        for comparison in compared.values():
            name = mark(report["rows"][row_of(report, comparison, "other")])
            shape, colour, _ = DRAWN[name]
            if not drawable(comparison):
                axes.plot(0.01, y, "x", color=DRAWN["wrong"][1], transform=axes.get_yaxis_transform(), clip_on=False)
                continue
            ratio, low, high = (comparison[end] for end in ("ratio", "low", "high"))
            filled = colour if comparison["verdict"] != "no difference" else "white"
            axes.errorbar(ratio, y, xerr=[[max(0, ratio - low)], [max(0, high - ratio)]], fmt=shape, color=colour,
                          mfc=filled, ms=5, elinewidth=1, capsize=2)  # fmt: skip
    axes.set_xscale("log", base=2)
    axes.set_yticks(range(len(labels)), labels, fontsize=8)
    axes.set_ylim(len(labels) - 0.4, -0.6)
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:.2g}")
    axes.axvline(1, color="#20242b", lw=1.2)
    axes.set_xlim(axes.get_xlim())
    axes.axvspan(axes.get_xlim()[0], 1, color="#b3520a", alpha=0.08, lw=0)
    axes.set_xlabel("← slower  ·  the other's time over ours  ·  faster →")
    axes.set_title("Speed-up (hollow: no difference)", loc="left")


def draw_roofline(axes: Axes, report: Report) -> None:
    rows = [row for row in report["rows"] if row["time_us"] and row["min_bytes"]]
    for name, (shape, colour, filled) in DRAWN.items():
        here = [row for row in rows if mark(row) == name]
        if here:
            axes.plot([row["min_bytes"] for row in here], [row["time_us"] for row in here], shape, color=colour,
                      mfc=colour if filled else "none", ms=5, label=MARKS[name])  # fmt: skip
    ends = (min(row["min_bytes"] for row in rows), max(row["min_bytes"] for row in rows))
    limits = [end / report["ceiling"]["gb_per_s"] / 1e3 for end in ends]
    axes.plot(ends, limits, "--", color="#20242b", label=report["ceiling"]["name"])
    axes.set(xscale="log", yscale="log", xlabel="fewest bytes")
    axes.xaxis.set_major_formatter(lambda value, _: short(size(value)))
    axes.yaxis.set_major_formatter(lambda value, _: short(duration(value)))
    axes.set_title("Time against bytes", loc="left")


def draw(report: Report, source: Path, path: Path) -> None:
    """The figure as PNG, which says what it was drawn from."""
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    style: dict[Any, Any] = {
        "axes.grid": True, "axes.axisbelow": True, "grid.color": "#dfe3e9", "axes.edgecolor": "#8a92a0",
        "axes.spines.top": False, "axes.spines.right": False, "axes.titleweight": "bold", "font.size": 9,
        "legend.frameon": False,
    }  # fmt: skip
    with rc_context(style):
        figure = Figure(figsize=(11, max(4.2, 1.3 + 0.2 * len(cases(report)))), layout="constrained")
        left, right = figure.subplots(1, 2, width_ratios=(5, 4))
        draw_speedups(left, report)
        draw_roofline(right, report)
        figure.legend(*right.get_legend_handles_labels(), loc="outside lower center", ncols=4)
        figure.savefig(path, dpi=150, metadata={"Report-SHA256": digest(source), "Software": None})


def main() -> None:
    argparse.ArgumentParser(prog="python -m benchmarks.figures", description=__doc__).parse_args()
    found = reports(RESULTS)
    if not found:
        raise SystemExit(f"{RESULTS}: neither cpu.json nor gpu*.json")
    for source, report in found.items():
        draw(report, source, figure_path(source))
    README.write_text(readme(README.read_text(encoding="utf-8"), found), encoding="utf-8")


if __name__ == "__main__":
    main()
