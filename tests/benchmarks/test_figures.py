"""The README's figures and tables of speed are what the reports in benchmarks/results say."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from benchmarks import drawings, figures, shown
from benchmarks.comparisons import changed, load
from benchmarks.setting import is_busy
from tests.benchmarks.reading import agrees, number_of, row_of
from tests.benchmarks.synthetic import synthetic

MEASURED = figures.reports(figures.RESULTS)
Report = dict[str, Any]


@pytest.fixture
def source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A project with a report of its own."""
    for name, path in {"ROOT": "", "RESULTS": "benchmarks/results", "IMAGES": "docs/images"}.items():
        (tmp_path / path).mkdir(parents=True, exist_ok=True)
        monkeypatch.setattr(figures, name, tmp_path / path)
    monkeypatch.setattr(figures, "README", tmp_path / "README.md")
    (tmp_path / "README.md").write_text(f"# A\n\n{figures.BEGIN}old\n{figures.END}\n\nrest\n")
    monkeypatch.setattr("sys.argv", ["figures"])
    path = tmp_path / "benchmarks/results/cpu.json"
    path.write_text(json.dumps(synthetic()))
    return path


def cells(table: str) -> list[dict[str, str]]:
    lines = table.replace("\u00a0", " ").splitlines()
    head, _, *lines = [[cell.strip() for cell in line.strip("|").split(" | ")] for line in lines]
    return [dict(zip(head, line, strict=True)) for line in lines]


@pytest.mark.skipif(not MEASURED, reason="nothing measured yet")
def test_the_readme_is_what_the_reports_say() -> None:
    text = figures.README.read_text(encoding="utf-8")
    assert figures.readme(text, MEASURED) == text, "make readme-figures"


@pytest.mark.parametrize("path", MEASURED, ids=lambda path: path.name)
def test_the_figures_are_drawn_from_the_reports(path: Path) -> None:
    assert Image.open(figures.figure_path(path)).info["Drawn-From-SHA256"] == drawings.digest(path), (
        "make readme-figures"
    )


def test_the_readme_changes_between_its_marks_alone(source: Path) -> None:
    text = figures.README.read_text()
    changed = figures.readme(text, figures.reports(source.parent))
    assert changed.startswith("# A\n\n" + figures.BEGIN) and changed.endswith(figures.END + "\n\nrest\n")
    assert "old" not in changed and "docs/images/speed-cpu.png" in changed
    assert figures.readme(changed, figures.reports(source.parent)) == changed
    with pytest.raises(ValueError, match="expected one <!-- speed -->"):
        figures.readme("# A\n", figures.reports(source.parent))


def test_every_figure_of_the_table_is_the_reports(report: Report) -> None:
    lines = cells(figures.table(report))
    ours = {c["ours"] for c in report["comparisons"]} - {"reference"}
    case = ("op", "shape_name", "dtype", "formula", "ours")
    assert len(lines) == len({tuple(c[key] for key in case) for c in report["comparisons"] if c["ours"] in ours})
    assert ("ours" in lines[0]) == (len(ours) > 1)
    modes = {f"against {shown.MARKS[name].text}": mode for mode, name in shown.MODES.items()}
    for line in lines:
        (row,) = (
            row
            for row in report["rows"]
            if (row["formula"], row["dtype"], row["variant"])
            == (line["formula"], line["dtype"], line.get("ours", "native"))
            and line["shape"] == f"{row['shape_name']} {'×'.join(map(str, row['shape']))}"
        )
        bandwidth, by_calls = line["bandwidth, of its limit"], row["timed_by"] == "wall"
        if row["wrong"]:
            assert line["time"] == bandwidth == "**wrong result**"
        else:
            assert agrees(line["time"].removesuffix(" †"), row["time_us"])
            assert line["time"].endswith(" †") == by_calls
            assert (bandwidth == "–") == (row["percent_of_ceiling"] is None or by_calls)
        if bandwidth not in ("–", "**wrong result**"):
            reached, part, limit = re.split(r" GB/s, | % of ", bandwidth)
            assert agrees(reached, row["gb_per_s"])
            assert agrees(part, row["percent_of_ceiling"]) and agrees(limit, row["ceiling_gb_per_s"])
        here = [c for c in report["comparisons"] if row_of(report, c, "ours") == report["rows"].index(row)]
        compared = {report["rows"][row_of(report, c, "other")]["mode"]: c for c in here}
        for title, mode in modes.items():
            if title in line:
                check_ratio(line[title], compared.get(mode), row["wrong"])
        assert set(compared) <= {mode for title, mode in modes.items() if title in line}


def check_ratio(text: str, comparison: Report | None, ours_wrong: bool) -> None:
    if comparison is None or ours_wrong:
        assert text == "–"
        return
    if comparison["verdict"] == "wrong":
        assert text == "wrong result"
        return
    found = re.fullmatch(r"(.+) × \((.+)–(.+)\)(?:, (slower|no difference))?( †)?", text)
    assert found, text
    for shown_number, key in zip(found.groups()[:3], ("ratio", "low", "high"), strict=True):
        assert agrees(shown_number, comparison[key]), (text, key)
    assert (found[4] or "faster") == comparison["verdict"]
    assert bool(found[5]) == (comparison["timed_by"] == "wall")


def test_every_number_of_the_section_is_the_reports(report: Report) -> None:
    text = figures.section(report, figures.RESULTS / "cpu.json")
    setting, ceiling = report["setting"], report["ceiling"]
    found = re.search(r": ([\d,.]+) GB/s on (.+?); in the table", text)
    assert found and math.isclose(number_of(found[1]), ceiling["gb_per_s"], rel_tol=0.005)
    assert found[2] == ceiling["measured_on"]
    assert text.startswith(f"### {setting['device']}")
    hash_, _, dirty = setting["commit"].partition("-")
    assert f"commit {hash_[:7]}{'-' + dirty if dirty else ''}, {setting['date'][:10]}" in text
    known = [
        setting["device"],
        f"{setting['threads']} threads",
        f"torch {setting['torch']}",
        hash_[:7],
        setting["date"][:10],
    ]
    known += [f"CUDA {setting['cuda']}", f"driver {setting['driver']}", ceiling["name"].capitalize(), "95 % interval"]
    rest = text.partition("\n| ")[0].replace(found[0], "")
    for part in known:
        rest = rest.replace(part, "")
    assert not re.search(r"\d", rest), rest
    by_calls = any(c["timed_by"] == "wall" and c["ours"] != "reference" for c in report["comparisons"])
    assert ("† By plain calls" in text) == by_calls
    assert ("graph replays" in text) == (setting["kind"] == "cuda")
    assert "\u00a0" not in text


def test_speedups_lie_where_the_report_says(report: Report) -> None:
    from matplotlib.figure import Figure

    axes = Figure().subplots()
    found = figures.cases(report)
    drawings.draw_speedups(axes, report, found)
    drawn = [c for _, compared in found.values() for c in compared.values() if c["verdict"] != "wrong"]
    containers = list(axes.containers)
    assert len(containers) == len(drawn)
    for container, c in zip(containers, drawn, strict=True):
        line, _, (bars,) = container.lines
        ((low, _), (high, _)) = bars.get_segments()[0]
        assert line.get_xdata()[0] == c["ratio"]
        assert math.isclose(low, c["low"]) and math.isclose(high, c["high"])
        mark = shown.MARKS[shown.mark(report["rows"][row_of(report, c, "other")])]
        assert line.get_marker() == mark.marker and line.get_color() == drawings.LIGHT[mark.colour]
        assert line.get_markerfacecolor() == line.get_color() and line.get_markersize() > 3
        y = round(line.get_ydata()[0])
        name = axes.get_yticklabels()[y].get_text().replace("\n", " ")
        assert name.startswith(f"{c['formula']} · {c['shape_name']} {c['dtype']}")
    ticks = [float(value) for value in axes.get_xticks()]
    assert min(ticks) <= 0.5 and max(ticks) >= 2
    assert [axes.xaxis.get_major_formatter()(tick, 0) for tick in ticks] == [f"{tick:g} ×" for tick in ticks]
    low, high = axes.get_xlim()
    assert all(low <= c["low"] and c["high"] <= high for c in drawn)
    notes = " ".join(text.get_text() for text in axes.texts)
    wrong = [c for _, compared in found.values() for c in compared.values() if c["verdict"] == "wrong"]
    for c in wrong:
        ours = report["rows"][row_of(report, c, "ours")]["wrong"]
        assert ("ours wrong" if ours else "eager wrong" if c["other"].endswith("eager") else "compile wrong") in notes
    assert ("plain calls" in notes) == any(c["timed_by"] == "wall" for c in drawn)


def test_the_roofline_lies_where_the_report_says(report: Report) -> None:
    from matplotlib.figure import Figure

    axes = Figure().subplots()
    drawings.draw_roofline(axes, report)
    rows = [row for row in report["rows"] if row["percent_of_ceiling"] is not None]
    lines = {line.get_label(): line for line in axes.lines}
    assert len(lines) == len(axes.lines)

    def points(line: Any) -> list[tuple[float, float]]:
        return sorted(zip(line.get_xdata(), line.get_ydata(), strict=True))

    count = 0
    for name, mark in shown.MARKS.items():
        for by_calls, more in ((False, ""), (True, ", by plain calls")):
            here = [row for row in rows if shown.mark(row) == name and (row["timed_by"] == "wall") == by_calls]
            line = lines.pop(mark.text + more, None)
            assert (line is None) == (not here)
            if line is not None:
                assert points(line) == sorted((row["min_bytes"], row["time_us"]) for row in here)
                assert line.get_markersize() > 3 and (line.get_alpha() < 1) == by_calls
                hollow = line.get_markerfacecolor() != line.get_color()
                assert hollow == (name == "reference")
                count += len(here)
    assert count == len(rows)
    limit = points(lines.pop("limit at this size"))
    assert limit == sorted({(row["min_bytes"], row["min_bytes"] / row["ceiling_gb_per_s"] / 1e3) for row in rows})
    ((label, ceiling),) = lines.items()
    assert report["ceiling"]["name"] in label and report["ceiling"]["measured_on"] in label
    for moved, us in points(ceiling):
        assert math.isclose(us, moved / report["ceiling"]["gb_per_s"] / 1e3)
    for axis in (axes.xaxis, axes.yaxis):
        assert math.isclose(number_of(axis.get_major_formatter()(2e4, 0)), 2e4)
    for text in axes.texts:
        at = [row for row in rows if row["ours"] and text.xy in limit and text.xy[0] == row["min_bytes"]]
        assert text.get_text() in {f"{row['shape_name']} {row['dtype']}" for row in at}


def test_the_command_writes_figures_and_readme(source: Path) -> None:
    (source.parent / "gpu_h100.json").write_text(json.dumps(synthetic("cuda")))
    figures.main()
    for path in (source, source.parent / "gpu_h100.json"):
        image = Image.open(figures.figure_path(path))
        assert image.info["Drawn-From-SHA256"] == drawings.digest(path)
        assert image.width <= 1300
    text = figures.README.read_text()
    assert (
        text.index("### AMD EPYC") < text.index("speed-cpu.png") < text.index("### H100") < text.index("speed-gpu_h100")
    )


def test_the_command_refuses_what_it_cannot_show(source: Path) -> None:
    source.write_text(json.dumps({**synthetic(), "comparisons": []}))
    with pytest.raises(SystemExit, match="cpu.json: nothing of ours is compared"):
        figures.main()
    source.unlink()
    with pytest.raises(SystemExit, match="neither cpu.json nor"):
        figures.main()


def test_an_incomplete_report_has_dashes(source: Path) -> None:
    report = synthetic()
    report["ceiling"] |= {"gb_per_s": None, "low": None, "high": None}
    for row in report["rows"]:
        if row["shape_name"] == "Wan":
            row |= {"time_us": None, "low_us": None, "high_us": None, "gb_per_s": None}
    source.write_text(json.dumps(report))
    figures.main()
    assert "): – on Wan fp32" in figures.README.read_text()


def test_a_second_run_reproduces_the_first():
    """Of the same commit, on a machine that did nothing else."""
    runs = [load(figures.RESULTS / name) for name in ("cpu.json", "cpu_again.json")]
    assert len({run["setting"]["commit"] for run in runs}) == 1 and "dirty" not in runs[0]["setting"]["commit"]
    assert not any(is_busy(run["setting"]) for run in runs)
    for old, new in (runs, runs[::-1]):
        verdict = changed(old, new, 0.15)
        assert verdict.times_compared and verdict.compared == sum(row["ours"] for row in new["rows"])
        assert verdict.changes == []
