"""Checkpoints that appear whole or not at all, and from which a run goes on bit for bit on the same CPU."""

from __future__ import annotations

import io
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import nn

from fdistill.files import (
    SUMS,
    FolderError,
    damage,
    install,
    new_partial,
    remove,
    say,
    seal,
    sweep,
    sync,
    write,
    write_atomically,
)

SAVED = ".saved"  # in a run's folder: the trace of its checkpoints
STEP = re.compile(r"step-(\d{8,})")


def files_of(networks: Iterable[str]) -> re.Pattern[str]:
    """The names of the files of a checkpoint."""
    weights = "|".join(re.escape(name) for name in networks)
    return re.compile(rf"({weights})\.safetensors|state\.pt|{SUMS}|\.{SUMS}\.partial")


class Checkpoints:
    """A folder of `step-…` folders: one safetensors file a network, `state.pt` for the rest, and their hashes.

    Args:
        folder: of the checkpoints.
        keep: how many are kept, the newest.
        trace: a file outside of the folder that says which was the last to be saved. With it, checkpoints that are gone
            are missed.
    """

    def __init__(self, folder: Path, keep: int, trace: Path | None = None) -> None:
        self.folder, self.keep, self.trace = folder, keep, trace

    @classmethod
    def of_run(cls, folder: Path, keep: int) -> Checkpoints:
        return cls(folder / "checkpoints", keep, folder / SAVED)

    def save(self, step: int, networks: dict[str, nn.Module], state: dict[str, Any]) -> Path:
        made, final = files_of(networks), self.folder / f"step-{step:08d}"
        sweep(self.folder, made)
        partial = new_partial(final)
        for name, network in networks.items():
            weights = {key: value.detach().contiguous() for key, value in network.state_dict().items()}
            write(partial / f"{name}.safetensors", safetensors.torch.save(weights))
        buffer = io.BytesIO()
        torch.save(state, buffer)
        write(partial / "state.pt", buffer.getvalue())
        seal(partial)
        remove(final, made)  # a damaged one that was passed over
        install(partial, final)
        sync(self.folder)
        if self.trace is not None:
            write_atomically(self.trace, final.name + "\n")
        # Newer ones are damaged, or this step would have gone on from them.
        steps = self._steps()
        at = steps.index(final)
        for old in [*steps[: max(0, at + 1 - self.keep)], *steps[at + 1 :]]:
            remove(old, made)
        return final

    def latest(self) -> Path | None:
        """The newest whole checkpoint; None where none was ever saved. Says which newer ones are passed over, and why.

        Raises:
            FolderError: some were saved, and none of them is whole.
        """
        faults, steps, last = [], self._steps(), self.last()
        if last is not None and last not in [step.name for step in steps]:
            faults.append(f"{self.folder / last} is gone")
        for step in reversed(steps):
            fault = damage(step)
            if fault is None:
                for line in faults:
                    say(f"passed over: {line}")
                if faults:
                    say(f"the newest whole checkpoint is {step}")
                return step
            faults.append(f"{step}: {fault}")
        if faults:
            raise FolderError(f"no checkpoint in {self.folder} is whole ({'; '.join(faults)})")
        return None

    def last(self) -> str | None:
        """The name of the last checkpoint that was saved, whole or gone; None where none was."""
        try:
            text = self.trace.read_text(encoding="utf-8", errors="replace").strip() if self.trace is not None else ""
        except FileNotFoundError:
            text = ""
        names = [step.name for step in self._steps()[-1:]]
        return text if STEP.fullmatch(text) else (*names, None)[0]

    def load(self, path: Path, networks: dict[str, nn.Module]) -> dict[str, Any]:
        for name, network in networks.items():
            network.load_state_dict(safetensors.torch.load_file(path / f"{name}.safetensors"))
        return torch.load(path / "state.pt", weights_only=True)

    def _steps(self) -> list[Path]:
        """Oldest first. What was renamed, or is a link, is somebody's own."""
        found = [path for path in self.folder.glob("step-*") if STEP.fullmatch(path.name) and not path.is_symlink()]
        return sorted(found, key=lambda path: int(path.name.removeprefix("step-")))
