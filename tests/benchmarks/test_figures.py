"""The README's figures and tables of speed, and the docs' tables of bytes, are what reports and plans say."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from PIL import Image

from benchmarks.report import charts, figures, shown, traffic
from benchmarks.report.comparisons import changed
from benchmarks.report.reading import Report, load, row_of
from fdkernels.call_shape import CallShape
from fdkernels.fdiv.triton_plan import Limits, plan
from tests.benchmarks.conftest import MEASURED
from tests.benchmarks.made_up import agrees


@pytest.mark.parametrize("path", traffic.PAGES, ids=lambda path: path.name)
def test_the_docs_are_up_to_date(path: Path) -> None:
    page = path.read_text()
    assert traffic.filled(page) == page, "run `python -m benchmarks.report.traffic --write`"
    assert "| CIFAR 64×3×32×32 | bf16 |" in page


def test_bytes_of_the_triton_schedules() -> None:
    def moved(batch: int, elements: int, cache: int = 0) -> float:
        planned = plan(CallShape(batch, elements), Limits())
        return traffic.bytes_moved(planned, batch, elements, read=6, reread=4, written=2, cache=cache)

    assert moved(64, 3072) == 64 * 3072 * 8
    assert moved(8, 65_536) == 8 * 65_536 * 12
    assert moved(8, 65_536, cache=50 << 20) == 8 * 65_536 * 8
    assert 64 * 786_432 * 11 < moved(64, 786_432, cache=50 << 20) < 64 * 786_432 * 12


def test_the_readme_is_what_the_reports_say() -> None:
    text = figures.README.read_text(encoding="utf-8")
    assert len(MEASURED) >= 2 and figures.readme(text, MEASURED) == text, "make readme-figures"
    for path in MEASURED:
        drawn_from = Image.open(figures.figure_path(path)).info["Drawn-From-SHA256"]
        assert drawn_from == charts.digest(path), "make readme-figures"


def test_every_figure_is_the_reports(report: Report) -> None:
    text = figures.section(report, figures.RESULTS / "cpu.json")
    setting, ceiling = report["setting"], report["ceiling"]
    assert f"commit {setting['commit'][:7]}" in text and setting["date"][:10] in text and setting["device"] in text
    found = re.search(r": ([\d,.]+) GB/s on (.+?); in the table", text)
    assert found and agrees(found[1], ceiling["gb_per_s"]) and found[2] == ceiling["measured_on"]
    head, _, *lines = (line.strip("| ").split(" | ") for line in text.splitlines() if line.startswith("| "))
    shown_rows = sorted({row_of(report, c, "ours") for c in report["comparisons"] if c["ours"] != "reference"})
    assert len(lines) == len(shown_rows)
    names = ("formula", "shape_name", "dtype", "variant")
    by_name = {tuple(report["rows"][i][key] for key in names): (i, report["rows"][i]) for i in shown_rows}
    for line in (dict(zip(head, cells, strict=True)) for cells in lines):
        i, row = by_name[line["formula"], line["shape"].split()[0], line["dtype"], line.get("ours", "native")]
        limit = ("gb_per_s", "percent_of_ceiling", "ceiling_gb_per_s")
        no_limit = row["percent_of_ceiling"] is None or row["timed_by"] == "wall"
        said = {"time": [row["time_us"]], "bandwidth, of its limit": [] if no_limit else [row[key] for key in limit]}
        for c in (c for c in report["comparisons"] if row_of(report, c, "ours") == i):
            (mode,) = (name for mode, name in shown.MODES.items() if c["other"].endswith(mode))
            said[title := f"against {shown.MARKS[mode].text}"] = [
                c[key] for key in ("ratio", "low", "high") if c["ratio"]
            ]
            notes = [note in line[title] for note in ("slower", "†", "wrong result")]
            by_calls = c["timed_by"] == "wall"
            assert row["wrong"] or notes == [c["verdict"] == "slower", by_calls, c["verdict"] == "wrong"]
        for title, values in said.items():
            numbers = re.findall(r"\d[\d.,]*(?<![.,])(?:e-\d+)?(?: µs| ms| s\b)?", line[title])
            assert len(numbers) == (0 if row["wrong"] else len(values)), (line, title)
            assert all(map(agrees, numbers, values)), (line, title, values)


def test_the_command_writes_figures_and_readme(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[tuple[str, str]] = []
    monkeypatch.setattr(charts, "png", lambda report, source, path: drawn.append((source.name, path.name)))
    monkeypatch.setattr(figures, "README", tmp_path / "README.md")
    figures.README.write_text(f"# A\n\n{figures.BEGIN}old\n{figures.END}\n\nrest\n")
    figures.main()
    assert drawn == [(path.name, f"speed-{path.stem}.png") for path in MEASURED]
    text = figures.README.read_text()
    assert text.startswith("# A\n\n" + figures.BEGIN) and text.endswith(figures.END + "\n\nrest\n")
    assert "old" not in text and text.index("### Intel") < text.index("speed-cpu.png") < text.index("### NVIDIA")


def test_a_second_run_reproduces_the_first() -> None:
    """Two runs of the same commit."""
    runs = [load(figures.RESULTS / name) for name in ("cpu.json", "cpu_again.json")]
    assert len({run["setting"]["commit"] for run in runs}) == 1
    for old, new in (runs, runs[::-1]):
        ours = sum(row["ours"] for row in new["rows"])
        assert [change.verdict for change in changed(old, new)] == ours * ["no difference"]
