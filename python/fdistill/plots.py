"""Figures: as PNG files, or for the report as SVG in a light and a dark color scheme."""

from __future__ import annotations

import io
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Array = NDArray[Any]
Rows = Sequence[dict[str, Any]]

COLOURS = ("#3b7dd8", "#e0703a", "#3a9d6e", "#9a62c7", "#c9a227", "#d1495b", "#5f9ea0", "#8d6e63", "#7a8c2e")
# Colors of (text, lines) in the light scheme, then in the dark one.
THEMES = (("#20242b", "#d9dde3"), ("#e3e6ea", "#3a414c"))
LEGEND_ROOM = 20  # points between the axes and their title


class Panel(NamedTuple):
    """One set of curves: what it shows, how to read it, and which logged values it plots."""

    title: str
    reading: str
    curves: dict[str, str]
    log: bool = False


PANELS = (
    Panel("Relative gap", "Distance of the scores as a part of the student's error: falls, then settles above zero.",
          {"health/relative_gap": "mean|f−τ| / mean|x−τ|"}),
    Panel("Gradient norms", "Before the clip. Steady is healthy; spikes are not.",
          {"student/grad_norm": "student", "fake/grad_norm": "fake score", "discriminator/grad_norm": "discriminator"},
          True),
    Panel("Discriminator accuracy", "0.5 is chance: then h says nothing. Above 0.9 the ratio saturates.",
          {"discriminator/accuracy_fake": "on student samples", "discriminator/accuracy_real": "on data",
           "discriminator/accuracy_pairs": "on pairs"}),
    Panel("Weight h", "Over the batch, before its mean is divided out: the spread is what the divergence adds.",
          {"health/weight_max": "max", "health/weight_mean": "mean", "health/weight_min": "min"}),
    Panel("Effective sample size", "(Σh)² / (B·Σh²): the part of the batch that carries the gradient.",
          {"health/effective_sample_size": "of the batch"}),
    Panel("Density ratio", "Mean of r before the normalizer (1 would be perfect) and the part clamped to ratio_range.",
          {"health/ratio_mean": "mean r", "health/clip_fraction": "clamped"}),
    Panel("Losses", "The score-difference loss says little by its value; the fake score's should not drift up.",
          {"student/score_loss": "score difference", "fake/loss": "fake score", "discriminator/loss": "discriminator"},
          True),
)  # fmt: skip


def render(draw: Callable[[Figure], None], size: tuple[float, float], path: Path | None = None) -> tuple[bytes, bytes]:
    """Draw a new figure: write a PNG to path, or without a path return an SVG for light pages and one for dark ones."""
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    text, line = THEMES[0]
    style: dict[Any, Any] = {
        "text.color": text, "axes.labelcolor": text, "axes.titlecolor": text, "xtick.color": text, "ytick.color": text,
        "axes.edgecolor": line, "grid.color": line, "axes.grid": True, "axes.axisbelow": True, "grid.linewidth": 0.6,
        "axes.facecolor": "none", "figure.facecolor": "white" if path else "none", "font.size": 9,
        "legend.frameon": False, "legend.fontsize": 8, "axes.spines.top": False, "axes.spines.right": False,
        "axes.titlesize": 10, "axes.titleweight": "bold", "svg.hashsalt": "fdistill",
    }  # fmt: skip
    with rc_context(style):
        figure = Figure(figsize=size, layout="constrained")
        draw(figure)
        if path:
            figure.savefig(path, dpi=150)
            return b"", b""
        buffer = io.BytesIO()
        figure.savefig(buffer, format="svg", metadata={"Date": None})
    light = dark = buffer.getvalue()
    for ours, theirs in zip(*THEMES, strict=True):
        dark = dark.replace(ours.encode(), theirs.encode())
    return light, dark


def span(index: int, count: int, columns: int) -> int:
    """How many of a grid's twelve columns the card or panel `index` of `count` takes. Each row fills the width with at
    most `columns` cards; the numbers of cards per row differ by at most one."""
    rows = -(-count // columns)
    fewest, longer = divmod(count, rows)
    return 12 // (fewest + (index < longer * (fewest + 1)))


def legend(axes: Axes) -> None:
    """Draw the legend above the axes, below their title: inside, it would cover some run's data. It is on the right,
    because an axis of large values has its exponent on the left."""
    handles, labels = axes.get_legend_handles_labels()
    if handles:
        axes.legend(handles, labels, loc="lower right", bbox_to_anchor=(1, 1), ncols=len(labels), borderpad=0.2,
                    borderaxespad=0.2, handlelength=1.4, columnspacing=1.2)  # fmt: skip


def from_zero(axes: Axes) -> None:
    """Start the y axis at zero and leave room above the data, also above a constant (h of reverse KL)."""
    top = axes.dataLim.y1
    axes.set_ylim(0, 1.05 * top if top > 0 else 1.0)


def nothing(axes: Axes) -> None:
    """Draw words in place of a picture: a run that diverged has no finite values."""
    axes.set(xticks=[], yticks=[])
    axes.text(0.5, 0.5, "no finite values", transform=axes.transAxes, ha="center", va="center")


def finite(*columns: Array) -> list[Array]:
    """The rows in which every column is finite."""
    kept = np.logical_and.reduce([np.isfinite(column) for column in columns])
    return [column[kept] for column in columns]


def curves(axes: Axes, panel: Panel, rows: Rows) -> None:
    """A panel's logged values over the iterations, smoothed by a running median, with the raw ones behind."""
    for colour, (key, label) in zip(COLOURS, panel.curves.items(), strict=False):
        points = [(row["step"], row[key]) for row in rows if isinstance(row.get(key), float)]
        points = [(step, value) for step, value in points if math.isfinite(value)]
        if not points:
            continue
        steps, values = (np.array(v) for v in zip(*points, strict=True))
        width = max(1, len(values) // 25)
        smooth = [np.median(values[max(0, i - width) : i + width + 1]) for i in range(len(values))]
        axes.plot(steps, values, color=colour, linewidth=0.8, alpha=0.3)
        axes.plot(steps, smooth, color=colour, linewidth=1.8, label=label)
    if panel.log and axes.lines:
        axes.set_yscale("log")
    elif axes.lines:
        from_zero(axes)
    axes.set_xlabel("iteration")
    legend(axes)


def shown_panels(rows: Rows) -> list[Panel]:
    keys = {key for row in rows for key, value in row.items() if isinstance(value, float) and math.isfinite(value)}
    return [panel for panel in PANELS if keys & panel.curves.keys()]


def write_curves(rows: Rows, path: Path) -> None:
    panels = shown_panels(rows)
    lines = max(1, math.ceil(len(panels) / 3))

    def draw(figure: Figure) -> None:
        grid = figure.add_gridspec(lines, 12)
        at = 0
        for i, panel in enumerate(panels):
            width = span(i, len(panels), 3)
            axes = figure.add_subplot(grid[at // 12, at % 12 : at % 12 + width])
            curves(axes, panel, rows)
            axes.set_title(panel.title, pad=LEGEND_ROOM)
            at += width
        if not panels:
            nothing(figure.subplots())

    render(draw, (13, 3.4 * lines), path)


def weights(axes: Axes, weight: Array, divergence: str) -> None:
    (weight,) = finite(weight)
    if not len(weight):
        return nothing(axes)
    top = max(float(np.quantile(weight, 0.995)), 1.2)
    axes.hist(np.clip(weight, 0, top), bins=48, range=(0, top), color=COLOURS[0], alpha=0.85)
    axes.axvline(1.0, color=COLOURS[1], linewidth=1.5, linestyle="--", label="reverse KL")
    axes.set_xlabel(f"h ({divergence}), mean 1")
    axes.set_ylabel("samples")
    return legend(axes)


def weights_by_sigma(axes: Axes, weight: Array, sigma: Array) -> None:
    weight, sigma = finite(weight, sigma)
    if not len(weight):
        return nothing(axes)
    parts = np.array_split(np.argsort(sigma), min(12, len(sigma)))
    middle = [float(np.median(sigma[p])) for p in parts]
    low, mean, high = (
        [f(weight[p]) for p in parts] for f in (lambda w: np.quantile(w, 0.1), np.mean, lambda w: np.quantile(w, 0.9))
    )
    axes.fill_between(middle, low, high, color=COLOURS[0], alpha=0.25, linewidth=0, label="10 to 90 %")
    axes.plot(middle, mean, color=COLOURS[0], label="mean")
    axes.set_xscale("log")
    from_zero(axes)
    axes.set_xlabel("noise level σ")
    axes.set_ylabel("h")
    return legend(axes)


def tiles(images: Array, columns: int) -> Array:
    """(n, 1, H, W) in [-1, 1] as one uint8 picture with a gap of one pixel."""
    count, _, height, width = images.shape
    rows = math.ceil(count / columns)
    picture = np.full((rows * (height + 1) + 1, columns * (width + 1) + 1), 24, dtype=np.uint8)
    for i in range(count):
        top, left = (i // columns) * (height + 1) + 1, (i % columns) * (width + 1) + 1
        shown = np.nan_to_num(np.clip(images[i, 0], -1, 1))
        picture[top : top + height, left : left + width] = ((shown + 1) * 127.5).round()
    return picture


def png(picture: Array) -> bytes:
    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, format="PNG", optimize=True)
    return buffer.getvalue()


def write_sample_sheet(panels: Sequence[tuple[str, Array]], path: Path, columns: int = 4) -> None:
    """The first images of named sets, columns² of each, side by side and large enough to read."""

    def draw(figure: Figure) -> None:
        for axes, (title, images) in zip(figure.subplots(1, len(panels)), panels, strict=True):
            picture = tiles(images[: columns**2], columns)
            axes.imshow(picture, cmap="gray", vmin=0, vmax=255, interpolation="bicubic")
            axes.set_title(title, fontsize=13)
            axes.set_axis_off()
            axes.set_anchor("S")

    render(draw, (3.0 * len(panels), 3.5), path)


def densities(figure: Figure, panels: Sequence[tuple[str, Array]], extent: float) -> None:
    """2-D densities on the square [-extent, extent]², on one square-root scale, so that faint bridges show."""
    top = max(float(np.sqrt(np.nan_to_num(density)).max()) for _, density in panels) or 1.0
    for axes, (title, density) in zip(figure.subplots(1, len(panels), squeeze=False).flat, panels, strict=True):
        box = (-extent, extent, -extent, extent)
        axes.imshow(np.sqrt(density).T, origin="lower", extent=box, cmap="magma", vmin=0, vmax=top)
        axes.set_title(title)
        axes.grid(False)


def points(axes: Axes, x: Array, extent: float) -> None:
    axes.scatter(x[:, 0], x[:, 1], s=4, alpha=0.5, color=COLOURS[0], linewidths=0)
    axes.set(xlim=(-extent, extent), ylim=(-extent, extent), aspect="equal")


def mode_weights(axes: Axes, sets: Sequence[tuple[str, Array]]) -> None:
    width = 0.8 / len(sets)
    for i, (label, values) in enumerate(sets):
        axes.bar(np.arange(len(values)) + i * width, values, width, color=COLOURS[i], label=label)
    axes.set_xticks(np.arange(len(sets[0][1])) + 0.4 - width / 2, [str(i + 1) for i in range(len(sets[0][1]))])
    axes.set_xlabel("mode")
    axes.set_ylabel("weight")
    legend(axes)


def log_ratios(axes: Axes, true: Array, logits: Array) -> None:
    true, logits = finite(true, logits)
    if not len(true):
        return nothing(axes)
    low, high = np.quantile(true, [0.005, 0.995])
    if low == high:
        room = max(0.5, 0.1 * abs(low))
        low, high = low - room, high + room
    axes.scatter(true, logits, s=3, alpha=0.25, color=COLOURS[0], linewidths=0)
    axes.plot([low, high], [low, high], color=COLOURS[1], linewidth=1.5, label="exact")
    axes.set_xlim(low, high)
    axes.set_ylim(low, high)
    axes.set_xlabel("true log p/q")
    axes.set_ylabel("logit")
    return legend(axes)
