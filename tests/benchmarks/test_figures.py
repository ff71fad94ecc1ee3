"""The README's figures and tables of speed are what the reports in benchmarks/results say."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from benchmarks import figures
from tests.benchmarks.test_page import agrees, synthetic

REPORTS = figures.reports(figures.RESULTS)


@pytest.fixture
def source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A project with a report of its own."""
    for name, path in {"ROOT": "", "RESULTS": "benchmarks/results", "IMAGES": "docs/images"}.items():
        (tmp_path / path).mkdir(parents=True, exist_ok=True)
        monkeypatch.setattr(figures, name, tmp_path / path)
    monkeypatch.setattr(figures, "README", tmp_path / "README.md")
    (tmp_path / "README.md").write_text(f"# A\n\n{figures.BEGIN}old\n{figures.END}\n\nrest\n")
    path = tmp_path / "benchmarks/results/cpu.json"
    path.write_text(json.dumps(synthetic()))
    return path


def cells(table: str) -> list[list[str]]:
    return [[cell.strip() for cell in line.strip("|").split(" | ")] for line in table.splitlines()]


@pytest.mark.skipif(not REPORTS, reason="nothing measured yet")
def test_the_readme_is_what_the_reports_say() -> None:
    text = figures.README.read_text(encoding="utf-8")
    assert figures.readme(text, REPORTS) == text, "make readme-figures"


@pytest.mark.parametrize("path", REPORTS, ids=lambda path: path.name)
def test_the_figures_are_drawn_from_the_reports(path: Path) -> None:
    assert Image.open(figures.figure_path(path)).info["Report-SHA256"] == figures.digest(path), "make readme-figures"


def test_the_readme_changes_between_its_marks_alone(source: Path) -> None:
    text = figures.README.read_text()
    changed = figures.readme(text, figures.reports(source.parent))
    assert changed.startswith("# A\n\n" + figures.BEGIN) and changed.endswith(figures.END + "\n\nrest\n")
    assert "old" not in changed and "docs/images/speed-cpu.png" in changed
    assert figures.readme(changed, figures.reports(source.parent)) == changed
    with pytest.raises(ValueError, match="expected one <!-- speed -->"):
        figures.readme("# A\n", figures.reports(source.parent))


def test_every_figure_of_the_table_is_the_reports() -> None:
    report = synthetic()
    head, _, *lines = cells(figures.table(report))
    assert len(lines) == len(
        {tuple(c[key] for key in ("shape_name", "dtype", "formula")) for c in report["comparisons"]}
    )
    modes = {f"against {title}": mode for mode, title in figures.MODES.items()}
    verdicts = set()
    for line in lines:
        cell = dict(zip(head, line, strict=True))

        def same(item: dict[str, Any], cell: dict[str, str] = cell) -> bool:
            return (item["formula"], item["dtype"]) == (cell["formula"], cell["dtype"]) and cell["shape"].startswith(
                item["shape_name"] + " "
            )

        (row,) = (row for row in report["rows"] if same(row) and row["variant"] == cell["ours"])
        assert agrees(cell["time"], row["time_us"]) and agrees(cell["of the ceiling"], row["percent_of_ceiling"])
        for title, mode in modes.items():
            (comparison,) = (c for c in report["comparisons"] if same(c) and c["other"].endswith(mode))
            ratio, _, verdict = cell[title].partition(", ")
            verdicts.add(verdict or ratio.split()[0])
            if comparison["verdict"] == "wrong":
                assert cell[title] == "wrong result"
            else:
                assert agrees(ratio, comparison["ratio"])
                assert (verdict or "faster") == comparison["verdict"]
    assert {"wrong", "slower", "no difference"} <= verdicts


def test_marks_lie_where_the_report_says() -> None:
    from matplotlib.figure import Figure

    report = synthetic()
    axes = Figure().subplots()
    figures.draw_speedups(axes, report)
    drawn = [c for c in report["comparisons"] if c["verdict"] != "wrong"]
    marks = [container.lines[0].get_xdata()[0] for container in axes.containers]
    assert sorted(marks) == sorted(c["ratio"] for c in drawn)
    spans = [segment for container in axes.containers for segment in container.lines[2][0].get_segments()]
    ends = sorted((low, high) for (low, _), (high, _) in spans)
    for found, c in zip(ends, sorted(drawn, key=lambda c: (c["low"], c["high"])), strict=True):
        assert math.isclose(found[0], c["low"]) and math.isclose(found[1], c["high"])
    hollow = [container.lines[0].get_markerfacecolor() for container in axes.containers].count("white")
    assert hollow == [c["verdict"] for c in drawn].count("no difference")


def test_the_command_writes_figures_and_readme(source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.argv", ["figures"])
    (source.parent / "gpu_h100.json").write_text(
        json.dumps({**synthetic(), "setting": {**synthetic()["setting"], "kind": "cuda", "device": "H100"}})
    )
    figures.main()
    for path in (source, source.parent / "gpu_h100.json"):
        assert Image.open(figures.figure_path(path)).info["Report-SHA256"] == figures.digest(path)
    text = figures.README.read_text()
    assert text.index("AMD EPYC") < text.index("speed-cpu.png") < text.index("H100") < text.index("speed-gpu_h100.png")
    assert "\u00a0" not in text
