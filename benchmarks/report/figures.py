"""python -m benchmarks.report.figures: README's figures and tables of speed, from the reports in benchmarks/results."""

from __future__ import annotations

from pathlib import Path

from benchmarks.cases.shapes import dimensions
from benchmarks.report import charts
from benchmarks.report.reading import Report, Row, compared_rows, load
from benchmarks.report.shown import MARKS, MODES, commit, duration, percent, rate, shown, significant

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "benchmarks/results"
README = ROOT / "README.md"
IMAGES = ROOT / "docs/images"
BEGIN, END = "<!-- speed -->\n", "<!-- end -->"
BY_CALLS = " †"


def shown_ratio(comparison: Row | None, ours_wrong: bool) -> str:
    if comparison is None or ours_wrong:
        return "–"
    if comparison["verdict"] == "wrong":
        return "wrong result"
    ratio, low, high = (shown(comparison[key], significant) for key in ("ratio", "low", "high"))
    text = f"{ratio} × ({low}–{high})"
    if comparison["verdict"] != "faster":
        text += f", {comparison['verdict']}"
    return text + (BY_CALLS if comparison["timed_by"] == "wall" else "")


def bandwidth(row: Row) -> str:
    """The bandwidth of a row, and which part of its own case's limit that is."""
    if row["percent_of_ceiling"] is None or row["timed_by"] == "wall":
        return "–"
    part, limit = shown(row["percent_of_ceiling"], percent), shown(row["ceiling_gb_per_s"], significant)
    return f"{shown(row['gb_per_s'], rate)}, {part} of {limit}"


def table(report: Report) -> str:
    """Markdown: a line for each of our rows that is compared."""
    rows, found = report["rows"], compared_rows(report)
    modes = [mode for mode in MODES if any(mode in compared for compared in found.values())]
    several = len({rows[i]["variant"] for i in found}) > 1
    head = ["formula", "shape", "dtype", *(["ours"] if several else []), "time", "bandwidth, of its limit"]
    head += [f"against {MARKS[MODES[mode]].text}" for mode in modes]
    lines = [head, ["---"] * len(head)]
    for i, compared in found.items():
        row = rows[i]
        names = [row["formula"], f"{row['shape_name']} {dimensions(row['shape'])}", row["dtype"]]
        names += [row["variant"]] if several else []
        time = shown(row["time_us"], duration) + (BY_CALLS if row["timed_by"] == "wall" else "")
        figures = ["**wrong result**"] * 2 if row["wrong"] else [time, bandwidth(row)]
        against = [report["comparisons"][compared[mode]] if mode in compared else None for mode in modes]
        lines.append([*names, *figures, *(shown_ratio(c, row["wrong"]) for c in against)])
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def section(report: Report, source: Path) -> str:
    """Markdown: the machine and its versions, the figure, the table."""
    setting, ceiling = report["setting"], report["ceiling"]
    on_cpu = setting["kind"] == "cpu"
    machine = f"{setting['device']}, {setting['threads']} threads" if on_cpu else setting["device"]
    kind = "A virtual machine, " if on_cpu and setting.get("virtual_machine") else ""
    cuda = "" if on_cpu else f"CUDA {setting['cuda']}, driver {setting['driver']}, "
    place, image = (path.relative_to(ROOT).as_posix() for path in (source, figure_path(source)))
    lines = table(report)
    note = "By plain calls, until the GPU has finished: a baseline that waits for it is in no graph."
    by_calls = f"\n{BY_CALLS.strip()} {note}\n"
    formulas = [f"`{name}`: {title}" for name, title in report.get("formulas", {}).items()]
    return (
        f"### {machine}\n\n"
        f"{kind}{cuda}torch {setting['torch']}, commit {commit(setting['commit'])}, {setting['date'][:10]} "
        f"(`{place}`). "
        f"{ceiling['name'].capitalize()}: {shown(ceiling['gb_per_s'], rate)} on {ceiling['measured_on']}; in the table "
        f"each case has its own limit. A time is the median of {'calls' if on_cpu else 'graph replays'}, a ratio "
        f"the other's time over ours; in brackets what the 95 % intervals of both medians allow.\n\n"
        f"![{machine}: speed-ups with their intervals, and time against bytes; the table has the numbers]({image})\n\n"
        f"{lines}{by_calls if BY_CALLS in lines else ''}" + (f"\n{'; '.join(formulas)}.\n" if formulas else "")
    ).replace("\u00a0", " ")  # fmt: skip


def reports(folder: Path) -> dict[Path, Report]:
    """The reports that the README shows, as far as they exist: the CPU's, then the GPUs'."""
    found = [path for path in (folder / "cpu.json", *sorted(folder.glob("gpu*.json"))) if path.exists()]
    return {path: load(path) for path in found}


def readme(text: str, found: dict[Path, Report]) -> str:
    """The README's text with new sections between its marks."""
    written = "\n".join(section(report, path) for path, report in found.items())
    before, _, rest = text.partition(BEGIN)
    if END not in rest:
        raise ValueError(f"README: expected {BEGIN.strip()} … {END}")
    return before + BEGIN + written + END + rest.partition(END)[2]


def figure_path(source: Path) -> Path:
    return IMAGES / f"speed-{source.stem}.png"


def main() -> None:
    found = reports(RESULTS)
    for source, report in found.items():
        charts.png(report, source, figure_path(source))
    README.write_text(readme(README.read_text(encoding="utf-8"), found), encoding="utf-8")


if __name__ == "__main__":
    main()
