"""Typed settings: a preset or YAML file, then key=value overrides. Nothing in a config is executed.

Each number has its range in its type. `checks.py` checks settings against each other.
"""

from __future__ import annotations

import dataclasses
import difflib
import functools
import hashlib
import json
import re
import typing
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, NamedTuple

from fdistill import checks, reading
from fdistill.messages import ConfigError, cut, shown
from fdistill.ranges import Choice, Range
from fdistill.reading import presets

__all__ = ["TASKS", "Config", "ConfigError", "as_dict", "differences", "digest", "from_dict", "load", "presets"]

DIGITS = 1797  # images in scikit-learn's data set
# Random streams take seeds up to seed·100,003 plus an offset, which must fit the 64 bits of torch's generator.
SEEDS = Range("start of the random streams", least=0, most=2**32 - 1)
Seed = Annotated[int, SEEDS]
Count = Annotated[int, Range(least=1)]
Iterations = Annotated[int, Range("iterations", least=1)]
Kept = Annotated[float, Range("part of the former mean that an update keeps; 0: all is new", least=0, below=1)]
Ratio = Annotated[float, Range("density ratio; the first below the second", above=0)]
Sigma = Annotated[float, Range("noise level σ, of data of about unit size", least=1e-3, most=1e4)]
Length = Annotated[float, Range("of the plane", above=0, most=1e3)]
Layers = Annotated[int, Range("residual layers; 0: one hidden layer alone", least=0)]
Batch = Annotated[
    int, Range("samples", least=2, hint="h is divided by its mean over the batch, which leaves nothing of one sample's")
]
Channels = Annotated[int, Range("channels, normalized in 8 groups", least=8, multiple=8)]
BlockChannels = Annotated[int, Range("channels of one to four blocks, normalized in 8 groups", least=8, multiple=8)]


@dataclass
class OptimizerConfig:
    """The fused AdamW of one role."""

    lr: Annotated[float, Range("per update", above=0, hint="a role that no phase names is not trained")] = 1e-3
    betas: tuple[Kept, Kept] = (0.0, 0.99)
    weight_decay: Annotated[float, Range("of a weight per update and lr; at most 1/lr", above=0, off="no decay")] = 0.0
    clip: Annotated[float, Range("largest global gradient norm", above=0, off="no clipping")] = 10.0
    schedule: Annotated[str, Choice("constant", "cosine", unit="cosine: down to zero at the last update")] = "constant"
    warmup: Annotated[int, Range("updates; the run may end before", least=1, off="no warm-up")] = 0


@dataclass
class LossConfig:
    """What the student follows. h is made of logistic logits alone: with another `gan` its settings have no effect."""

    kind: Annotated[str, Choice("fdiv", "sim", "sid", unit="f-distill, or score implicit matching: SIM, SiD")] = "fdiv"
    divergence: Annotated[str, Choice(unit="of fdiv")] = "js"
    alpha: Annotated[float, Range("of sid; SiD-LSG has 1", least=-10, most=10)] = 1.2
    c: Annotated[float, Range("of sim, which needs it; in units of the scores' difference", above=0, off="none")] = 0.0
    sigma_power: Annotated[
        float, Range("of sim and sid: a sample's loss is multiplied by σ^sigma_power", least=-10, most=10)
    ] = 0.0
    gan: Annotated[
        str, Choice("logistic", "hinge", "relativistic", unit="the adversarial losses; fdiv: see docs/trainer.md")
    ] = "logistic"
    ratio_range: tuple[Ratio, Ratio] = (0.1, 20.0)
    normalize_ratio: bool = True  # divide the ratio by its running mean per noise level (RatioNormalizer)
    bins: Annotated[int, Range("noise levels of RatioNormalizer", least=1, most=1000)] = 10
    decay: Kept = 0.9
    gan_weight: Annotated[float, Range("of the generator's loss", above=0, off="no adversarial term")] = 0.0
    shuffle_weight: bool = False
    """A control: permute h within the batch, which keeps its distribution and removes its meaning."""
    backend: str = "auto"


# The kinds that use a setting of the loss; those that are not here are used by all.
USED_BY = {
    **dict.fromkeys(("divergence", "ratio_range", "normalize_ratio", "bins", "decay", "shuffle_weight"), ("fdiv",)),
    "alpha": ("sid",), "c": ("sim",), "sigma_power": ("sim", "sid"),
}  # fmt: skip


@dataclass
class EvalConfig:
    """How the student is measured and shown. `--resume` accepts other values than the run started with."""

    snapshots: Annotated[int, Range("pictures of samples on fixed noise over the run", least=1, off="none")] = 20
    samples: Annotated[int, Range("images in each measured set", least=2, most=10**6)] = DIGITS
    teacher_steps: Annotated[int, Range("Heun steps", least=1)] = 20
    neighbours: Annotated[int, Range("k of precision and recall; fewer than images in a set", least=1)] = 5
    bootstraps: Annotated[int, Range("of the real data, for the floor", least=1, off="no floor")] = 8


@dataclass
class Config:
    """The settings of every task. `phases` is a cycle: iteration i updates the roles in phases[i % len(phases)]."""

    task: str = ""
    name: str = ""  # of the folder under `out`; empty: made of the preset, the objective and the seed
    seed: Seed = 0
    steps: Iterations = 0
    batch: Batch = 64
    phases: list[list[str]] = field(default_factory=lambda: [["student", "fake", "discriminator"]])
    sigma_max: Sigma = 2.5  # the student's only noise level
    sigma_log_mean: Annotated[float, Range("of ln σ of the noised samples", least=-10, most=10)] = -0.4
    sigma_log_std: Annotated[float, Range("of ln σ, which is normal", above=0, most=5)] = 1.2
    student: OptimizerConfig = field(default_factory=OptimizerConfig)
    fake: OptimizerConfig = field(default_factory=OptimizerConfig)
    discriminator: OptimizerConfig = field(default_factory=OptimizerConfig)
    ema: Kept = 0.99  # of the student's weights, per student update; this average is evaluated and saved
    loss: LossConfig = field(default_factory=LossConfig)
    eval: EvalConfig = field(default_factory=EvalConfig)
    device: str = "cpu"
    threads: Annotated[int, Range("of the CPU", least=1, most=1024, off="as many as torch takes")] = 0
    log_every: Iterations = 20
    checkpoint_every: Iterations = 200
    keep: Annotated[int, Range("checkpoints kept, the newest", least=1)] = 2
    out: str = "runs"
    cache: str = ".cache/fdistill"
    """The folder of trained teachers and metric classifiers, which later runs use again."""


@dataclass
class TeacherConfig:
    """A small EDM-preconditioned UNet2DModel, which the first run trains."""

    channels: tuple[BlockChannels, ...] = (16, 32)
    layers_per_block: Annotated[int, Range("residual layers", least=1)] = 1
    sigma_data: Annotated[float, Range("standard deviation of the data", least=1e-3, most=1e3)] = 0.75
    steps: Annotated[int, Range("updates", least=1)] = 2000
    batch: Annotated[int, Range("images", least=1)] = 128
    lr: Annotated[float, Range("per update", above=0)] = 2e-3
    ema: Kept = 0.995
    seed: Seed = 0
    checkpoint_every: Annotated[int, Range("updates", least=1)] = 500


@dataclass
class DigitsConfig(Config):
    teacher: TeacherConfig = field(default_factory=TeacherConfig)
    head_width: Channels = 32  # of each discriminator head
    teacher_sigma_min: Sigma = 0.01
    teacher_sigma_max: Sigma = 80.0  # the teacher's many-step sampler runs between these two noise levels


@dataclass
class MixtureConfig:
    """A 3×3 grid of Gaussians with unequal weights."""

    spacing: Length = 2.0
    std: Length = 0.15
    weights: tuple[Annotated[float, Range("before they are divided by their sum", above=0, most=1e6)], ...] = (
        1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0, 9.0,
    )  # fmt: skip
    """One for each of the nine modes."""


@dataclass
class GmmEvalConfig(EvalConfig):
    samples: Annotated[
        int, Range("points in each measured set; half are kernels of the estimated density", least=100, most=10**6)
    ] = DIGITS


@dataclass
class GmmConfig(Config):
    eval: GmmEvalConfig = field(default_factory=GmmEvalConfig)
    mixture: MixtureConfig = field(default_factory=MixtureConfig)
    noise_dimension: Annotated[int, Range("the first two start as the point", least=2)] = 2
    width: Annotated[int, Range("hidden units of the student", least=1)] = 64
    depth: Layers = 2  # of the student's MLP
    critic_width: Annotated[int, Range("hidden units", least=1)] = 128
    critic_depth: Layers = 3  # of the fake score's and the discriminator's MLPs


TASKS: dict[str, type[Config]] = {"digits": DigitsConfig, "gmm": GmmConfig}

# What these settings decide; all others decide the training. --resume accepts changes of these settings.
PRESENTATION = frozenset(
    {"name", "out", "cache", "log_every", "checkpoint_every", "keep", "threads", "eval.snapshots"}
    | {"teacher.checkpoint_every"}
)
EVALUATION = frozenset(
    {"eval.samples", "eval.teacher_steps", "eval.neighbours", "eval.bootstraps"}
    | {"teacher_sigma_min", "teacher_sigma_max"}
)


def load(source: str, overrides: Sequence[str] = ()) -> Config:
    """The config of a preset or a YAML file (which may start from another: `preset: digits`) and key=value overrides.

    Raises:
        ConfigError: names the key and the nearest valid one, or the expected type or range.
    """
    overridden: dict[str, Any] = {}
    for override in overrides:
        key, separator, text = override.partition("=")
        if not separator or not text.strip():
            raise ConfigError(f"expected key=value (null stands for none), got {shown(override)}")
        value = reading.parsed(text, f"{cut(key)}: {shown(text)} is not a YAML value")
        for part in reversed(key.split(".")):
            value = {part: value}
        overridden = _merge(overridden, value)
    cfg = from_dict(functools.reduce(_merge, [*reading.layers(source), overridden], {}))
    _check_used(overridden, cfg.loss.kind)
    if not cfg.name:
        seed, shuffled = f"-seed{cfg.seed}" if cfg.seed else "", "-shuffled" if cfg.loss.shuffle_weight else ""
        stem, ending = Path(source).stem, f"-{objective(as_dict(cfg))}"
        cfg.name = f"{stem.removesuffix(ending)}{ending}{shuffled}{seed}"  # of the preset gmm-sid: gmm-sid
        checks.check_folders(cfg)
    return cfg


def from_dict(settings: dict[str, Any], to_train: bool = True) -> Config:
    """The config that plain values describe; raises like `load`.

    Args:
        to_train: check that this machine has the device and the kernels. False is for drawing samples: it skips this
            check and the evaluation settings, which had other ranges in earlier versions.
    """
    task = settings.get("task")
    if not isinstance(task, str) or task not in TASKS:
        raise ConfigError(f"task: expected one of {', '.join(TASKS)}, got {shown(task)}")
    if not to_train:
        settings = {key: value for key, value in settings.items() if key != "eval"}
    cls = TASKS[task]
    cfg = _build(cls, settings, "", cls)
    checks.check(cfg)
    if to_train:
        checks.check_machine(cfg)
    return cfg


def _check_used(overridden: dict[str, Any], kind: str) -> None:
    """Refuse an override that has no effect. A file may hold settings of every kind, as a run's config.yaml does."""
    for key in overridden.get("loss", ()):
        if kind not in USED_BY.get(key, (kind,)):
            whose = " or ".join(USED_BY[key])
            raise ConfigError(f"loss.{key}: has no effect with loss.kind={kind}; it is a setting of {whose}")


def _merge(base: Any, over: Any) -> Any:
    if not (isinstance(base, dict) and isinstance(over, dict)):
        return over
    return {**base, **{key: _merge(base.get(key), value) for key, value in over.items()}}


def kinds(cls: Any, prefix: str = "") -> dict[str, Any]:
    """The type of every setting, by its key (`student.lr`)."""
    found: dict[str, Any] = {}
    for name, kind in typing.get_type_hints(cls, include_extras=True).items():
        inner = dataclasses.is_dataclass(kind)
        found |= kinds(kind, f"{prefix}{name}.") if inner else {prefix + name: kind}
    return found


def _build(cls: Any, settings: Any, prefix: str, root: type[Config]) -> Any:
    hints = typing.get_type_hints(cls, include_extras=True)
    if not isinstance(settings, dict):
        raise ConfigError(f"{prefix.rstrip('.')}: expected settings ({', '.join(kinds(cls))}), got {shown(settings)}")
    values = {}
    for key, value in settings.items():
        path = f"{prefix}{key}"
        if key not in hints:
            known = list(kinds(root))
            same_leaf = [name for name in known if name.split(".")[-1] == str(key)]
            nearest = same_leaf or difflib.get_close_matches(cut(path), known, n=1, cutoff=0.0)
            raise ConfigError(f"unknown setting {shown(path)}; did you mean {nearest[0]!r}?")
        inner = dataclasses.is_dataclass(hints[key])
        values[key] = _build(hints[key], value, path + ".", root) if inner else _coerce(hints[key], value, path)
    return cls(**values)


_EXPONENT = re.compile(r"[-+]?[0-9]+(\.[0-9]*)?[eE][-+]?[0-9]+")  # 1e-3, which YAML 1.1 reads as a string


def _coerce(kind: Any, value: Any, path: str) -> Any:
    """The value as `kind`, a type or `Annotated[type, Range]`; raises if it has another type or is out of range."""
    origin, args = typing.get_origin(kind), typing.get_args(kind)
    if origin is Annotated:
        number, limits = args
        converted = _coerce(number, 0 if value is None and limits.off else value, path)
        limits.check(path, converted, value)
        return converted
    if origin in (tuple, list) and isinstance(value, (list, tuple)):
        variable = origin is list or args[-1] is Ellipsis
        if variable or len(args) == len(value):
            return origin(
                _coerce(args[0] if variable else args[i], v, path if origin is list else f"{path}[{i}]")
                for i, v in enumerate(value)
            )
    if kind is float and (type(value) in (int, float) or isinstance(value, str) and _EXPONENT.fullmatch(value)):
        try:
            return float(value)
        except OverflowError:
            pass
    if type(value) is kind:
        return value
    if kind is str and type(value) is int:  # name=7
        return str(value)
    raise ConfigError(f"{path}: expected {in_words(kind)}, got {shown(value)}")


def in_words(kind: Any) -> str:
    """What a setting of this type may be: `an integer >= 1`; `a list of 2, each a number in [0, 1)`."""
    origin, args = typing.get_origin(kind), typing.get_args(kind)
    if origin is Annotated:
        number, limits = args
        return limits.text(number)
    if origin in (tuple, list) and kind != list[str]:
        count = f" of {len(args)}" if origin is tuple and args[-1] is not Ellipsis else ""
        return f"a list{count}, each {in_words(args[0])}"
    return {
        int: "an integer",
        float: "a number",
        bool: "true or false",
        str: "text",
        list[str]: f"a list of {', '.join(checks.ROLES)}",
    }[kind]


def as_dict(cfg: Any) -> dict[str, Any]:
    """The settings as plain values, as JSON and YAML return them."""
    return json.loads(json.dumps(cfg if isinstance(cfg, dict) else dataclasses.asdict(cfg)))


def objective(settings: dict[str, Any], in_words: bool = False) -> str:
    """What a run's student follows: its divergence, sim or sid."""
    loss = settings["loss"]
    kind = loss.get("kind", "fdiv")  # runs of earlier versions have none
    if kind == "fdiv":
        return f"the {loss['divergence']} divergence" if in_words else loss["divergence"]
    return f"score implicit matching ({kind})" if in_words else kind


def fingerprint(settings: dict[str, Any]) -> str:
    """A hash of plain values."""
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:16]


def digest(cfg: Any, evaluation: bool = True) -> str:
    """A hash of the settings that decide the training and, if `evaluation`, of those that decide the evaluation."""
    ignored = PRESENTATION if evaluation else PRESENTATION | EVALUATION
    return fingerprint({key: value for key, value in flat(as_dict(cfg)).items() if key not in ignored})


class Differences(NamedTuple):
    """`key: old -> new` of every setting that differs, by what it decides."""

    training: list[str]
    evaluation: list[str]
    presentation: list[str]


def differences(old: dict[str, Any], new: dict[str, Any], prefix: str = "") -> Differences:
    found = Differences([], [], [])
    for key in sorted(old.keys() | new.keys(), key=str):
        a, b, path = old.get(key), new.get(key), f"{prefix}{key}"
        if isinstance(a, dict) and isinstance(b, dict):
            for told, inner in zip(found, differences(a, b, f"{path}."), strict=True):
                told += inner
        elif a != b:
            decides = "presentation" if path in PRESENTATION else "evaluation" if path in EVALUATION else "training"
            getattr(found, decides).append(f"{cut(path)}: {_bare(a)} -> {_bare(b)}")
    return found


def flat(settings: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested settings on one level, by key: `student.lr`."""
    found: dict[str, Any] = {}
    for key, value in settings.items():
        found |= flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return found


def _bare(value: object) -> str:
    return cut(value) if isinstance(value, str) else shown(value)
