"""Checkpoints that are whole or not there at all, and from which a run continues bit for bit on the same CPU."""

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

SAVED = ".saved"  # the file in a run's folder that names its last checkpoint
STEP = re.compile(r"step-(\d{8,})")


def files_of(networks: Iterable[str]) -> re.Pattern[str]:
    """A pattern of the file names in a checkpoint."""
    weights = "|".join(re.escape(name) for name in networks)
    return re.compile(rf"({weights})\.safetensors|state\.pt|{SUMS}|\.{SUMS}\.partial")


class Checkpoints:
    """A folder of `step-…` folders: one safetensors file per network, `state.pt` for the rest, and their hashes.

    Args:
        folder: of the checkpoints.
        keep: how many of the newest are kept.
        trace: a file outside the folder that names the last saved checkpoint, so that `latest` notices if it is gone.
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
        remove(final, made)  # a damaged checkpoint of this step, which `latest` passed over
        install(partial, final)
        sync(self.folder)
        if self.trace is not None:
            write_atomically(self.trace, final.name + "\n")
        # Newer checkpoints are damaged, or training would have continued from them.
        steps = self._steps()
        at = steps.index(final)
        for old in [*steps[: max(0, at + 1 - self.keep)], *steps[at + 1 :]]:
            remove(old, made)
        return final

    def latest(self) -> Path | None:
        """The newest whole checkpoint; None if none was ever saved. Prints which newer ones are passed over, and why.

        Raises:
            FolderError: checkpoints were saved, but none is whole.
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
        """The name of the last saved checkpoint, even if it is damaged or gone; None if none was saved."""
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
        """The checkpoints' folders, oldest first. A renamed folder and a link belong to the user and are left out."""
        found = [path for path in self.folder.glob("step-*") if STEP.fullmatch(path.name) and not path.is_symlink()]
        return sorted(found, key=lambda path: int(path.name.removeprefix("step-")))
