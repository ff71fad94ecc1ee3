"""A run is a folder: settings, log, checkpoints, and at the end metrics, pictures, report and student."""

from __future__ import annotations

import json
import math
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
import yaml

from fdistill import config, cpus, reading
from fdistill.checkpoint import Checkpoints
from fdistill.checks import ROLES
from fdistill.config import Config, ConfigError, DigitsConfig, GmmConfig, as_dict, differences, digest
from fdistill.files import FolderError, install, new_partial, seal, sweep, write_atomically, writing
from fdistill.folder import OF_A_STUDENT, check, claimed, clear, folder_of
from fdistill.networks import parameter_count
from fdistill.task import Task
from fdistill.trainer import Distiller
from fdkernels import backends


def task_class(cfg: Config) -> type[Task]:
    """The task's class, imported only when needed, so that a missing diffusers does not stop the gmm task."""
    if isinstance(cfg, DigitsConfig):
        from fdistill.digits import DigitsTask

        return DigitsTask
    if isinstance(cfg, GmmConfig):
        from fdistill.gmm import GmmTask

        return GmmTask
    raise ConfigError(f"task: expected digits or gmm, got {config.shown(cfg.task)}")


def settings_of(folder: Path) -> dict[str, Any]:
    """The settings of a run on disk."""
    path = folder / "config.yaml"
    if not path.is_file():
        raise ConfigError(f"{folder} is not a run: it has no config.yaml")
    try:
        return reading.mapping(reading.file_text(str(path)), str(path))
    except ConfigError as error:
        raise ConfigError(f"{error}; the settings of this run are damaged: pass --fresh to train it anew") from None


def result_of(folder: Path) -> dict[str, Any] | None:
    """The metrics of a finished run, else None; raises if the file is damaged."""
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
    """Whether the folder holds a finished run with these settings. Changes nothing.

    Presentation settings may differ. Evaluation settings may differ with `resume`: an unfinished run goes on with them,
    a finished one is measured again. Training settings may differ if nothing was trained yet.

    Raises:
        ConfigError: the folder can't hold this run, holds a run with other settings, or holds an unfinished run and
            neither resume nor fresh was asked for.
    """
    folder = folder_of(cfg)
    check(folder, Path(cfg.out))
    if fresh or not folder.is_dir():
        return False
    checkpoints = Checkpoints.of_run(folder, cfg.keep)
    last = checkpoints.last()
    if not (folder / "config.yaml").is_file():
        if last:
            raise ConfigError(f"{folder} holds a run without its config.yaml; pass --fresh to start over")
        return False
    changed = differences(settings_of(folder), as_dict(cfg))
    finished = result_of(folder) is not None
    if changed.training and (last or finished):
        raise ConfigError(
            f"{folder} holds a run with other settings ({'; '.join(changed.training)}); pass --fresh to replace it, "
            "or name=... for another folder"
        )
    if finished:
        if changed.evaluation:
            _check_can_be_measured(folder, cfg, checkpoints, resume, "; ".join(changed.evaluation))
        return not changed.evaluation
    if last and not resume:
        step = int(last.removeprefix("step-"))
        raise ConfigError(
            f"{folder} holds an unfinished run (iteration {step} of {cfg.steps}); pass --resume to go on, "
            "or --fresh to start over"
        )
    return False


def _check_can_be_measured(folder: Path, cfg: Config, checkpoints: Checkpoints, resume: bool, changed: str) -> None:
    """Raise if a finished run's student can't be measured with other settings, without training."""
    if not resume:
        raise ConfigError(f"{folder} was measured with other settings ({changed}); pass --resume to measure it anew")
    try:
        newest = checkpoints.latest()
    except FolderError:
        newest = None
    if newest is None or int(newest.name.removeprefix("step-")) != cfg.steps:
        raise ConfigError(
            f"{folder} cannot be measured with other settings ({changed}): it has no checkpoint of its last iteration, "
            f"{cfg.steps}"
        )


def train(cfg: Config, with_report: bool = True, resume: bool = True, fresh: bool = False) -> dict[str, Any]:
    """Train from the latest checkpoint, or from the start, to the end; evaluate and write everything.

    A lock keeps other processes out of the folder meanwhile. What can fail at the start fails before any file of an
    earlier run is changed. Raises like `prepare`, and FolderError if checkpoints were saved but none is whole.
    """
    folder = folder_of(cfg)
    with claimed(folder, Path(cfg.out)), writing(folder):
        finished = prepare(cfg, resume, fresh)
        return (result_of(folder) if finished else None) or _train(cfg, folder, with_report, fresh)


def _train(cfg: Config, folder: Path, with_report: bool, fresh: bool) -> dict[str, Any]:
    from fdistill import report

    cpus.take_threads(cfg.threads)
    if torch.device(cfg.device).type == "cpu":
        cpus.tell_if_oversubscribed()
    task = task_class(cfg)(cfg)
    distiller = Distiller(cfg, task, folder)
    _start(distiller, fresh)
    distiller.train()
    student = distiller.average.network
    figures = without_nan(task.evaluate(distiller, folder))
    with writing(folder / "student"):
        sweep(folder, OF_A_STUDENT)
        partial = new_partial(folder / "student")
        task.export(student, partial)
        seal(partial)
        install(partial, folder / "student")
    result = {
        "name": cfg.name,
        "task": cfg.task,
        "kind": cfg.loss.kind,
        "divergence": cfg.loss.divergence if cfg.loss.kind == "fdiv" else None,
        "shuffled": cfg.loss.shuffle_weight,
        "seed": cfg.seed,
        "config": digest(cfg),
        "training": digest(cfg, evaluation=False),
        **figures,
        "diverged": None in figures["student"].values() or any(bool(ended) for ended in distiller.ended.values()),
        "diverged_at": at if (at := int(distiller.diverged_at)) >= 0 else None,
        "diverged_role": ROLES[int(distiller.diverged_role)] if at >= 0 else None,
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


def _start(distiller: Distiller, fresh: bool) -> None:
    """Restore the latest checkpoint, or clear the folder and start; print which. Then write the settings, which may
    differ from those in the folder if there is no checkpoint."""
    folder = distiller.folder
    if not fresh and distiller.restore():
        print(f"{folder}: going on from step-{distiller.step:08d}", flush=True)
        figures = folder / "metrics.json"
        if figures.exists():
            # Before the settings are written: figures must not lie beside settings that they were not measured with.
            figures.replace(folder / "metrics.previous.json")
    else:
        kept = clear(folder)
        if kept:
            print(f"{folder}: no run made {', '.join(kept)}; this stays")
        print(f"{folder}: starting", flush=True)
    write_atomically(folder / "config.yaml", yaml.safe_dump(as_dict(distiller.cfg), sort_keys=False))


def without_nan(value: Any) -> Any:
    """The value with None, JSON's null, in place of numbers that are not finite: JSON has no NaN."""
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
    # The weights of all networks, the student's average, and the gradient and two moments of each trained network.
    floats = sum(sizes.values()) + sizes["student"] + 3 * sum(sizes[name] for name in networks if updates[name])
    loss = cfg.loss
    how = {
        "fdiv": f"fused_fdiv_loss, {loss.divergence}",
        "sid": f"score_implicit_loss, sid, alpha {loss.alpha:g}, sigma_power {loss.sigma_power:g}",
        "sim": f"score_implicit_loss, sim, c {loss.c:g}, sigma_power {loss.sigma_power:g}",
    }[loss.kind]
    generator = f"{loss.gan} loss × {loss.gan_weight:g}" if loss.gan_weight else "no adversarial term"
    backend = backends.choose(cfg.loss.backend, torch.device(cfg.device).type)
    lines = [
        yaml.safe_dump(as_dict(cfg), sort_keys=False, default_flow_style=None, width=110),
        f"folder         {folder_of(cfg)}",
        f"teacher        {teacher}",
        *(f"{name:14} {sizes[name]:,} parameters, {updates[name]:,} updates" for name in networks),
        f"memory         {4 * floats / 2**20:.1f} MiB of weights, averages, gradients, moments; without activations",
        f"phases         {' | '.join('+'.join(phase) for phase in cfg.phases)}; {cfg.steps:,} × batch {cfg.batch}",
        f"score loss     {how}, backend {backend} on {cfg.device}",
        f"generator      {generator}",
    ]
    return "\n".join(lines)


def _version(distribution: str) -> str:
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return "checkout"
