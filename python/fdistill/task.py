"""What the trainer needs from a task: networks, data, and how to measure, show and save a student."""

from __future__ import annotations

from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from fdistill.networks import Denoiser


class Interrupted(Exception):
    """Training was asked to stop and has saved its state.

    Args:
        started: whether the run itself had begun; False if only the teacher was trained.
    """

    def __init__(self, message: str, started: bool = True) -> None:
        super().__init__(message)
        self.started = started


class Task(ABC):
    """A teacher, data like the teacher's, and a new student, fake score and discriminator."""

    teacher: Denoiser
    student: nn.Module
    fake: Denoiser
    discriminator: nn.Module
    titles: dict[str, str] = {}  # headings of the sets of pictures that `evaluate` writes to evaluation.npz

    @abstractmethod
    def __init__(self, cfg: Any) -> None: ...

    @abstractmethod
    def noise(self, count: int, generator: torch.Generator) -> Tensor:
        """The student's input."""

    @abstractmethod
    def real(self, count: int, generator: torch.Generator) -> Tensor:
        """A batch of data."""

    def state_dict(self) -> dict[str, Any]:
        """The position in the data."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:  # noqa: B027 (data drawn anew has no position)
        """Continue at the position that `state_dict` returned."""

    @abstractmethod
    def snapshot(self, student: nn.Module, path: Path) -> None:
        """Write a small picture of samples, on the same noise at every call."""

    @abstractmethod
    def evaluate(self, distiller: Any, folder: Path) -> dict[str, Any]:
        """Measure the averaged student and return the metrics; write samples.png, and evaluation.npz for the report."""

    @abstractmethod
    def export(self, student: nn.Module, folder: Path) -> None:
        """Save the student in a form that stands alone, with a README."""

    @staticmethod
    @abstractmethod
    def draw(cfg: Any, student: Path, count: int, seed: int, output: Path) -> None:
        """Write a picture of samples, from nothing but an exported student."""

    @staticmethod
    @abstractmethod
    def plan(cfg: Any) -> tuple[dict[str, nn.Module], str]:
        """Untrained networks of each role, for their sizes, and where the teacher comes from."""


class EpochSampler:
    """Every index once per epoch, in an order that depends only on (seed, epoch)."""

    def __init__(self, size: int, seed: int) -> None:
        self.size, self.seed = size, seed
        self.epoch, self.position = 0, 0
        self._order = self._shuffle()

    def _shuffle(self) -> Tensor:
        return torch.randperm(self.size, generator=torch.Generator().manual_seed(self.seed * 100_003 + self.epoch))

    def take(self, count: int) -> Tensor:
        taken = []
        while count:
            part = self._order[self.position : self.position + count]
            taken.append(part)
            self.position += len(part)
            count -= len(part)
            if self.position == self.size:
                self.epoch, self.position = self.epoch + 1, 0
                self._order = self._shuffle()
        return torch.cat(taken)

    def state_dict(self) -> dict[str, int]:
        return {"epoch": self.epoch, "position": self.position}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.epoch, self.position = state["epoch"], state["position"]
        self._order = self._shuffle()
