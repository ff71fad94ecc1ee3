"""The README's figures and tables of speed, and the docs' tables of bytes, are what reports and plans say."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from benchmarks.report import charts, figures, shown, traffic
from benchmarks.report.comparisons import changed
from benchmarks.report.reading import load
from tests.benchmarks.made_up import agrees
from tests.benchmarks.made_up import report as made_up
from tests.benchmarks.test_page import row_of

MEASURED = figures.reports(figures.RESULTS)
Report = dict[str, Any]


@pytest.mark.parametrize("path", traffic.PAGES, ids=lambda path: path.name)
def test_the_docs_are_up_to_date(path: Path) -> None:
    page = path.read_text()
    assert traffic.filled(page) == page, "run `python -m benchmarks.report.traffic --write`"
    assert "| CIFAR 64×3×32×32 | bf16 |" in page


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
    shown_rows = {row_of(report, c, "ours") for c in report["comparisons"] if c["ours"] != "reference"}
    assert len(lines) == len(shown_rows)
    for line in (dict(zip(head, cells, strict=True)) for cells in lines):
        (row,) = (report["rows"][i] for i in shown_rows if line["shape"].split()[0] == report["rows"][i]["shape_name"]
                  and (line["formula"], line["dtype"], line.get("ours", "native"))
                  == tuple(report["rows"][i][key] for key in ("formula", "dtype", "variant")))  # fmt: skip
        expected, by_calls = [], row["timed_by"] == "wall"
        if not row["wrong"]:
            expected.append([row["time_us"]])
            no_limit = row["percent_of_ceiling"] is None or by_calls
            limit = [row[key] for key in ("gb_per_s", "percent_of_ceiling", "ceiling_gb_per_s")]
            expected.append([None] if no_limit else limit)
            assert ("†" in line["time"]) == by_calls
        for mode, title in ((mode, f"against {shown.MARKS[name].text}") for mode, name in shown.MODES.items()):
            here = [c for c in report["comparisons"] if c["other"].endswith(mode)
                    and row_of(report, c, "ours") == report["rows"].index(row)]  # fmt: skip
            for c in here if not row["wrong"] else ():
                assert ("wrong result" in line[title]) == (c["verdict"] == "wrong")
                assert ("slower" in line[title], "†" in line[title]) == (
                    c["verdict"] == "slower",
                    c["timed_by"] == "wall",
                )
                expected += [[c["ratio"], c["low"], c["high"]]] if c["ratio"] else []
        cells = [cell for title, cell in line.items() if title not in ("formula", "shape", "dtype", "ours")]
        said = [
            re.findall(r"\d[\d.,]*(?<![.,])(?:e-\d+)?(?: µs| ms| s\b)?|^–$", cell)
            for cell in cells
            if "wrong" not in cell
        ]
        said = [numbers for numbers in said if not row["wrong"] and numbers]
        assert len(said) == len(expected)
        assert all(agrees(text, value) for cell, values in zip(said, expected, strict=True)
                   for text, value in zip(cell, values, strict=True)), (line, expected)  # fmt: skip


def test_the_command_writes_figures_and_readme(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, path in {"ROOT": "", "RESULTS": "benchmarks/results", "IMAGES": "docs/images"}.items():
        (tmp_path / path).mkdir(parents=True, exist_ok=True)
        monkeypatch.setattr(figures, name, tmp_path / path)
    monkeypatch.setattr(figures, "README", readme := tmp_path / "README.md")
    monkeypatch.setattr("sys.argv", ["figures"])
    readme.write_text(f"# A\n\n{figures.BEGIN}old\n{figures.END}\n\nrest\n")
    with pytest.raises(SystemExit, match="neither cpu.json nor"):
        figures.main()
    sources = [figures.RESULTS / name for name in ("cpu.json", "gpu_h100.json")]
    for path, kind in zip(sources, ("cpu", "cuda"), strict=True):
        path.write_text(json.dumps(made_up(kind)))
    figures.main()
    assert all(Image.open(figures.figure_path(p)).info["Drawn-From-SHA256"] == charts.digest(p) for p in sources)
    text = readme.read_text()
    assert (
        text.startswith("# A\n\n" + figures.BEGIN) and text.endswith(figures.END + "\n\nrest\n") and "old" not in text
    )
    assert text.index("### AMD") < text.index("speed-cpu.png") < text.index("### H100") < text.index("speed-gpu_h100")


def test_a_second_run_reproduces_the_first() -> None:
    """Of the same commit."""
    runs = [load(figures.RESULTS / name) for name in ("cpu.json", "cpu_again.json")]
    assert len({run["setting"]["commit"] for run in runs}) == 1
    for old, new in (runs, runs[::-1]):
        ours = sum(row["ours"] for row in new["rows"])
        assert [change.verdict for change in changed(old, new)] == ours * ["no difference"]
