"""The pictures of a run: nothing is covered, nothing is empty, and a run that diverged has pictures too."""

import re

import numpy as np
import pytest
from matplotlib.figure import Figure

from fdistill import plots, report
from fdistill.compare import _draw_arms, _figure

ROWS = [{"step": step, **{key: value for panel in plots.PANELS for key in panel.curves}}
        for step, value in enumerate((0.9, 0.5, 1.0))]  # fmt: skip
WEIGHT, SIGMA = np.linspace(0.5, 1.5, 40), np.geomspace(0.1, 9, 40)
FIGURES = {
    **{panel.title: lambda axes, panel=panel: plots.curves(axes, panel, ROWS) for panel in plots.PANELS},
    "weights": lambda axes: plots.weights(axes, WEIGHT, "js"),
    "weights_by_sigma": lambda axes: plots.weights_by_sigma(axes, WEIGHT, SIGMA),
    "mode_weights": lambda axes: plots.mode_weights(axes, [("teacher", WEIGHT[:9]), ("student", WEIGHT[-9:])]),
    "log_ratios": lambda axes: plots.log_ratios(axes, WEIGHT, WEIGHT),
}


@pytest.fixture
def drawn(monkeypatch):
    found = []

    class Kept(Figure):
        def __init__(self, *args, **kwargs):
            super().__init__(*args, **kwargs)
            found.append(self)

    monkeypatch.setattr("matplotlib.figure.Figure", Kept)
    return found


def boxes(artists):
    return [artist.get_window_extent() for artist in artists]


@pytest.mark.parametrize("count", [1, 4, 5, 7])
def test_a_grid_shows_its_panels_and_nothing_else(tmp_path, drawn, count):
    kept = {key for panel in plots.PANELS[:count] for key in panel.curves} | {"step"}
    plots.write_curves([{key: row[key] for key in kept} for row in ROWS], tmp_path / "curves.png")
    (figure,) = drawn
    assert [axes.get_title() for axes in figure.axes] == [panel.title for panel in plots.PANELS[:count]]
    assert all(axes.axison and axes.lines for axes in figure.axes)
    rows = {}
    for axes in figure.axes:
        box = axes.get_subplotspec()
        rows.setdefault(box.rowspan.start, []).append(len(box.colspan))
    assert all(sum(spans) == 12 for spans in rows.values())
    assert max(map(len, rows.values())) - min(map(len, rows.values())) <= 1
    for axes in figure.axes:
        (title, legend) = boxes([axes.title, axes.get_legend()])
        assert axes.get_window_extent().y1 <= legend.y0 and legend.y1 <= title.y0


@pytest.mark.parametrize("name", FIGURES)
def test_a_legend_covers_nothing(name, drawn):
    """In the report's size, the legend lies above the axes and within the figure."""
    plots.render(lambda figure: FIGURES[name](figure.subplots()), (4.6, 2.9))
    (figure,) = drawn
    (axes,) = figure.axes
    legend = axes.get_legend().get_window_extent()
    assert legend.y0 >= axes.get_window_extent().y1
    assert legend.x0 >= 0 and legend.x1 <= figure.bbox.x1 and legend.y1 <= figure.bbox.y1
    assert not axes.yaxis.get_offset_text().get_window_extent().overlaps(legend)


@pytest.mark.parametrize("value", [0.0, 1.0])
def test_a_constant_is_not_on_the_frame(value, drawn):
    rows = [{"step": step, "health/effective_sample_size": value} for step in range(3)]
    plots.render(lambda figure: plots.curves(figure.subplots(), plots.PANELS[4], rows), (4, 3))
    bottom, top = drawn[0].axes[0].get_ylim()
    assert bottom == 0 and top > value
    plots.render(lambda figure: plots.weights_by_sigma(figure.subplots(), np.ones(40), SIGMA), (4, 3))
    assert drawn[1].axes[0].get_ylim() == (0, 1.05)


@pytest.mark.parametrize("bad", [np.nan, np.inf, 1e30])
def test_figures_of_a_run_that_diverged(bad, tmp_path, drawn):
    broken = np.full(40, bad)
    part = np.where(np.arange(40) % 2, bad, 1.0)
    for values in (broken, part):
        for draw in (lambda a, v=values: plots.weights(a, v, "js"),
                     lambda a, v=values: plots.weights_by_sigma(a, v, SIGMA),
                     lambda a, v=values: plots.log_ratios(a, v, WEIGHT),
                     lambda a, v=values: plots.log_ratios(a, WEIGHT, v)):  # fmt: skip
            plots.render(lambda figure, draw=draw: draw(figure.subplots()), (4, 3))
    plots.render(lambda f: plots.densities(f, [("p", np.ones((4, 4))), ("q", np.full((4, 4), bad))], 1.0), (4, 3))
    plots.render(lambda f: plots.densities(f, [("q", np.zeros((4, 4)))], 1.0), (4, 3))
    assert plots.tiles(broken.reshape(10, 1, 2, 2), 5).dtype == np.uint8
    rows = [{**row, **{key: bad for key in row if key != "step"}} for row in ROWS]
    plots.write_curves(rows, tmp_path / "curves.png")
    assert ("no finite values" in {text.get_text() for text in drawn[-1].axes[0].texts}) == (bad != 1e30)


# The report's cards.


@pytest.mark.parametrize("columns", [2, 3, 4])
@pytest.mark.parametrize("count", range(1, 13))
def test_rows_of_cards_are_filled(count, columns):
    spans, rows = [plots.span(i, count, columns) for i in range(count)], []
    while spans:
        rows.append(0)
        while spans and rows[-1] < 12:
            rows[-1] += spans.pop(0)
    assert rows == [12] * -(-count // columns)
    assert len({plots.span(i, count, columns) for i in range(count)}) <= 2


def made_report(folder, result, loss=None, **arrays):
    folder.mkdir()
    np.savez(folder / "evaluation.npz", **arrays)
    settings = {"task": "gmm", "steps": 4, "phases": [["student"]], "loss": loss or {"divergence": "js"},
                "mixture": {"spacing": 2.0}}  # fmt: skip
    report.build(folder, settings, {}, result)
    return (folder / "report.html").read_text(encoding="utf-8")


FIGURE_NAMES = ("kl_qp", "on_mode", "mode_tv")
RESULT = {"student": dict.fromkeys(FIGURE_NAMES, 0.5), "floor": dict.fromkeys(FIGURE_NAMES, 0.1), "samples": 9,
          "log_ratio_error": 0.1, "log_ratio_correlation": 0.9, "distillation_seconds": 1.0, "skipped_updates": 0,
          "versions": {"fdkernels": "1", "torch": "2"}}  # fmt: skip
ARRAYS = {"weight": WEIGHT, "sigma": SIGMA, "p": np.ones((4, 4)), "q": np.ones((4, 4)), "log_ratio": WEIGHT,
          "logits": WEIGHT, "modes": np.full(9, 1 / 9), "student_modes": np.full(9, 1 / 9)}  # fmt: skip


def test_no_card_stands_alone(workplace):
    page = made_report(workplace / "run", RESULT, **ARRAYS)
    (workplace / "run" / "log.jsonl").write_text("", encoding="utf-8")
    grids = re.findall(r'<div class="grid">(.*?)\n?(?=<h2>)', page, re.DOTALL)
    cards = [len(re.findall(r'class="card', grid)) for grid in grids]
    assert cards[:3] == [3, 3, 3]  # figures, densities, weights
    for grid in grids:
        for size in ("medium", "wide"):
            spans = list(map(int, re.findall(rf"--{size}: (\d+)", grid)))
            assert sum(spans) % 12 == 0 and (size == "medium" or 12 not in spans)
    assert "diverged" not in page


def test_a_report_of_a_run_without_h(workplace):
    """Score implicit matching: no weights, no ratios."""
    ratios = ("log_ratio_error", "log_ratio_correlation")
    result = {name: figure for name, figure in RESULT.items() if name not in ratios}
    arrays = {name: array for name, array in ARRAYS.items() if name in ("p", "q", "modes", "student_modes")}
    page = made_report(workplace / "run", result, {"kind": "sid", "divergence": "js"}, **arrays)
    assert "with score implicit matching (sid)" in page and "Weights of the modes" in page
    for absent in ("weight h", "Distribution of h", "log ratio", "divergence"):
        assert absent not in page.split("<details")[0], absent


def test_a_report_of_a_run_that_diverged(workplace):
    nulls = {**RESULT, "diverged": True, "student": dict.fromkeys(FIGURE_NAMES), "log_ratio_error": None,
             "log_ratio_correlation": None}  # fmt: skip
    nan = {name: np.full_like(array, np.nan) for name, array in ARRAYS.items()}
    page = made_report(workplace / "run", nulls, **nan)
    assert "The student diverged" in page and "<strong>–</strong>" in page and "None" not in page
    text = report.summary(workplace / "run", nulls)
    assert "diverged" in text and "–" in text and "report: " in text
    assert "report: " not in report.summary(workplace / "elsewhere", RESULT)
    assert "–" in report.summary(workplace / "run", {"student": {"kl_qp": None}, "diverged": True})
    assert made_report(workplace / "bare", {**nulls, "student": None})


def test_numbers_keep_their_width():
    assert [report.number(v, ".2f") for v in (0.126, 1e30, None, float("nan"))] == ["0.13", "1e+30", "–", "–"]


# A comparison.


@pytest.mark.parametrize("count", [1, 12, 40])
def test_a_comparison_of_any_number_of_arms_is_legible(count, tmp_path, drawn):
    arms = {f"squared_hellinger-{i}": [{"student": {"kl_qp": 1.0 + i, "on_mode": 0.5}}] for i in range(count)}
    _figure(arms, tmp_path / "compare.png")
    (figure,) = drawn
    figure.draw_without_rendering()
    names = [label for label in figure.axes[0].get_yticklabels() if label.get_visible()]
    assert [label.get_text() for label in names] == list(arms)
    places = boxes(names)
    assert all(place.x0 >= 0 and place.y0 >= 0 for place in places)
    assert not any(a.overlaps(b) for i, a in enumerate(places) for b in places[:i])
    assert all(place.x1 <= figure.axes[0].get_window_extent().x0 for place in places)


def test_arms_without_figures_or_far_apart(drawn):
    plots.render(lambda figure: _draw_arms(figure.subplots(), [[], [1.0, 2.0], [1e12]]), (4, 3))
    (axes,) = drawn[0].axes
    assert [text.get_text() for text in axes.texts] == ["no finite values"] and axes.get_xscale() == "log"
    plots.render(lambda figure: _draw_arms(figure.subplots(), [[0.3], [0.3 + 1e-8]]), (4, 3))
    low, high = drawn[1].axes[0].get_xlim()
    assert high - low == pytest.approx(0.02)
    assert not drawn[1].axes[0].xaxis.get_offset_text().get_text()


def test_an_arms_error_bar_is_the_standard_deviation(drawn):
    plots.render(lambda figure: _draw_arms(figure.subplots(), [[1.0, 2.0, 3.0], [5.0]]), (4, 3))
    (axes,) = drawn[0].axes
    (bar,) = (c for container in axes.containers for c in container[2])
    assert [tuple(map(tuple, segment)) for segment in bar.get_segments()] == [((1.0, 0.0), (3.0, 0.0))]


def test_a_sample_sheet_shows_few_images_of_each_set(tmp_path, drawn):
    sets = [(title, np.full((100, 1, 8, 8), value)) for title, value in (("dark", -1.0), ("light", 1.0))]
    plots.write_sample_sheet(sets, tmp_path / "samples.png")
    shown = [np.asarray(axes.images[0].get_array()) for axes in drawn[0].axes]
    assert [axes.get_title() for axes in drawn[0].axes] == ["dark", "light"]
    assert [picture.shape for picture in shown] == [(4 * 9 + 1, 4 * 9 + 1)] * 2
    assert shown[0][1, 1] == 0 and shown[1][1, 1] == 255
