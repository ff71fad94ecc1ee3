"""One student per divergence and seed: a table with spreads and a figure."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from fdistill import config, plots, reading, run
from fdistill.config import Config, ConfigError
from fdistill.files import LOCK, held, write_atomically
from fdistill.report import FIGURES, number
from fdkernels.divergences import resolve

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

CONTROL = "-shuffled"
MARK = ".fdistill-comparison"
# Settings that differ between the runs, and what sets each of them.
OURS = {"name": "compare", "loss.divergence": "--divergences", "loss.shuffle_weight": f"NAME{CONTROL} in --divergences"}

SMALLEST_SPAN = 0.02  # of an axis, so that rounding differences do not fill it

Results = dict[str, list[dict[str, Any]]]


class Spread(NamedTuple):
    """Over the runs that have the figure; the standard deviation needs two."""

    mean: float | None
    std: float | None


def arms_of(names: Sequence[str]) -> dict[str, list[str]]:
    """The settings of each arm, by its name: a divergence, or a divergence with "-shuffled", the control that permutes
    h within the batch. An alias becomes the divergence's name.

    Raises:
        ConfigError: a name is unknown or given twice.
    """
    arms: dict[str, list[str]] = {}
    for given in names:
        plain = given.removesuffix(CONTROL)
        shuffled = plain != given
        try:
            divergence = resolve(plain).name
        except ValueError as error:
            raise ConfigError(f"--divergences: {error}") from None
        arm = divergence + CONTROL * shuffled
        if arm in arms:
            raise ConfigError(f"--divergences: {arm} is there twice" + (f", also as {given}" if given != arm else ""))
        arms[arm] = [f"loss.divergence={divergence}", f"loss.shuffle_weight={str(shuffled).lower()}"]
    return arms


def run_all(preset: str, overrides: Sequence[str], divergences: Sequence[str], seeds: int) -> bool:
    """Train the missing runs, one after the other; write compare.json, print the table, draw compare.png.

    Returns whether no student diverged.
    """
    for override in overrides:
        key, _, text = override.partition("=")
        inner = reading.parsed(text, f"{key}: not a YAML value") if key == "loss" else None
        for named in [f"{key}.{name}" for name in inner] if isinstance(inner, dict) else [key]:
            if named in OURS:
                raise ConfigError(f"{named}: each run of a comparison has its own, from {OURS[named]}")
    base, arms = config.load(preset, overrides), arms_of(divergences)
    if base.loss.kind != "fdiv":
        raise ConfigError(f"loss.kind: expected fdiv, since the runs differ by divergence, got {base.loss.kind!r}")
    out = Path(base.out) / f"{Path(preset).stem}-compare"
    _check(out)
    plan: list[tuple[str, Config]] = []
    for seed in range(base.seed, base.seed + seeds):
        for arm, settings in arms.items():
            named = f"name={out.name}/{arm}-seed{seed}"
            plan.append((arm, config.load(preset, [*overrides, *settings, f"seed={seed}", named])))
    for _, cfg in plan:
        run.prepare(cfg, resume=True, fresh=False)
    out.mkdir(parents=True, exist_ok=True)
    with held(out / LOCK, f"{out} is in use"):
        write_atomically(out / MARK, "")
        return _run(base, plan, out)


def _run(base: Config, plan: Sequence[tuple[str, Config]], out: Path) -> bool:
    missing = [cfg for _, cfg in plan if not run.prepare(cfg, resume=True, fresh=False)]
    print(f"{len(plan)} runs in {out}, {len(missing)} to train")
    for i, cfg in enumerate(missing):
        print(f"[{i + 1}/{len(missing)}] {cfg.name}", flush=True)
        run.train(cfg, with_report=False)
    results: Results = {arm: [] for arm, _ in plan}
    for arm, cfg in plan:
        results[arm].append(run.result_of(run.folder_of(cfg)) or {})
    write_atomically(out / "compare.json", json.dumps(_summary(base, results), indent=2) + "\n")
    print(_table(results), flush=True)
    _figure(results, out / "compare.png")
    print(f"{out / 'compare.json'}, {out / 'compare.png'}")
    return not any(map(_diverged, results.values()))


def _check(out: Path) -> None:
    """Raise if a result would replace a file that no comparison made."""
    for path in (out / "compare.json", out / "compare.png"):
        if os.path.lexists(path) and (path.is_symlink() or path.is_dir() or not (out / MARK).is_file()):
            raise ConfigError(f"{path}: no comparison of this version made it; move it away, or pass out=...")


def _keys(by_arm: Results) -> list[str]:
    measured = {key for results in by_arm.values() for result in results for key in result.get("student") or {}}
    return [key for key in FIGURES if key in measured and key != "kid"]


def _values(results: list[dict[str, Any]], key: str) -> list[float]:
    """The finite values of a figure: a run that diverged lacks some."""
    found = [(result.get("student") or {}).get(key) for result in results]
    return [value for value in found if value is not None and np.isfinite(value)]


def _spread(results: list[dict[str, Any]], key: str) -> Spread:
    values = _values(results, key)
    return Spread(
        float(np.mean(values)) if values else None,
        float(np.std(values, ddof=1)) if len(values) > 1 else None,
    )


def _diverged(results: list[dict[str, Any]]) -> int:
    return sum(bool(result.get("diverged")) for result in results)


def _summary(base: Config, by_arm: Results) -> dict[str, Any]:
    keys = _keys(by_arm)
    arms = {
        name: {"summary": {key: _spread(results, key)._asdict() for key in keys}, "diverged": _diverged(results),
               "runs": results}
        for name, results in by_arm.items()
    }  # fmt: skip
    # Older runs that diverged hold NaN.
    return run.without_nan({"task": base.task, "settings": config.as_dict(base), "arms": arms})


def _table(by_arm: Results) -> str:
    keys, seeds = _keys(by_arm), len(next(iter(by_arm.values())))
    lines = [["", *(FIGURES[key][0] for key in keys)]]
    for name, results in by_arm.items():
        spreads = [_spread(results, key) for key in keys]
        cells = [number(s.mean, ".3f") + ("" if s.std is None else f" ± {number(s.std, '.3f')}") for s in spreads]
        lines.append([name, *cells])
    first, *widths = (max(map(len, column)) for column in zip(*lines, strict=True))
    text = [
        f"{name:{first}}" + "".join(f"   {cell:>{width}}" for cell, width in zip(cells, widths, strict=True))
        for name, *cells in lines
    ]
    text.append(f"mean ± standard deviation over {seeds} seeds" if seeds > 1 else "one seed: no standard deviation")
    if any(name.endswith(CONTROL) for name in by_arm):
        text.append(f"NAME{CONTROL} is a control: h of NAME, permuted within the batch")
    for name, results in by_arm.items():
        if _diverged(results):
            text.append(f"{name}: {_diverged(results)} of {seeds} diverged; figures are of the values that are finite")
    return "\n".join(text)


def _figure(by_arm: Results, path: Path) -> None:
    """One row per arm, so that any number of names is legible."""
    keys = _keys(by_arm)

    def draw(figure: Figure) -> None:
        for axes, key in zip(figure.subplots(1, len(keys), squeeze=False, sharey=True).flat, keys, strict=True):
            _draw_arms(axes, [_values(results, key) for results in by_arm.values()])
            axes.set_yticks(range(len(by_arm)), list(by_arm))
            axes.set_ylim(len(by_arm) - 0.4, -0.6)
            axes.set_title(FIGURES[key][0])
            axes.set_xlabel(FIGURES[key][1])

    if keys:
        plots.render(draw, (1.4 + 3.4 * len(keys), 1.2 + 0.34 * len(by_arm)), path)


def _draw_arms(axes: Axes, arms: list[list[float]]) -> None:
    """Each run as a dot; an arm's mean as a stroke, with an error bar of one standard deviation over its runs."""
    for i, values in enumerate(arms):
        colour = plots.COLOURS[i % len(plots.COLOURS)]
        if values:
            axes.scatter(values, [i] * len(values), color=colour, s=28, alpha=0.6, linewidths=0)
            mean, std = float(np.mean(values)), float(np.std(values, ddof=1)) if len(values) > 1 else 0.0
            axes.vlines(mean, i - 0.3, i + 0.3, color=colour, linewidth=2.5)
            axes.errorbar(mean, i, xerr=std or None, color=colour, elinewidth=1.5, capsize=5)
        else:
            axes.text(0.5, i, "no finite values", transform=axes.get_yaxis_transform(), ha="center", va="center")
    every = [value for values in arms for value in values]
    if not every:
        return
    low, high = min(every), max(every)
    if low > 0 and high > 1000 * low:
        axes.set_xscale("log")  # else one arm that nearly diverged would hide the differences of the others
    elif high - low < (least := SMALLEST_SPAN * max(1.0, abs(low), abs(high))):
        axes.set_xlim((low + high - least) / 2, (low + high + least) / 2)
