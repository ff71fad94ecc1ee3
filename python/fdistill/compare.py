"""One student per divergence and seed: a table with spreads and a figure."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from fdistill import config, plots, run
from fdistill.checkpoint import write_atomically
from fdistill.config import Config, ConfigError, GmmConfig
from fdistill.report import FIGURES

if TYPE_CHECKING:
    from matplotlib.figure import Figure

CONTROL = "shuffled"


class Arm:
    """A divergence, or the control: the same with h permuted within the batch."""

    def __init__(self, divergence: str, shuffled: bool = False) -> None:
        self.divergence, self.shuffled = divergence, shuffled
        self.name = f"{divergence}, {CONTROL} h" if shuffled else divergence

    def overrides(self, folder: str, seed: int) -> list[str]:
        suffix = f"-{CONTROL}" if self.shuffled else ""
        return [
            f"loss.divergence={self.divergence}",
            f"loss.shuffle_weight={str(self.shuffled).lower()}",
            f"seed={seed}",
            f"name={folder}/{self.divergence}{suffix}-seed{seed}",
        ]


def run_all(preset: str, overrides: Sequence[str], divergences: Sequence[str], seeds: int, jobs: int) -> str:
    """Train what is missing, in processes of their own; write compare.json and compare.png; return the table."""
    base = config.load(preset, overrides)
    arms = [Arm(divergence) for divergence in divergences]
    if isinstance(base, GmmConfig) and "kl" in divergences:
        arms.append(Arm("kl", shuffled=True))
    folder = f"{Path(preset).stem}-compare"
    plan = [(arm, base.seed + i) for i in range(seeds) for arm in arms]
    wanted = [(arm, config.load(preset, [*overrides, *arm.overrides(folder, seed)])) for arm, seed in plan]
    for _, cfg in wanted:
        run.prepare(cfg, resume=True, fresh=False)
    missing = [cfg for _, cfg in wanted if run.result_of(run.folder_of(cfg)) is None]
    print(f"{len(wanted)} runs in {Path(base.out) / folder}, {len(missing)} to train")
    if missing and not isinstance(base, GmmConfig):
        run.task_class(missing[0])(missing[0])  # trains the teacher once, before processes would race for it
    with ThreadPoolExecutor(jobs) as pool:
        list(pool.map(_train, missing))
    results = [(arm, run.result_of(run.folder_of(cfg))) for arm, cfg in wanted]
    by_arm = {arm.name: [result for other, result in results if other is arm and result] for arm in arms}
    out = Path(base.out) / folder
    write_atomically(out / "compare.json", json.dumps(_summary(base, by_arm), indent=2) + "\n")
    _figure(by_arm, out / "compare.png")
    return f"{_table(by_arm)}\n{out / 'compare.json'}, {out / 'compare.png'}"


def _train(cfg: Config) -> None:
    folder = run.folder_of(cfg)
    command = [sys.executable, "-m", "fdistill", "train", str(folder / "config.yaml"), "--resume"]
    with (folder / "output.txt").open("a") as output:
        done = subprocess.run(command, stdout=output, stderr=subprocess.STDOUT, check=False)
    if done.returncode:
        raise ConfigError(f"{folder} failed with exit status {done.returncode}; see {folder / 'output.txt'}")
    print(f"{folder} done", flush=True)


def _keys(by_arm: dict[str, list[dict[str, Any]]]) -> list[str]:
    first = next(iter(by_arm.values()))[0]
    return [key for key in FIGURES if key in first["student"] and key != "kid"]


def _values(results: list[dict[str, Any]], key: str) -> list[float]:
    return [result["student"][key] for result in results]


def _summary(base: Config, by_arm: dict[str, list[dict[str, Any]]]) -> dict[str, Any]:
    def spread(values: list[float]) -> dict[str, float]:
        return {"mean": float(np.mean(values)), "std": float(np.std(values, ddof=min(1, len(values) - 1)))}

    arms = {
        name: {
            "summary": {key: spread(_values(results, key)) for key in _keys(by_arm)},
            "runs": [{key: value for key, value in result.items() if key != "classes"} for result in results],
        }
        for name, results in by_arm.items()
    }
    return {"task": base.task, "settings": config.as_dict(base), "arms": arms}


def _table(by_arm: dict[str, list[dict[str, Any]]]) -> str:
    keys = _keys(by_arm)
    lines = [f"{'':20}" + "".join(f"{FIGURES[key][0]:>20}" for key in keys)]
    for name, results in by_arm.items():
        cells = []
        for key in keys:
            values = _values(results, key)
            cells.append(f"{np.mean(values):.3f} ± {np.std(values, ddof=min(1, len(values) - 1)):.3f}")
        lines.append(f"{name:20}" + "".join(f"{cell:>20}" for cell in cells))
    count = len(next(iter(by_arm.values())))
    return "\n".join((*lines, f"mean ± standard deviation over {count} seeds"))


def _figure(by_arm: dict[str, list[dict[str, Any]]], path: Path) -> None:
    keys = _keys(by_arm)

    def draw(figure: Figure) -> None:
        for axes, key in zip(figure.subplots(1, len(keys), squeeze=False).flat, keys, strict=True):
            for i, (name, results) in enumerate(by_arm.items()):
                values = _values(results, key)
                axes.scatter([i] * len(values), values, color=plots.COLOURS[i], s=28, alpha=0.6, linewidths=0)
                axes.hlines(np.mean(values), i - 0.3, i + 0.3, color=plots.COLOURS[i], linewidth=2.5, label=name)
            axes.set_xticks(range(len(by_arm)), [name.replace(", ", "\n") for name in by_arm])
            axes.set_xlim(-0.6, len(by_arm) - 0.4)
            axes.set_title(FIGURES[key][0])
            axes.set_xlabel(FIGURES[key][1])

    plots.render(draw, (3.6 * len(keys), 3.4), "light", path)
