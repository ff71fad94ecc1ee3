"""report.html: one self-contained page about a run, light or dark like the reader's system, for desktop and phone."""

from __future__ import annotations

import base64
import math
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
import yaml

from fdistill import plots
from fdistill.config import objective
from fdistill.roles import TITLES
from fdistill.trainer import read_log

FIGURES = {
    "frechet": ("Fréchet distance", "lower is better", ".2f"),
    "kid": ("Kernel distance", "lower is better", ".3f"),
    "precision": ("Precision", "samples that look real", ".3f"),
    "recall": ("Recall", "of the data that is reached", ".3f"),
    "class_tv": ("Class imbalance", "total variation, 0 is balanced", ".3f"),
    "kl_qp": ("KL(q‖p)", "what lands where data is not", ".3f"),
    "on_mode": ("On-mode fraction", "within three standard deviations", ".3f"),
    "mode_tv": ("Mode imbalance", "total variation of mode weights", ".3f"),
}
SETS = {
    "student": "Student, 1 step",
    "teacher": "Teacher, many steps",
    "undistilled": "Teacher, 1 step, undistilled",
    "floor": "Real against real",
}


def build(folder: Path, settings: dict[str, Any], titles: dict[str, str], result: dict[str, Any]) -> None:
    """Write report.html and curves.png into a run's folder, from its metrics and the files in the folder."""
    rows = read_log(folder / "log.jsonl")
    plots.write_curves(rows, folder / "curves.png")
    data = _arrays(folder / "evaluation.npz")
    frames = sorted((folder / "progress").glob("step-*.png"))
    curves = [
        _figure(panel.title, panel.reading, lambda f, p=panel: plots.curves(f.subplots(), p, rows))
        for panel in plots.shown_panels(rows)
    ]
    template = jinja2.Template((Path(__file__).parent / "report.html.in").read_text(encoding="utf-8"), autoescape=True)
    page = template.render(
        title=folder.name, settings=settings, objective=objective(settings, in_words=True), result=result,
        rows=shown(result), sets=SETS,
        figures=FIGURES, number=number, span=plots.span, diverged=diverged(result),
        updates=settings["steps"] * sum("student" in phase for phase in settings["phases"]) // len(settings["phases"]),
        images=[(title, _uri(plots.png(plots.tiles(data[name], 10)), "png")) for name, title in titles.items()
                if name in data],
        densities=_densities(data, settings) if "p" in data else [],
        frames=[[int(frame.stem.removeprefix("step-")), _uri(frame.read_bytes(), "png")] for frame in frames],
        weights=_weights(data, settings["loss"]["divergence"]) if "weight" in data else [], curves=curves,
        settings_text=yaml.safe_dump(settings, sort_keys=False, default_flow_style=None, width=100),
    )  # fmt: skip
    (folder / "report.html").write_text(page, encoding="utf-8")


def number(value: float | None, form: str) -> str:
    """A figure as text: a dash if a run that diverged has none, with an exponent if it is large."""
    if value is None or not math.isfinite(value):
        return "–"
    return format(value, form if abs(value) < 1e6 else ".3g")


def shown(result: dict[str, Any]) -> dict[str, dict[str, str]]:
    """The figures of a run as text: by figure, then by set."""
    keys = [key for key in FIGURES if key in (result.get("student") or {})]
    sets = [name for name in SETS if result.get(name)]
    return {key: {name: number(result[name].get(key), FIGURES[key][2]) for name in sets} for key in keys}


def diverged(result: dict[str, Any]) -> str:
    """A line about a run that diverged: which role, and when; empty if the run did not diverge."""
    if not result.get("diverged"):
        return ""
    at = result.get("diverged_at")
    when = f"not finite since iteration {at:,}" if at else "not finite at the end"
    who = TITLES[result.get("diverged_role") or "student"]
    return f"the {who} diverged: {when}, {result.get('skipped_updates', 0):,} updates skipped"


def summary(folder: Path, result: dict[str, Any]) -> str:
    """The figures of a finished run as a small table, and where its report is."""
    rows, path = shown(result), folder / "report.html"
    lines = [" " * 30 + "".join(f"{key:>11}" for key in rows)] if rows else []
    for name in next(iter(rows.values()), ()):
        lines.append(f"{SETS[name]:30}" + "".join(f"{cells[name]:>11}" for cells in rows.values()))
    told = diverged(result)
    if told:
        lines.append(told)
    # The runs of a comparison have no report.
    return "\n".join((*lines, *([f"report: {path}"] if path.exists() else [])))


def _arrays(path: Path) -> dict[str, Any]:
    if not path.exists():
        return {}
    with np.load(path) as archive:
        return {name: archive[name] for name in archive.files}


def _uri(data: bytes, kind: str) -> str:
    return f"data:image/{kind};base64,{base64.b64encode(data).decode()}"


def _figure(title: str, reading: str, draw: Any, size: tuple[float, float] = (4.6, 2.9)) -> tuple[str, ...]:
    return title, reading, *(_uri(picture, "svg+xml") for picture in plots.render(draw, size))


def _densities(data: dict[str, Any], settings: dict[str, Any]) -> list[tuple[str, ...]]:
    extent, size = 1.6 * settings["mixture"]["spacing"], (4.4, 4.2)

    def draw(name: str) -> Any:
        return lambda f: plots.densities(f, [("", data[name])], extent)

    modes = [("teacher", data["modes"]), ("student", data["student_modes"])]
    return [
        _figure("Teacher p", "Nine Gaussians of unequal weight, known exactly.", draw("p"), size),
        _figure("Student q", "One pass of a small network; bridges are what it cannot avoid.", draw("q"), size),
        _figure(
            "Weights of the modes", "By the nearest mode.", lambda f: plots.mode_weights(f.subplots(), modes), size
        ),
    ]


def _weights(data: dict[str, Any], divergence: str) -> list[tuple[str, ...]]:
    weight, sigma = data["weight"], data["sigma"]
    cards = [
        _figure("Distribution of h", "Of fresh student samples under the final discriminator.",
                lambda f: plots.weights(f.subplots(), weight, divergence)),
        _figure("h over the noise levels", "Where the discriminator sees a difference.",
                lambda f: plots.weights_by_sigma(f.subplots(), weight, sigma)),
    ]  # fmt: skip
    if "logits" in data:
        cards.append(
            _figure("Logit against the true log ratio", "On noised student samples; p is exact, q a mean over kernels.",
                    lambda f: plots.log_ratios(f.subplots(), data["log_ratio"], data["logits"]))
        )  # fmt: skip
    return cards
