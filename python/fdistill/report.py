"""report.html: one self-contained page about a run, light or dark as the reader's system is, for desk and phone."""

from __future__ import annotations

import base64
import html
import json
from pathlib import Path
from string import Template
from typing import TYPE_CHECKING, Any

import numpy as np
import yaml

from fdistill import plots
from fdistill.trainer import read_log

if TYPE_CHECKING:
    from matplotlib.figure import Figure

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


def build(folder: Path, settings: dict[str, Any], titles: dict[str, str]) -> Path:
    """Write report.html, curves.png into the folder of a finished run, from the files that lie there."""
    result = json.loads((folder / "metrics.json").read_text())
    rows = read_log(folder / "log.jsonl")
    plots.write_curves(rows, folder / "curves.png")
    with np.load(folder / "evaluation.npz") as archive:
        data = {name: archive[name] for name in archive.files}
    divergence = settings["loss"]["divergence"]
    page = Template((Path(__file__).parent / "report.html.in").read_text())
    text = page.substitute(
        title=html.escape(folder.name),
        lead=_lead(settings, result),
        headline=_headline(result),
        samples=_samples(data, titles, settings),
        progress=_progress(folder),
        table=_table(result),
        weights=_weights(data, divergence),
        curves="".join(
            _figure(panel.title, panel.reading, lambda f, p=panel: plots.curves(f.subplots(), p, rows))
            for panel in plots.shown_panels(rows)
        ),
        settings=html.escape(yaml.safe_dump(settings, sort_keys=False, default_flow_style=None, width=100)),
        facts=_facts(result),
    )
    path = folder / "report.html"
    path.write_text(text)
    return path


def _uri(data: bytes, kind: str) -> str:
    return f"data:image/{kind};base64,{base64.b64encode(data).decode()}"


def _figure(title: str, reading: str, draw: Any, size: tuple[float, float] = (4.6, 2.9)) -> str:
    light, dark = (_uri(picture, "svg+xml") for picture in plots.render(draw, size))
    return (
        f'<figure class="card"><figcaption><h3>{html.escape(title)}</h3><p>{html.escape(reading)}</p></figcaption>'
        f'<picture><source media="(prefers-color-scheme: dark)" srcset="{dark}">'
        f'<img src="{light}" alt="{html.escape(title)}"></picture></figure>'
    )


def _lead(settings: dict[str, Any], result: dict[str, Any]) -> str:
    updates = settings["steps"] * sum("student" in phase for phase in settings["phases"]) // len(settings["phases"])
    data = {"digits": "handwritten digits", "gmm": "a mixture of nine modes"}[settings["task"]]
    return html.escape(
        f"A one-step student of {data}, distilled in {updates:,} student updates with the "
        f"{settings['loss']['divergence']} divergence, in {result['distillation_seconds'] / 60:.1f} minutes."
    )


def _headline(result: dict[str, Any]) -> str:
    cards = []
    for key, (name, reading, form) in FIGURES.items():
        if key not in result["student"] or key == "kid":
            continue
        others = [(of, label) for of, label in (("teacher", "teacher"), ("floor", "data")) if of in result]
        beside = [f"{label} {result[of][key]:{form}}" for of, label in others]
        cards.append(
            f'<div class="card number"><h3>{name}</h3><strong>{result["student"][key]:{form}}</strong>'
            f"<p>{' · '.join(beside)}</p><small>{reading}</small></div>"
        )
    return "".join(cards)


def _samples(data: dict[str, Any], titles: dict[str, str], settings: dict[str, Any]) -> str:
    if "p" in data:
        extent = 1.6 * settings["mixture"]["spacing"]
        pictures = [
            _figure(name, reading, lambda f, d=density, n=name: plots.densities(f, [("", d)], extent), (4.4, 4.2))
            for name, reading, density in (
                ("Teacher p", "Nine Gaussians of unequal weight, known exactly.", data["p"]),
                ("Student q", "One pass of a small network; bridges are what it cannot avoid.", data["q"]),
            )
        ]
        return "".join(pictures)
    return "".join(
        f'<figure class="card"><figcaption><h3>{html.escape(titles[name])}</h3></figcaption>'
        f'<img class="pixels" src="{_uri(plots.png(plots.tiles(data[name], 10)), "png")}" alt="{name}"></figure>'
        for name in titles
    )


def _progress(folder: Path) -> str:
    frames = sorted((folder / "progress").glob("step-*.png"))
    steps = [int(frame.stem.removeprefix("step-")) for frame in frames]
    return json.dumps([[step, _uri(frame.read_bytes(), "png")] for step, frame in zip(steps, frames, strict=True)])


def _table(result: dict[str, Any]) -> str:
    sets = [name for name in SETS if name in result]
    keys = [key for key in FIGURES if key in result["student"]]
    head = "".join(f"<th>{FIGURES[key][0]}</th>" for key in keys)
    cells = {name: "".join(f"<td>{result[name][key]:{FIGURES[key][2]}}</td>" for key in keys) for name in sets}
    body = "".join(f"<tr><th>{SETS[name]}</th>{cells[name]}</tr>" for name in sets)
    return f"<table><thead><tr><th></th>{head}</tr></thead><tbody>{body}</tbody></table>"


def _weights(data: dict[str, Any], divergence: str) -> str:
    def histogram(figure: Figure) -> None:
        plots.weights(figure.subplots(), data["weight"], divergence)

    def by_sigma(figure: Figure) -> None:
        plots.weights_by_sigma(figure.subplots(), data["weight"], data["sigma"])

    cards = _figure("Distribution of h", "Of fresh student samples under the final discriminator.", histogram)
    cards += _figure("h over the noise levels", "Where the discriminator sees a difference.", by_sigma)
    if "logits" in data:
        cards += _figure(
            "Logit against the true log ratio",
            "On noised student samples; the true ratio is exact for p and a mean over 20,000 kernels for q.",
            lambda f: plots.log_ratios(f.subplots(), data["log_ratio"], data["logits"]),
        )
        sets = [("teacher", data["modes"]), ("student", data["student_modes"])]
        cards += _figure("Weights of the modes", "Nearest mode.", lambda f: plots.mode_weights(f.subplots(), sets))
    return cards


def _facts(result: dict[str, Any]) -> str:
    facts = [f"n = {result['samples']:,} samples for every figure"]
    if "classifier_accuracy" in result:
        facts.append(
            f"features of a small classifier ({100 * result['classifier_accuracy']:.1f} % on held-out digits), divided "
            "by their mean standard deviation; real against real is a bootstrap, whose precision and recall say nothing"
        )
    if "log_ratio_error" in result:
        facts.append(
            f"the discriminator's clamped logits are off the true log ratio by {result['log_ratio_error']:.2f} on "
            f"average (correlation {result['log_ratio_correlation']:.2f})"
        )
    facts.append(f"{result['skipped_updates']:.0f} updates skipped for a gradient that was not finite")
    facts.append(f"fdkernels {result['versions']['fdkernels']}, torch {result['versions']['torch']}")
    return "".join(f"<li>{html.escape(fact)}</li>" for fact in facts)
