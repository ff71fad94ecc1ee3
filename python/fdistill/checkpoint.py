"""Checkpoints that appear whole or not at all, and from which a run goes on bit for bit on the same CPU."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import nn


class Checkpoints:
    """A folder of `step-…` folders: one safetensors file a network, `state.pt` for the rest, and `latest`."""

    def __init__(self, folder: Path, keep: int) -> None:
        self.folder = folder
        self.keep = keep

    def save(self, step: int, networks: dict[str, nn.Module], state: dict[str, Any]) -> Path:
        final, partial = self.folder / f"step-{step:08d}", self.folder / f".partial-{os.getpid()}"
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        for name, network in networks.items():
            weights = {key: value.detach().contiguous() for key, value in network.state_dict().items()}
            save_file(weights, partial / f"{name}.safetensors")
        torch.save(state, partial / "state.pt")
        for path in partial.iterdir():
            _sync(path)
        shutil.rmtree(final, ignore_errors=True)
        partial.rename(final)
        write_atomically(self.folder / "latest", final.name)
        for old in self._steps()[: -self.keep]:
            shutil.rmtree(old)
        return final

    def latest(self) -> Path | None:
        """The newest whole checkpoint. Without a readable `latest` (a crash between two renames): the last step."""
        try:
            named = self.folder / (self.folder / "latest").read_text(encoding="utf-8").strip()
        except FileNotFoundError:
            steps = self._steps()
            return steps[-1] if steps else None
        return named if named.is_dir() else None

    def load(self, path: Path, networks: dict[str, nn.Module]) -> dict[str, Any]:
        for name, network in networks.items():
            network.load_state_dict(load_file(path / f"{name}.safetensors"))
        return torch.load(path / "state.pt", weights_only=True)

    def _steps(self) -> list[Path]:
        return sorted(self.folder.glob("step-*"))


def write_atomically(path: Path, text: str) -> None:
    partial = path.with_name(f".{path.name}.partial")
    partial.write_text(text, encoding="utf-8")
    _sync(partial)
    partial.replace(path)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
