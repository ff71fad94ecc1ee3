"""One student per divergence and seed: a table with spreads and a figure."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from fdistill import config, plots, run
from fdistill.checkpoint import write_atomically
from fdistill.config import Config, GmmConfig
from fdistill.report import FIGURES

if TYPE_CHECKING:
    from matplotlib.figure import Figure

CONTROL = "kl-shuffled"


def run_all(preset: str, overrides: Sequence[str], divergences: Sequence[str], seeds: int) -> str:
    """Train what is missing, one after the other; write compare.json and compare.png; return the table.

    On gmm with kl the control comes with it: kl with h permuted within the batch.
    """
    base = config.load(preset, overrides)
    arms = {name: [f"loss.divergence={name}"] for name in divergences}
    if isinstance(base, GmmConfig) and "kl" in divergences:
        arms[CONTROL] = ["loss.divergence=kl", "loss.shuffle_weight=true"]
    out = Path(base.out) / f"{Path(preset).stem}-compare"
    plan: list[tuple[str, Config]] = []
    for seed in range(base.seed, base.seed + seeds):
        for arm, settings in arms.items():
            named = f"name={out.name}/{arm}-seed{seed}"
            plan.append((arm, config.load(preset, [*overrides, *settings, f"seed={seed}", named])))
    missing = [cfg for _, cfg in plan if not run.prepare(cfg, resume=True, fresh=False)]
    print(f"{len(plan)} runs in {out}, {len(missing)} to train")
    for i, cfg in enumerate(missing):
        print(f"[{i + 1}/{len(missing)}] {cfg.name}", flush=True)
        run.train(cfg, with_report=False)
    results: dict[str, list[dict[str, Any]]] = {arm: [] for arm in arms}
    for arm, cfg in plan:
        results[arm].append(run.result_of(run.folder_of(cfg)) or {})
    write_atomically(out / "compare.json", json.dumps(_summary(base, results), indent=2) + "\n")
    _figure(results, out / "compare.png")
    return f"{_table(results)}\n{out / 'compare.json'}, {out / 'compare.png'}"


def _keys(by_arm: dict[str, list[dict[str, Any]]]) -> list[str]:
    first = next(iter(by_arm.values()))[0]
    return [key for key in FIGURES if key in first["student"] and key != "kid"]


def _values(results: list[dict[str, Any]], key: str) -> list[float]:
    return [result["student"][key] for result in results]


def _spread(results: list[dict[str, Any]], key: str) -> dict[str, float]:
    values = _values(results, key)
    return {"mean": float(np.mean(values)), "std": float(np.std(values, ddof=min(1, len(values) - 1)))}


def _summary(base: Config, by_arm: dict[str, list[dict[str, Any]]]) -> dict[str, Any]:
    arms = {
        name: {"summary": {key: _spread(results, key) for key in _keys(by_arm)}, "runs": results}
        for name, results in by_arm.items()
    }
    return {"task": base.task, "settings": config.as_dict(base), "arms": arms}


def _table(by_arm: dict[str, list[dict[str, Any]]]) -> str:
    keys = _keys(by_arm)
    lines = [f"{'':20}" + "".join(f"{FIGURES[key][0]:>20}" for key in keys)]
    for name, results in by_arm.items():
        spreads = [_spread(results, key) for key in keys]
        lines.append(f"{name:20}" + "".join(f"{s['mean']:>12.3f} ± {s['std']:.3f}" for s in spreads))
    return "\n".join((*lines, f"mean ± standard deviation over {len(results)} seeds"))


def _figure(by_arm: dict[str, list[dict[str, Any]]], path: Path) -> None:
    keys = _keys(by_arm)

    def draw(figure: Figure) -> None:
        for axes, key in zip(figure.subplots(1, len(keys), squeeze=False).flat, keys, strict=True):
            for i, (name, results) in enumerate(by_arm.items()):
                values = _values(results, key)
                axes.scatter([i] * len(values), values, color=plots.COLOURS[i], s=28, alpha=0.6, linewidths=0)
                axes.hlines(np.mean(values), i - 0.3, i + 0.3, color=plots.COLOURS[i], linewidth=2.5, label=name)
            axes.set_xticks(range(len(by_arm)), list(by_arm))
            axes.set_xlim(-0.6, len(by_arm) - 0.4)
            axes.set_title(FIGURES[key][0])
            axes.set_xlabel(FIGURES[key][1])

    plots.render(draw, (3.6 * len(keys), 3.4), path)
