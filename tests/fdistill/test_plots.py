"""The pictures of a run."""

from matplotlib.figure import Figure

from fdistill import plots


def test_a_grid_shows_its_panels_and_nothing_else(tmp_path, monkeypatch):
    drawn = []

    class Kept(Figure):
        def __init__(self, *args, **kwargs):
            super().__init__(*args, **kwargs)
            drawn.append(self)

    monkeypatch.setattr("matplotlib.figure.Figure", Kept)
    rows = [{"step": step, "fake/loss": 1.0, "health/relative_gap": 0.5, "health/ratio_mean": 1.0,
             "health/effective_sample_size": 0.9} for step in range(4)]  # fmt: skip
    plots.write_curves(rows, tmp_path / "curves.png")
    assert (tmp_path / "curves.png").exists()
    shown = [axes.get_title() for axes in drawn[0].axes if axes.axison]
    assert shown == [panel.title for panel in plots.shown_panels(rows)] and len(shown) == 4 < len(drawn[0].axes)
