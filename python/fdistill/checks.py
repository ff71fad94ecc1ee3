"""Checks of settings against each other and the machine. A single number's range is in its type, in `config.py`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import torch

import fdkernels as fdk
from fdistill.messages import ConfigError, cut, sentence, shown
from fdkernels import backends

if TYPE_CHECKING:
    from fdistill.config import Config, DigitsConfig

ROLES = ("student", "fake", "discriminator")


def check(cfg: Config) -> None:
    """Raise `ConfigError` if settings do not fit together, whatever the machine."""
    from fdistill.config import DigitsConfig, GmmConfig

    _check_phases(cfg)
    _check_optimizers(cfg)
    check_folders(cfg)
    _check_loss(cfg)
    if isinstance(cfg, DigitsConfig):
        _check_digits(cfg)
    if isinstance(cfg, GmmConfig) and len(cfg.mixture.weights) != 9:
        raise ConfigError(f"mixture.weights: expected 9 numbers, got {len(cfg.mixture.weights)}")


def check_folders(cfg: Config) -> None:
    """name must be a folder below out. `.` is refused: it is out itself, which holds every run."""
    parts = Path(cfg.name).parts
    if cfg.name and (not parts or ".." in parts or Path(cfg.name).is_absolute() or not cfg.name.isprintable()):
        raise ConfigError(f"name: expected a folder below {cut(cfg.out)}, printable, got {shown(cfg.name)}")
    for key in ("out", "cache"):
        if "\0" in getattr(cfg, key):
            raise ConfigError(f"{key}: expected a folder, got {shown(getattr(cfg, key))}")


def _check_phases(cfg: Config) -> None:
    for phase in cfg.phases:
        for role in phase:
            if role not in ROLES:
                raise ConfigError(f"phases: expected roles out of {', '.join(ROLES)}, got {shown(role)}")
        if not phase or len(set(phase)) != len(phase):
            raise ConfigError(f"phases: expected each phase to name one role or several, each once, got {shown(phase)}")
    first = next((i for i, phase in enumerate(cfg.phases) if "student" in phase), None)
    if first is None:
        raise ConfigError("phases: no phase updates the student")
    if first >= cfg.steps:
        raise ConfigError(
            f"steps: expected at least {first + 1}, since phase {first + 1} is the first that updates the student, "
            f"got {cfg.steps}"
        )


def _check_optimizers(cfg: Config) -> None:
    for role in ROLES:
        optimizer = getattr(cfg, role)
        if optimizer.lr * optimizer.weight_decay > 1:
            raise ConfigError(
                f"{role}.weight_decay: expected at most 1 / lr = {1 / optimizer.lr:.6g}, beyond which an update turns "
                f"the weights' signs, got {optimizer.weight_decay:g}"
            )


def _check_loss(cfg: Config) -> None:
    loss = cfg.loss
    if loss.ratio_range[0] >= loss.ratio_range[1]:
        raise ConfigError(f"loss.ratio_range: expected the first below the second, got {shown(loss.ratio_range)}")
    if loss.kind == "sim" and not loss.c:
        raise ConfigError("loss.c: sim needs a number > 0, got none")
    if loss.kind == "fdiv" and loss.gan != "logistic" and loss.divergence not in ("rkl", "reverse_kl"):
        raise ConfigError(
            f"loss.gan: {loss.gan} logits are no log density ratios, of which h of {shown(loss.divergence)} is made; "
            "expected logistic, or loss.divergence=rkl, whose h is 1"
        )
    if not any("discriminator" in phase for phase in cfg.phases):
        has_h = loss.kind == "fdiv" and loss.divergence not in ("rkl", "reverse_kl")
        if loss.gan_weight or has_h:
            what = "loss.gan_weight" if loss.gan_weight else f"h of loss.divergence={loss.divergence}"
            raise ConfigError(
                f"phases: expected one with the discriminator, which {what} needs, got {shown(cfg.phases)}"
            )
    if loss.shuffle_weight and (loss.kind != "fdiv" or loss.gan != "logistic"):
        what = f"loss.gan={loss.gan}" if loss.kind == "fdiv" else f"loss.kind={loss.kind}"
        raise ConfigError(f"loss.shuffle_weight: expected false, since {what} has no h to permute, got true")


def _check_digits(cfg: DigitsConfig) -> None:
    from fdistill.config import DIGITS

    count = len(cfg.teacher.channels)
    if not 1 <= count <= 4:  # 8, 4, 2 and 1 pixels
        raise ConfigError(
            f"teacher.channels: expected 1 to 4 numbers, since each but the last halves 8×8 pixels, got {count}"
        )
    low, high = cfg.teacher_sigma_min, cfg.teacher_sigma_max
    if low >= high:
        raise ConfigError(f"teacher_sigma_min: expected less than teacher_sigma_max = {high:g}, got {low:g}")
    smallest = min(cfg.eval.samples, DIGITS)
    if cfg.eval.neighbours >= smallest:
        whose = "eval.samples" if smallest < DIGITS else "digits"
        raise ConfigError(
            f"eval.neighbours: expected less than {smallest}, the number of {whose}, got {cfg.eval.neighbours}"
        )


def check_machine(cfg: Config) -> None:
    """Raise `ConfigError` if the device does not work on this machine, or fdkernels refuses a setting of the loss."""
    try:
        device = torch.device(cfg.device)
    except RuntimeError:
        raise ConfigError(f"device: expected cpu, cuda or cuda:<number>, got {shown(cfg.device)}") from None
    try:
        torch.zeros(1, device=device).item()
        torch.Generator(device)
    except (RuntimeError, AssertionError) as error:  # torch without CUDA asserts
        raise ConfigError(f"device: {cut(cfg.device)} does not work here: {sentence(error, 160)}") from None
    loss, zeros = cfg.loss, torch.zeros(8, device=device)
    try:
        if loss.kind == "fdiv":
            fdk.fdiv_weight(zeros, divergence=loss.divergence, ratio_range=loss.ratio_range, backend=loss.backend)
        else:
            backends.choose(loss.backend, device.type)
    except (ValueError, RuntimeError) as error:  # its message begins with the argument's name
        raise ConfigError(f"loss.{sentence(error)}") from None
