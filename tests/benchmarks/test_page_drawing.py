"""What is drawn on the page lies, by its own scales, where the report says."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from typing import Any

from benchmarks import page, shown
from benchmarks.plots import farthest
from benchmarks.reader import Reader
from tests.benchmarks.reading import Element, number_of, read
from tests.benchmarks.synthetic import REPORTS, one_row

Report = dict[str, Any]
Scale = Callable[[float], float]


def scale(positions: list[float], labels: list[str]) -> Scale:
    """From positions to values, by the outermost of labelled ticks, between which the others have to lie."""
    assert len(positions) == len(labels) >= 2
    values = [number_of(label) for label in labels]
    (first, low), *_, (last, high) = zip(positions, values, strict=True)

    def value(position: float) -> float:
        return low * (high / low) ** ((position - first) / (last - first))

    for position, number in zip(positions, values, strict=True):
        assert math.isclose(value(position), number, rel_tol=0.005)
    return value


def numbers(path: str) -> list[float]:
    return [float(number) for number in re.findall(r"-?[\d.]+", path)]


def plot_of(tree: Element, name: str) -> tuple[Element, Scale, Scale]:
    """The plot, and its scales from its grid lines and their labels."""
    (plot,) = (each for each in tree.all("svg") if each.get("aria-labelledby").startswith(f"{name}-title"))
    found = []
    for axis, at in (("x", 0), ("y", 1)):
        positions = [numbers(line["d"])[at] for line in plot.all("path", with_class=axis)]
        labels = list(plot.all("text", with_class=axis))
        for position, label in zip(positions, labels, strict=True):
            assert abs(float(label[axis]) - position) < 5
        found.append(scale(positions, [label.text for label in labels]))
    return plot, found[0], found[1]


def near(a: float, b: float) -> bool:
    return math.isclose(a, b, rel_tol=0.005)


def check_points(plot: Element, x: Scale, y: Scale, rows: list[Report], x_key: str, wanted: set[int]) -> None:
    points = list(plot.all("a", having="data-row"))
    assert {int(point["data-row"]) for point in points} == wanted and len(points) == len(wanted)
    for point in points:
        row = rows[int(point["data-row"])]
        (use,), (whisker,) = point.all("use"), point.all("path", with_class="whisker")
        assert near(x(float(use["x"])), row[x_key]) and near(y(float(use["y"])), row["time_us"])
        at, low, high = numbers(whisker["d"])
        assert at == float(use["x"]) and near(y(low), row["low_us"]) and near(y(high), row["high_us"])
        assert point.classes[:2] == ["mark", shown.mark(row)] and use["href"] == f"#mark-{shown.mark(row)}"
        assert ("by-calls" in point.classes) == (row["timed_by"] == "wall")
        assert point["href"] == f"#row-{point['data-row']}"
        assert f"rows/{point['data-row']}/time_us" in {source for source, _ in point.sourced}


def test_time_against_bytes(tree: Element, report: Report) -> None:
    plot, x, y = plot_of(tree, "roofline")
    rows = report["rows"]
    wanted = {i for i, row in enumerate(rows) if row["percent_of_ceiling"] is not None}
    check_points(plot, x, y, rows, "min_bytes", wanted)
    dashes = set()
    for dash in plot.all("g", having="data-limit"):
        (path,) = dash.all("path")
        left, at, length = numbers(path["d"])
        row = rows[int(dash["data-limit"])]
        moved = x(left + length / 2)
        assert near(moved, row["min_bytes"]) and near(y(at), row["min_bytes"] / row["ceiling_gb_per_s"] / 1e3)
        dashes.add((row["min_bytes"], row["ceiling_gb_per_s"]))
    assert dashes == {(rows[i]["min_bytes"], rows[i]["ceiling_gb_per_s"]) for i in wanted}
    (line,) = plot.all("polyline")
    x0, y0, x1, y1 = numbers(line["points"])
    for at, height in ((x0, y0), (x1, y1)):
        assert near(y(height), x(at) / report["ceiling"]["gb_per_s"] / 1e3)
    for label in plot.all("text", with_class="label"):
        at = numbers(label["transform"])[0]
        name, dtype = (text for _, text in label.sourced)
        assert any(
            near(x(at), rows[i]["min_bytes"])
            for i in wanted
            if (rows[i]["shape_name"], rows[i]["dtype"]) == (name, dtype)
        )


def test_measured_against_predicted(tree: Element, report: Report) -> None:
    plot, x, y = plot_of(tree, "predictions")
    rows = report["rows"]
    wanted = {i for i, row in enumerate(rows) if row["predicted_us"] and row["percent_of_ceiling"] is not None}
    check_points(plot, x, y, rows, "predicted_us", wanted)
    (line,), (band,) = plot.all("polyline"), plot.all("polygon")
    x0, y0, x1, y1 = numbers(line["points"])
    assert near(x(x0), y(y0)) and near(x(x1), y(y1))
    corners = numbers(band["points"])
    for at, height, factor in zip(corners[::2], corners[1::2], (1.25, 1.25, 0.8, 0.8), strict=True):
        assert near(y(height), factor * x(at))


def test_predictions_that_fail_are_listed(report: Report) -> None:
    rows = report["rows"]
    found = [int(cells[0].source.split("/")[1]) for cells in farthest(Reader(report))]
    worst = [
        max(rows[i]["time_us"] / rows[i]["predicted_us"], rows[i]["predicted_us"] / rows[i]["time_us"]) for i in found
    ]
    assert worst == sorted(worst, reverse=True) and min(worst) > shown.CLOSE
    fit = [
        row
        for row in rows
        if row["ours"] and not row["wrong"] and row["backend"] != "reference" and row["predicted_us"]
    ]
    fit = [row for row in fit if row["percent_of_ceiling"] is not None]
    assert worst[0] == max(shown.off(row) for row in fit)
    assert all(rows[i] in fit for i in found)


def test_bars(tree: Element, report: Report) -> None:
    groups = list(tree.all(with_class="group"))
    assert groups
    for group in groups:
        (ticks,) = group.all(with_class="tick")
        labels = list(ticks.all("span"))
        value = scale([numbers(label["style"])[0] for label in labels], [label.text for label in labels])
        for bar in group.all(with_class="bar"):
            c = report["comparisons"][int(bar["data-comparison"])]
            if c["verdict"] == "wrong":
                assert not list(bar.all("i"))
                continue
            (fill,), (whisker,), (one,) = (bar.all("i", with_class=name) for name in ("fill", "whisker", "one"))
            start, length = numbers(fill["style"])
            ends = sorted((1.0, c["ratio"]))
            assert near(value(start), ends[0]) and near(value(start + length), ends[1])
            start, length = numbers(whisker["style"])
            assert near(value(start), c["low"]) and near(value(start + length), c["high"])
            assert near(value(numbers(one["style"])[0]), 1)
            assert [at["style"] for at in bar.all("i", with_class="at")] == [label["style"] for label in labels]
            assert start >= 0 and start + length <= 100


def test_block_titles_are_their_comparisons(tree: Element, report: Report) -> None:
    for block in tree.all(with_class="block"):
        (title,) = block.all("h4")
        names = {source.split("/")[-1]: text for source, text in title.sourced}
        for bar in block.all(with_class="bar"):
            c = report["comparisons"][int(bar["data-comparison"])]
            assert (names["shape_name"], names["dtype"]) == (c["shape_name"], c["dtype"])
            assert names.get("ours", c["ours"]) == c["ours"]
            row = next(row for row in report["rows"] if row["variant"] == c["ours"]
                       and all(row[key] == c[key] for key in ("op", "formula", "shape_name", "dtype")))  # fmt: skip
            assert names["shape"] == "×".join(map(str, row["shape"]))
            assert ("in cache" in title.text) == (row["input_sets"] == 1)


def test_a_single_row_has_ticks_around_it() -> None:
    tree = read(page.render(one_row()))
    for name in ("roofline", "predictions"):
        plot_of(tree, name)  # asks for two ticks at each axis


def test_ratios_near_one_have_ticks_on_both_sides() -> None:
    report = REPORTS["synthetic cpu"]
    close = [{**c, "ratio": 1.01, "low": 0.99, "high": 1.03} for c in report["comparisons"] if c["ratio"]][:3]
    speedups = page.Speedups(Reader({**report, "comparisons": close}))
    assert {"0.5", "1", "2"} <= {text for _, text in speedups.ticks}
