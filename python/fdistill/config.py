"""Typed settings: a preset or YAML file, then key=value overrides. Nothing in a config is executed."""

from __future__ import annotations

import dataclasses
import difflib
import hashlib
import json
import os
import reprlib
import typing
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import Any

import torch

import fdkernels as fdk


class ConfigError(ValueError):
    """A setting that is unknown, of the wrong type or impossible; the message names it."""


@dataclass
class OptimizerConfig:
    """AdamW, fused; a role that is trained has one."""

    lr: float = 1e-3
    betas: tuple[float, float] = (0.0, 0.99)
    weight_decay: float = 0.0
    clip: float = 10.0  # largest global gradient norm
    schedule: str = "constant"  # constant, or cosine: down to zero at the last step
    warmup: int = 0


@dataclass
class LossConfig:
    divergence: str = "js"
    ratio_range: tuple[float, float] = (0.1, 20.0)
    normalize_ratio: bool = True  # divide the ratio by its running mean per noise level (RatioNormalizer)
    bins: int = 10
    decay: float = 0.9
    gan_weight: float = 0.0  # of softplus(-logit) beside the score-difference loss
    shuffle_weight: bool = False
    """A control: h permuted within the batch, so that its distribution stays and its meaning goes."""
    backend: str = "auto"


@dataclass
class EvalConfig:
    snapshots: int = 20  # how many pictures of samples on fixed noise over the run
    samples: int = 1797
    teacher_steps: int = 20
    neighbours: int = 5  # k of precision and recall
    bootstraps: int = 8  # of the real data, for the floor


@dataclass
class Config:
    """What every task has. `phases` is a cycle: iteration i updates the roles in phases[i % len(phases)]."""

    task: str = ""
    name: str = ""  # of the folder under `out`; empty: the preset, the divergence and the seed
    seed: int = 0
    steps: int = 0  # iterations; how many of them update the student is up to `phases`
    batch: int = 64
    phases: list[list[str]] = field(default_factory=lambda: [["student", "fake", "discriminator"]])
    sigma_max: float = 2.5  # the one noise level from which the student starts
    sigma_log_mean: float = -0.4
    sigma_log_std: float = 1.2  # ln σ ~ N(mean, std²) for the noised samples on which scores are compared
    student: OptimizerConfig = field(default_factory=OptimizerConfig)
    fake: OptimizerConfig = field(default_factory=OptimizerConfig)
    discriminator: OptimizerConfig = field(default_factory=OptimizerConfig)
    ema: float = 0.99  # of the student, per student update; what is evaluated and saved
    loss: LossConfig = field(default_factory=LossConfig)
    eval: EvalConfig = field(default_factory=EvalConfig)
    device: str = "cpu"
    log_every: int = 20
    checkpoint_every: int = 200
    keep: int = 2  # checkpoints kept, the newest
    out: str = "runs"
    cache: str = ".cache/fdistill"
    """Trained teachers and metric classifiers, found again by the hash of their settings."""


@dataclass
class TeacherConfig:
    """A small EDM-preconditioned UNet2DModel, trained on the spot."""

    channels: tuple[int, ...] = (16, 32)
    layers_per_block: int = 1
    sigma_data: float = 0.75
    steps: int = 2000
    batch: int = 128
    lr: float = 2e-3
    ema: float = 0.995
    seed: int = 0
    checkpoint_every: int = 500


@dataclass
class DigitsConfig(Config):
    teacher: TeacherConfig = field(default_factory=TeacherConfig)
    head_width: int = 32  # of each discriminator head
    teacher_sigma_min: float = 0.01
    teacher_sigma_max: float = 80.0  # between which the teacher's many-step sampler runs


@dataclass
class MixtureConfig:
    """A 3×3 grid of Gaussians with unequal weights."""

    spacing: float = 2.0
    std: float = 0.15
    weights: tuple[float, ...] = (1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0, 9.0)
    """Normalized to sum 1; one for each of the nine modes."""


@dataclass
class GmmConfig(Config):
    mixture: MixtureConfig = field(default_factory=MixtureConfig)
    noise_dimension: int = 2
    width: int = 64
    depth: int = 2  # of the student's MLP
    critic_width: int = 128
    critic_depth: int = 3  # of the fake score's and the discriminator's MLPs


TASKS: dict[str, type[Config]] = {"digits": DigitsConfig, "gmm": GmmConfig}

MOST_SHOWN = 200  # characters of a value in a message
_short = reprlib.Repr()
_short.maxlevel, _short.maxlist, _short.maxtuple, _short.maxstring = 3, 9, 9, 80

# Settings that neither decide the next step nor what is measured at the end.
_PRESENTATION = frozenset({"name", "out", "cache", "log_every", "checkpoint_every", "keep"})


def presets() -> list[str]:
    folder = resources.files("fdistill") / "presets"
    return sorted(entry.name.removesuffix(".yaml") for entry in folder.iterdir() if entry.name.endswith(".yaml"))


def load(source: str, overrides: typing.Sequence[str] = ()) -> Config:
    """A preset's name or a YAML file's path (which may start from a preset: `preset: digits`), and key=value overrides.

    Raises:
        ConfigError: naming the key and the nearest valid one, or the type that was expected.
    """
    settings = _read(source)
    for override in overrides:
        key, separator, text = override.partition("=")
        if not separator:
            raise ConfigError(f"expected key=value, got {shown(override)}")
        value = _parsed(text, f"{cut(key)}: {shown(text)} is not a YAML value")
        for part in reversed(key.split(".")):
            value = {part: value}
        settings = _merge(settings, value)
    cfg = from_dict(settings)
    if not cfg.name:
        seed, shuffled = f"-seed{cfg.seed}" if cfg.seed else "", "-shuffled" if cfg.loss.shuffle_weight else ""
        cfg.name = f"{Path(source).stem}-{cfg.loss.divergence}{shuffled}{seed}"
        _check_folders(cfg)
    return cfg


def from_dict(settings: dict[str, Any]) -> Config:
    """The config that plain values describe; raises as `load`."""
    task = settings.get("task")
    if not isinstance(task, str) or task not in TASKS:
        raise ConfigError(f"task: expected one of {', '.join(TASKS)}, got {shown(task)}")
    cls = TASKS[task]
    cfg = _build(cls, settings, "", cls)
    _check(cfg)
    return cfg


def _read(source: str) -> dict[str, Any]:
    """The settings of a preset or file over those that it starts from."""
    layers: dict[str, dict[str, Any]] = {}  # by the file's one path, whatever it is called where it is named
    chain, base = [], source
    while base is not None:
        if not isinstance(base, str):
            raise ConfigError(f"{chain[-1]}: preset: expected a name or a path, got {shown(base)}")
        chain.append(base)
        text, place = _text(base), os.path.realpath(base)
        if place in layers:
            raise ConfigError(f"preset: expected no cycle of files, got {cut(' -> '.join(chain), 500)}")
        layers[place] = mapping(text, base)
        base = layers[place].pop("preset", None)
    settings: dict[str, Any] = {}
    for layer in reversed(layers.values()):
        settings = _merge(settings, layer)
    return settings


def _text(source: str) -> str:
    if source in presets():
        return (resources.files("fdistill") / "presets" / f"{source}.yaml").read_text(encoding="utf-8")
    if not source.endswith((".yaml", ".yml")):
        raise ConfigError(
            f"unknown preset {shown(source)}; expected {' or '.join(presets())}, or the path of a .yaml file"
        )
    if not os.path.isfile(source):  # Path.is_file raises on a name too long
        raise ConfigError(f"no such file: {cut(source)}")
    return file_text(source)


def file_text(path: str) -> str:
    try:
        return Path(path).read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        fault = f"byte 0x{error.object[error.start]:02x} at position {error.start}"
        raise ConfigError(f"{path}: expected text in UTF-8, got {fault}") from None
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}") from None


def mapping(text: str, source: str) -> dict[str, Any]:
    """The settings in a file's text."""
    settings = _parsed(text, f"{source}: not valid YAML")
    if not isinstance(settings, dict):
        raise ConfigError(f"{source}: expected a mapping of settings, got {type(settings).__name__}")
    return settings


def _parsed(text: str, fault: str) -> Any:
    import yaml  # here, so that --help works without it

    try:
        return yaml.safe_load(text)
    # Whatever PyYAML's constructors meet: a date of month 13, an integer too long, brackets without end.
    except (yaml.YAMLError, ValueError, AttributeError, RecursionError) as error:
        raise ConfigError(f"{fault}: {cut(str(error), 500)}") from None


def shown(value: object) -> str:
    """A value for a message, cut: a few aliases of YAML's can stand for a gigabyte."""
    try:
        return cut(_short.repr(value))
    except ValueError:  # Python prints no integer of more than 4,300 digits
        return f"a long {type(value).__name__}"


def cut(text: str, most: int = MOST_SHOWN) -> str:
    return text if len(text) <= most else f"{text[:most]}…"


def _merge(base: Any, over: Any) -> Any:
    if not (isinstance(base, dict) and isinstance(over, dict)):
        return over
    return {**base, **{key: _merge(base.get(key), value) for key, value in over.items()}}


def _keys(cls: Any, prefix: str = "") -> list[str]:
    found = []
    for name, kind in typing.get_type_hints(cls).items():
        found += _keys(kind, f"{prefix}{name}.") if dataclasses.is_dataclass(kind) else [prefix + name]
    return found


def _build(cls: Any, settings: Any, prefix: str, root: type[Config]) -> Any:
    hints = typing.get_type_hints(cls)
    if not isinstance(settings, dict):
        raise ConfigError(f"{prefix.rstrip('.')}: expected settings ({', '.join(_keys(cls))}), got {shown(settings)}")
    values = {}
    for key, value in settings.items():
        path = f"{prefix}{key}"
        if key not in hints:
            same_leaf = [known for known in _keys(root) if known.split(".")[-1] == str(key)]
            nearest = same_leaf or difflib.get_close_matches(cut(path), _keys(root), n=1, cutoff=0.0)
            raise ConfigError(f"unknown setting {shown(path)}; did you mean {nearest[0]!r}?")
        inner = dataclasses.is_dataclass(hints[key])
        values[key] = _build(hints[key], value, path + ".", root) if inner else _coerce(hints[key], value, path)
    return cls(**values)


def _coerce(kind: Any, value: Any, path: str) -> Any:
    origin, args = typing.get_origin(kind), typing.get_args(kind)
    if origin in (tuple, list) and isinstance(value, (list, tuple)):
        variable = origin is list or args[-1] is Ellipsis
        if variable or len(args) == len(value):
            return origin(_coerce(args[0] if variable else args[i], v, path) for i, v in enumerate(value))
    if kind is float and isinstance(value, (int, float, str)) and not isinstance(value, bool):
        try:
            return float(value)  # YAML 1.1 reads 1e-3 as a string
        except (ValueError, OverflowError):
            pass
    if type(value) is kind:
        return value
    if kind is str and type(value) is int:  # name=7
        return str(value)
    raise ConfigError(f"{path}: expected {kind.__name__ if origin is None else kind}, got {shown(value)}")


def _check(cfg: Config) -> None:
    for key in ("steps", "batch", "log_every", "checkpoint_every", "keep"):
        if getattr(cfg, key) < 1:
            raise ConfigError(f"{key}: expected at least 1, got {shown(getattr(cfg, key))}")
    trained = ("student", "fake", "discriminator")
    for role in (role for phase in cfg.phases for role in phase):
        if role not in trained:
            raise ConfigError(f"phases: expected roles out of {', '.join(trained)}, got {shown(role)}")
    if not any("student" in phase for phase in cfg.phases):
        raise ConfigError("phases: no phase updates the student")
    for role in trained:
        schedule = getattr(cfg, role).schedule
        if schedule not in ("constant", "cosine"):
            raise ConfigError(f"{role}.schedule: expected constant or cosine, got {shown(schedule)}")
    if not 0 <= cfg.ema < 1:
        raise ConfigError(f"ema: expected a number in [0, 1), got {cfg.ema}")
    _check_folders(cfg)
    try:  # the library knows its divergences, ranges and backends
        loss, device = cfg.loss, torch.device(cfg.device)
        fdk.RatioNormalizer(loss.bins, decay=loss.decay)
        fdk.fdiv_weight(
            torch.zeros(8, device=device),
            divergence=loss.divergence,
            ratio_range=loss.ratio_range,
            backend=loss.backend,
        )
    except (ValueError, RuntimeError, AssertionError) as error:  # torch without CUDA asserts
        raise ConfigError(f"loss: {cut(str(error), 500)}") from None
    if isinstance(cfg, GmmConfig) and len(cfg.mixture.weights) != 9:
        raise ConfigError(f"mixture.weights: expected 9 numbers, got {len(cfg.mixture.weights)}")


def _check_folders(cfg: Config) -> None:
    """name is a folder below out; `.` would be out itself, with every run in it."""
    parts = Path(cfg.name).parts
    if cfg.name and (not parts or ".." in parts or Path(cfg.name).is_absolute() or not cfg.name.isprintable()):
        raise ConfigError(f"name: expected a folder below {cut(cfg.out)}, printable, got {shown(cfg.name)}")
    for key in ("out", "cache"):
        if "\0" in getattr(cfg, key):
            raise ConfigError(f"{key}: expected a folder, got {shown(getattr(cfg, key))}")


def as_dict(cfg: Any) -> dict[str, Any]:
    """Plain values, as they come back from JSON and YAML."""
    return json.loads(json.dumps(cfg if isinstance(cfg, dict) else dataclasses.asdict(cfg)))


def digest(cfg: Any) -> str:
    """Of the settings that decide the result, to tell whether a folder holds this run or this teacher."""
    settings = {key: value for key, value in as_dict(cfg).items() if key not in _PRESENTATION}
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:16]


def differences(old: dict[str, Any], new: dict[str, Any], prefix: str = "") -> list[str]:
    """`key: old -> new` for every setting of the result that differs."""
    found = []
    for key in sorted(old.keys() | new.keys()):
        a, b = old.get(key), new.get(key)
        if isinstance(a, dict) and isinstance(b, dict):
            found += differences(a, b, f"{prefix}{key}.")
        elif a != b and prefix + key not in _PRESENTATION:
            found.append(f"{prefix}{key}: {_bare(a)} -> {_bare(b)}")
    return found


def _bare(value: object) -> str:
    return cut(value) if isinstance(value, str) else shown(value)
