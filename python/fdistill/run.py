"""A run is a folder: settings, log, checkpoints, and at the end metrics, pictures, report and student."""

from __future__ import annotations

import json
import shutil
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
import yaml

from fdistill import config
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
    return config.mapping(config.file_text(str(path)), str(path))


def result_of(folder: Path) -> dict[str, Any] | None:
    """The metrics of a finished run, else None."""
    path = folder / "metrics.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None


def prepare(cfg: Config, resume: bool, fresh: bool) -> bool:
    """Make the run's folder ready; True where a finished run with these settings is already there.

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
    if changed:
        raise ConfigError(
            f"{folder} holds a run with other settings ({'; '.join(changed)}); pass --fresh to replace it, "
            "or name=... for another folder"
        )
    if result_of(folder) is not None:
        return True
    started = Checkpoints(folder / "checkpoints", cfg.keep).latest()
    if started is not None and not resume:
        step = int(started.name.removeprefix("step-"))
        raise ConfigError(
            f"{folder} holds an unfinished run (iteration {step} of {cfg.steps}); pass --resume to go on, "
            "or --fresh to start over"
        )
    return False


def train(cfg: Config, with_report: bool = True) -> dict[str, Any]:
    """Train from the latest checkpoint, or from the start, to the end; evaluate and write everything."""
    from fdistill import report

    folder = folder_of(cfg)
    task = task_class(cfg)(cfg)
    distiller = Distiller(cfg, task, folder)
    distiller.restore()
    distiller.train()
    student = distiller.average.network
    measured = task.evaluate(distiller, folder)
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
        **measured,
        "distillation_seconds": round(distiller.seconds, 1),
        "skipped_updates": sum(int(role.skipped) for role in distiller.roles.values()),
        "threads": torch.get_num_threads(),
        "versions": {"fdkernels": _version("fdkernels"), "torch": torch.__version__},
    }
    if with_report:
        report.build(folder, as_dict(cfg), task.titles, result)
    # Last: a folder with metrics is a finished run.
    write_atomically(folder / "metrics.json", json.dumps(result, indent=2) + "\n")
    return result


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
