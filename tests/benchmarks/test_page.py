"""Every number on the benchmark's page is the report's, at the path that it names. Every mark of a chart lies where the
report says, and leads to its row."""

from __future__ import annotations

import html
import json
import math
import re
from collections.abc import Callable

import pytest
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from benchmarks.report import charts, page
from benchmarks.report.page import value_at
from benchmarks.report.reading import Report, row_of
from benchmarks.report.shown import COLOURS, MARKS, mark
from tests.benchmarks.conftest import REPORTS
from tests.benchmarks.made_up import agrees, number_of


def sourced(text: str) -> list[tuple[str, str]]:
    """(path, text) of each figure on the page."""
    found = re.findall(r'<span data-from="([^"]*)">([^<]*)</span>', text)
    return [(html.unescape(path), html.unescape(shown)) for path, shown in found]


@pytest.fixture(scope="module")
def text(report: Report) -> str:
    return page.render(report)


def test_every_number_shown_is_the_reports_and_has_its_path(text: str, report: Report) -> None:
    assert len(sourced(text)) > 10 * len(report["rows"])
    for path, said in sourced(text):
        value = value_at(report, path)
        if isinstance(value, list):
            assert said in ("×".join(map(str, value)), ", ".join(map(str, value)))
        elif isinstance(value, dict):
            assert said == ", ".join(f"{key} {each}" for key, each in value.items())
        elif isinstance(value, bool) or value is None:
            assert said == {True: "yes", False: "no", None: "–"}[value]
        elif isinstance(value, str):
            mode = value.replace("compile default", "compile").replace("compile max-autotune-no-cuda", "max-autotune")
            assert said in (value, mode.removesuffix("graphs"), value[:10], value[:7], value[:7] + "-dirty")
        else:
            assert agrees(said, value), (path, said, value)
    rest = re.sub(r'(?s)<(svg|script|style)\b.*?</\1>|<dt>.*?</dt>|<span data-from="[^"]*">[^<]*</span>', "", text)
    found = re.search(r".*\d.*", html.unescape(re.sub(r"(?s)<[^>]*>", "", rest)))
    assert not found, found


def test_a_line_of_the_table_is_its_row_and_sorts_by_what_it_shows(text: str, report: Report) -> None:
    rows, comparisons, said = report["rows"], report["comparisons"], set()
    lines = re.findall(r'(?s)<tr id="row-.*?</tr>', text)
    assert len(lines) == len(rows)
    for i, line in enumerate(lines):
        assert line.startswith(f'<tr id="row-{i}"') and ("wrong:" in line) == rows[i]["wrong"]
        for value, cell in re.findall(r'(?s)<t[dh][^>]* data-value="([^"]*)">(.*?)</t[dh]>', line):
            for path, _ in sourced(cell):
                table, number, _ = path.split("/")
                c = comparisons[int(number)] if table == "comparisons" else None
                assert (row_of(report, c, "other") if c else int(number)) == i
                assert not c or (c["verdict"] in cell and ("by plain calls" in cell) == (c["timed_by"] == "wall"))
            said |= {path for path, _ in sourced(cell)}
            for path, _ in sourced(cell)[:1]:
                at = value_at(report, path)
                assert html.unescape(value) == ("" if at is None else str(at))
    for n, c in enumerate(comparisons):
        wanted = {f"comparisons/{n}/{key}" for key in ("ratio", "low", "high")}
        assert wanted <= said or c["verdict"] == "wrong" or c["ours"] == "reference"
    keys = {key for row in rows for key in row if row[key] is not None} - {"op", "ours", "backend", "mode", "wrong"}
    keys -= {"predicted_us", "graphs"}  # older reports have these; the page leaves them out
    assert keys <= {path.split("/")[2] for path in said if path.startswith("rows")}


def test_the_report_is_embedded_and_nothing_is_fetched(text: str, report: Report) -> None:
    (embedded,) = re.findall(r'(?s)<script type="application/json" id="report">(.*?)</script>', text)
    assert json.loads(embedded) == report
    assert not re.search(r"url\((?!#)|@import|(?<!xmlns=\")(?<!xlink=\")https?://|fetch\(|XMLHttpRequest", text)
    targets = set(re.findall(r'href="#(row-\d+)"', text))
    assert targets and targets <= set(re.findall(r'\bid="(row-\d+)"', text))


def test_a_report_may_lack_everything_and_cannot_break_the_page() -> None:
    whole = REPORTS["made up"]
    empty = {"setting": {"device": "</script><script>alert(1)</script>"}, "rows": [], "comparisons": [], "skipped": [],
             "method": [], "formulas": {}, "ceiling": dict.fromkeys(whole["ceiling"], None)}  # fmt: skip
    assert "<svg" not in (text := page.render(empty)) and "<script>alert" not in text


def drawn(draw: Callable[[Axes, Report], None], report: Report) -> tuple[Axes, dict[int, list[tuple[float, float]]]]:
    """The axes, and the points of each row that a mark leads to. Asserts that each row has its own kind of mark."""
    axes = Figure().subplots()
    draw(axes, report)
    points: dict[int, list[tuple[float, float]]] = {}
    for marks in (each for each in axes.collections if each.get_urls() != [None]):
        for (x, y), url in zip(marks.get_offsets().tolist(), marks.get_urls(), strict=True):
            i = int(url.removeprefix("#row-"))
            assert str(marks.get_label()).split(", by plain calls")[0] == MARKS[mark(report["rows"][i])].text
            points.setdefault(i, []).append((x, y))
    return axes, points


def test_speedups(report: Report) -> None:
    axes, points = drawn(charts.speedups, report)
    compared = [c for c in report["comparisons"] if c["ours"] != "reference"]
    right = [c for c in compared if c["verdict"] != "wrong"]
    found = sorted((row, x) for row, here in points.items() for x, _ in here)
    assert found == sorted((row_of(report, c, "other"), c["ratio"]) for c in right)
    lines = [segment for each in axes.collections if hasattr(each, "get_segments") for segment in each.get_segments()]
    assert sorted((low[0], high[0]) for low, high in lines) == sorted((c["low"], c["high"]) for c in right)
    ticks = [label.get_text() for label in axes.get_yticklabels()]
    for c in right:  # each lies on the line of its case, below its formula
        at = {round(y) for x, y in points[row_of(report, c, "other")] if x == c["ratio"]}
        case, below = f"{c['shape_name']} {c['dtype']}", ticks.index(c["formula"])
        assert any(y > below and ticks[y].startswith(case) for y in at)
    low, high = axes.get_xlim()
    assert low < 0.5 and high > 2 and all(low < c["low"] and c["high"] < high for c in right)
    assert [number_of(axes.xaxis.get_major_formatter()(x, 0)) for x in axes.get_xticks()] == list(axes.get_xticks())
    notes = " ".join(text.get_text() for text in axes.texts)
    for c in (c for c in compared if c["verdict"] == "wrong"):
        ours = report["rows"][row_of(report, c, "ours")]["wrong"]
        assert ("ours wrong" if ours else "eager wrong" if c["other"].endswith("eager") else "compile wrong") in notes


def test_roofline(report: Report) -> None:
    axes, points = drawn(charts.roofline, report)
    rows = [row for row in report["rows"] if row["percent_of_ceiling"] is not None]
    assert points == {report["rows"].index(row): [(row["min_bytes"], row["time_us"])] for row in rows}
    lines = {str(line.get_label()): set(zip(line.get_xdata(), line.get_ydata(), strict=True)) for line in axes.lines}
    limits = {(row["min_bytes"], row["min_bytes"] / row["ceiling_gb_per_s"] / 1e3) for row in rows}
    assert lines["limit at this size"] == limits
    ceiling = report["ceiling"]
    for moved, us in lines[f"{ceiling['name']} on {ceiling['measured_on']}"]:
        assert math.isclose(us, moved / ceiling["gb_per_s"] / 1e3)
    assert all(number_of(axis.get_major_formatter()(2e4, 0)) == 2e4 for axis in (axes.xaxis, axes.yaxis))


@pytest.mark.parametrize("name", charts.CHARTS)
def test_svg_has_links_and_the_colours_of_the_page(report: Report, name: str) -> None:
    text = charts.svg(report, name, "A title")
    assert text.startswith('<svg role="img" aria-label="A title" ') and text == charts.svg(report, name, "A title")
    assert len(re.findall(r'xlink:href="#row-\d+"', text)) > 10
    assert set(re.findall(r"var\(--([\w-]+)\)", text)) <= set(COLOURS) and not re.search(r"#[0-9a-f]{6}\b", text)
    assert len({light for light, _ in COLOURS.values()}) == len(COLOURS)
