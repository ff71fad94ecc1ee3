"""The README's rows of speed, docs/speed.md, and the docs' tables of bytes are what reports and plans say."""

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


def test_the_pages_are_what_the_reports_say() -> None:
    assert len(MEASURED) >= 2
    for page in (figures.README, figures.PAGE):
        assert figures.filled(page, MEASURED) == page.read_text(encoding="utf-8"), "make figures"
    for path in MEASURED:
        drawn_from = Image.open(figures.figure_path(path)).info["Drawn-From-SHA256"]
        assert drawn_from == charts.digest(path), "make figures"


def test_the_readmes_rows_are_the_reports() -> None:
    _, _, *lines = (line.strip("| ").split(" | ") for line in figures.few_rows(MEASURED).splitlines())
    for (name, *case), line in zip(figures.FEW, lines, strict=True):
        report = MEASURED[figures.RESULTS / f"{name}.json"]
        rows = [row for row in report["rows"] if [row[key] for key in ("formula", "shape_name", "dtype")] == case]
        ours, eager, compiled = (
            next(row for row in rows if row[key] == value)
            for key, value in (("variant", "native"), ("mode", "eager"), ("mode", "compile default"))
        )
        by_calls = "†" in line[2]
        assert by_calls == (eager["timed_by"] == "wall" != ours["timed_by"]) and len({"†" in v for v in line[2:5]}) == 1
        for text, row in zip(line[2:5], (ours, eager, compiled), strict=True):
            assert agrees(text.removesuffix(figures.BY_CALLS), row["wall_us" if by_calls else "time_us"])
        for text, row in zip(line[5:], (ours, eager, compiled), strict=True):
            number, unit = text.split()
            assert unit == "MiB" and agrees(number, row["extra_bytes"] / 2**20)


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


def test_the_command_writes_figures_and_pages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[tuple[str, str]] = []
    monkeypatch.setattr(charts, "png", lambda report, source, path: drawn.append((source.name, path.name)))
    for name in ("README", "PAGE"):
        monkeypatch.setattr(figures, name, tmp_path / f"{name}.md")
        getattr(figures, name).write_text(f"# A\n\n{figures.BEGIN}old\n{figures.END}\n\nrest\n")
    monkeypatch.setattr(figures, "figure_path", lambda source: tmp_path / f"images/speed-{source.stem}.png")
    figures.main()
    assert drawn == [(path.name, f"speed-{path.stem}.png") for path in MEASURED]
    readme, page = figures.README.read_text(), figures.PAGE.read_text()
    for text in (readme, page):
        assert text.startswith("# A\n\n" + figures.BEGIN) and text.endswith(figures.END + "\n\nrest\n")
        assert "old" not in text
    assert page.index("### Intel") < page.index("(images/speed-cpu.png)") < page.index("### NVIDIA")
    assert readme.count("\n| `") == len(figures.FEW) and "###" not in readme
    figures.PAGE.write_text(f"# A\n\n{figures.BEGIN}")
    with pytest.raises(ValueError, match=r"PAGE.md: expected <!-- speed --> … <!-- end -->"):
        figures.filled(figures.PAGE, MEASURED)


def test_a_second_run_reproduces_the_first() -> None:
    """Two runs of the same commit."""
    runs = [load(figures.RESULTS / name) for name in ("cpu.json", "cpu_again.json")]
    assert len({run["setting"]["commit"] for run in runs}) == 1
    for old, new in (runs, runs[::-1]):
        ours = sum(row["ours"] for row in new["rows"])
        assert [change.verdict for change in changed(old, new)] == ours * ["no difference"]
