"""python -m benchmarks.report.figures: docs/speed.md and README's rows of speed, from benchmarks/results."""

from __future__ import annotations

from pathlib import Path

from benchmarks.cases.shapes import dimensions
from benchmarks.report import charts
from benchmarks.report.reading import Report, Row, compared_rows, load, row_of
from benchmarks.report.shown import MARKS, MODES, commit, duration, percent, rate, shown, significant, with_unit

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "benchmarks/results"
README = ROOT / "README.md"
PAGE = ROOT / "docs/speed.md"
IMAGES = ROOT / "docs/images"
# What the README shows: (report, formula, shape, dtype).
FEW = (
    ("cpu", "fastgen", "pixels512", "fp32"),
    ("gpu-h100", "dmd2_latent", "sdxl", "bf16"),
    ("gpu-h100", "self_forcing", "wan_large", "bf16"),
)
BEGIN, END = "<!-- speed -->\n", "<!-- end -->"
BY_CALLS = " †"
BY = ("here", "eager", "torch.compile")
mebibytes = with_unit("MiB")


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
    image = figure_path(source).relative_to(PAGE.parent).as_posix()
    lines = table(report)
    note = "By plain calls, until the GPU has finished: a baseline that waits for it is in no graph."
    by_calls = f"\n{BY_CALLS.strip()} {note}\n"
    formulas = [f"`{name}`: {title}" for name, title in report.get("formulas", {}).items()]
    return (
        f"### {machine}\n\n"
        f"{kind}{cuda}torch {setting['torch']}, commit {commit(setting['commit'])}, {setting['date'][:10]} "
        f"([{source.name}](../benchmarks/results/{source.name})). "
        f"{ceiling['name'].capitalize()}: {shown(ceiling['gb_per_s'], rate)} on {ceiling['measured_on']}; in the table "
        f"each case has its own limit. A time is the median of {'calls' if on_cpu else 'graph replays'}, a ratio "
        f"the other's time over ours; in brackets what the 95 % intervals of both medians allow.\n\n"
        f"![{machine}: speed-ups with their intervals, and time against bytes; the table has the numbers]({image})\n\n"
        f"{lines}{by_calls if BY_CALLS in lines else ''}" + (f"\n{'; '.join(formulas)}.\n" if formulas else "")
    ).replace("\u00a0", " ")  # fmt: skip


def few_rows(found: dict[Path, Report]) -> str:
    """Markdown: time and memory of a few rows, each beside eager and compiled PyTorch."""
    head = ["a loss, forward + backward", "on", *(f"{what}, {by}" for what in ("time", "memory") for by in BY)]
    lines = [head, ["---"] * len(head)]
    for name, *case in FEW:
        source = RESULTS / f"{name}.json"
        report = found[source]
        rows, setting = report["rows"], report["setting"]
        i, compared = next(
            (i, compared) for i, compared in compared_rows(report).items()
            if rows[i]["variant"] == "native" and case == [rows[i][key] for key in ("formula", "shape_name", "dtype")]
        )  # fmt: skip
        comparisons = [report["comparisons"][compared[mode]] for mode in ("eager", "compile default")]
        shown_rows = [rows[i], *(rows[row_of(report, c, "other")] for c in comparisons)]
        by_calls = any(c["timed_by"] == "wall" for c in comparisons)
        times = [row["wall_us"] if by_calls else row["time_us"] for row in shown_rows]
        device = f"{setting['threads']} CPU threads" if setting["kind"] == "cpu" else setting["device"].split()[1]
        lines.append([
            f"`{case[0]}` {dimensions(rows[i]['shape'])} {case[2]}", f"[{device}](benchmarks/results/{source.name})",
            *(duration(us) + BY_CALLS * by_calls for us in times),
            *(mebibytes(row["extra_bytes"] / 2**20) for row in shown_rows),
        ])  # fmt: skip
    return "".join(f"| {' | '.join(line)} |\n" for line in lines).replace("\u00a0", " ")


def reports(folder: Path) -> dict[Path, Report]:
    """The reports that are shown, as far as they exist: the CPU's, then the GPUs'."""
    found = [path for path in (folder / "cpu.json", *sorted(folder.glob("gpu*.json"))) if path.exists()]
    return {path: load(path) for path in found}


def filled(path: Path, found: dict[Path, Report]) -> str:
    """The text of README or of docs/speed.md, with what the reports say between its marks."""
    sections = (section(report, source) for source, report in found.items())
    written = few_rows(found) if path == README else "\n".join(sections)
    before, begin, rest = path.read_text(encoding="utf-8").partition(BEGIN)
    inside, end, after = rest.partition(END)
    if not end:
        raise ValueError(f"{path.name}: expected {BEGIN.strip()} … {END}")
    return before + begin + written + end + after


def figure_path(source: Path) -> Path:
    return IMAGES / f"speed-{source.stem}.png"


def main() -> None:
    found = reports(RESULTS)
    for source, report in found.items():
        charts.png(report, source, figure_path(source))
    for path in (README, PAGE):
        path.write_text(filled(path, found), encoding="utf-8")


if __name__ == "__main__":
    main()
