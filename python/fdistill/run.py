"""A run is a folder: settings, log, checkpoints, and at the end metrics, pictures, report and student."""

from __future__ import annotations

import json
import math
import shutil
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
import yaml

from fdistill import config, cpus, reading
from fdistill.checkpoint import Checkpoints, write_atomically
from fdistill.config import Config, ConfigError, DigitsConfig, GmmConfig, as_dict, differences, digest
from fdistill.networks import parameter_count
from fdistill.task import Task
from fdistill.trainer import Distiller
from fdkernels import backends


def task_class(cfg: Config) -> type[Task]:
    """Imported when needed, so that a missing diffusers does not stop the gmm task."""
    if isinstance(cfg, DigitsConfig):
        from fdistill.digits import DigitsTask

        return DigitsTask
    if isinstance(cfg, GmmConfig):
        from fdistill.gmm import GmmTask

        return GmmTask
    raise ConfigError(f"task: expected digits or gmm, got {config.shown(cfg.task)}")


def folder_of(cfg: Config) -> Path:
    return Path(cfg.out) / cfg.name


def settings_of(folder: Path) -> dict[str, Any]:
    """The settings of a run on disk."""
    path = folder / "config.yaml"
    if not path.is_file():
        raise ConfigError(f"{folder} is not a run: it has no config.yaml")
    try:
        return reading.mapping(reading.file_text(str(path)), str(path))
    except ConfigError as error:
        raise ConfigError(f"{error}; the settings of this run are damaged: train in another folder, name=...") from None


def result_of(folder: Path) -> dict[str, Any] | None:
    """The metrics of a finished run, else None."""
    path = folder / "metrics.json"
    if not path.is_file():
        return None
    try:
        result = reading.json_object(path)
        if not isinstance(result.get("student"), dict) or not result["student"]:
            raise ConfigError(f"{path}: expected the figures of a student, got none")
    except ConfigError as error:
        raise ConfigError(f"{error}; delete this file, then --resume measures the student again") from None
    return result


def prepare(cfg: Config, resume: bool, fresh: bool) -> bool:
    """Make the run's folder ready; True where a finished run with these settings is already there.

    Settings of the presentation may differ. Those of the evaluation may with `resume`: an unfinished run goes on with
    them, a finished one is measured anew. Those of the training may where nothing was trained yet.

    Raises:
        ConfigError: the folder holds another run, or an unfinished one and neither resume nor fresh was asked for.
    """
    folder = folder_of(cfg)
    if folder.exists() and fresh:
        settings_of(folder)  # refuses to delete what is not a run
        shutil.rmtree(folder)
    if not (folder / "config.yaml").exists():
        folder.mkdir(parents=True, exist_ok=True)
        write_atomically(folder / "config.yaml", yaml.safe_dump(as_dict(cfg), sort_keys=False))
        return False
    changed = differences(settings_of(folder), as_dict(cfg))
    finished = result_of(folder) is not None
    started = Checkpoints(folder / "checkpoints", cfg.keep).latest()
    step = int(started.name.removeprefix("step-")) if started else 0
    untouched = not finished and started is None and not (folder / "log.jsonl").exists()
    if changed.training and not untouched:
        raise ConfigError(
            f"{folder} holds a run with other settings ({'; '.join(changed.training)}); pass --fresh to replace it, "
            "or name=... for another folder"
        )
    if started is not None and not finished and not resume:
        raise ConfigError(
            f"{folder} holds an unfinished run (iteration {step} of {cfg.steps}); pass --resume to go on, "
            "or --fresh to start over"
        )
    if finished:
        if not changed.evaluation:
            return True
        _reopen(folder, cfg, step, resume, "; ".join(changed.evaluation))
    if any(changed):
        write_atomically(folder / "config.yaml", yaml.safe_dump(as_dict(cfg), sort_keys=False))
    return False


def _reopen(folder: Path, cfg: Config, step: int, resume: bool, changed: str) -> None:
    """Make a finished run unfinished, so that its student is measured with other settings, without training."""
    if not resume:
        raise ConfigError(f"{folder} was measured with other settings ({changed}); pass --resume to measure it anew")
    if step != cfg.steps:
        raise ConfigError(
            f"{folder} cannot be measured with other settings ({changed}): it has no checkpoint of its last iteration, "
            f"{cfg.steps}"
        )
    # Before the settings are written: figures never lie beside settings that they were not measured with.
    (folder / "metrics.json").replace(folder / "metrics.previous.json")


def train(cfg: Config, with_report: bool = True) -> dict[str, Any]:
    """Train from the latest checkpoint, or from the start, to the end; evaluate and write everything."""
    from fdistill import report

    folder = folder_of(cfg)
    cpus.take_threads(cfg.threads)
    if torch.device(cfg.device).type == "cpu":
        cpus.tell_if_oversubscribed()
    task = task_class(cfg)(cfg)
    distiller = Distiller(cfg, task, folder)
    distiller.restore()
    distiller.train()
    student = distiller.average.network
    figures = without_nan(task.evaluate(distiller, folder))
    partial = folder / ".student"
    shutil.rmtree(partial, ignore_errors=True)
    task.export(student, partial)
    shutil.rmtree(folder / "student", ignore_errors=True)
    partial.rename(folder / "student")
    result = {
        "name": cfg.name,
        "task": cfg.task,
        "divergence": cfg.loss.divergence,
        "shuffled": cfg.loss.shuffle_weight,
        "seed": cfg.seed,
        "config": digest(cfg),
        "training": digest(cfg, evaluation=False),
        **figures,
        "diverged": None in figures["student"].values(),
        "diverged_at": at if (at := int(distiller.diverged_at)) >= 0 else None,
        "distillation_seconds": round(distiller.seconds, 1),
        "skipped_updates": sum(int(role.skipped) for role in distiller.roles.values()),
        "threads": torch.get_num_threads(),
        "versions": {"fdkernels": _version("fdkernels"), "torch": torch.__version__},
    }
    if with_report:
        report.build(folder, as_dict(cfg), task.titles, result)
    # Last: a folder with metrics is a finished run.
    write_atomically(folder / "metrics.json", json.dumps(result, indent=2, allow_nan=False) + "\n")
    return result


def without_nan(value: Any) -> Any:
    """JSON has no NaN: a figure that is not finite is null."""
    if isinstance(value, dict):
        return {key: without_nan(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [without_nan(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def plan(cfg: Config) -> str:
    """What `train` would do: settings, networks, updates, memory, the kernel's backend. Trains and writes nothing."""
    with torch.device("meta"):
        networks, teacher = task_class(cfg).plan(cfg)
    updates = {name: sum(name in cfg.phases[i % len(cfg.phases)] for i in range(cfg.steps)) for name in networks}
    sizes = {name: parameter_count(network) for name, network in networks.items()}
    # Weights of all and the average of the student; gradient and two moments of what is trained.
    floats = sum(sizes.values()) + sizes["student"] + 3 * sum(sizes[name] for name in networks if updates[name])
    backend = backends.choose(cfg.loss.backend, torch.device(cfg.device).type)
    lines = [
        yaml.safe_dump(as_dict(cfg), sort_keys=False, default_flow_style=None, width=110),
        f"folder         {folder_of(cfg)}",
        f"teacher        {teacher}",
        *(f"{name:14} {sizes[name]:,} parameters, {updates[name]:,} updates" for name in networks),
        f"memory         {4 * floats / 2**20:.1f} MiB of weights, averages, gradients, moments; without activations",
        f"phases         {' | '.join('+'.join(phase) for phase in cfg.phases)}; {cfg.steps:,} × batch {cfg.batch}",
        f"score loss     fused_fdiv_loss, {cfg.loss.divergence}, backend {backend} on {cfg.device}",
    ]
    return "\n".join(lines)


def _version(distribution: str) -> str:
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return "checkout"
