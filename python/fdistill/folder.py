"""A run's folder: which folders are runs, who trains in one, and what in it may be deleted.

A run's folder has a file, MARK, that names the format of its contents. A folder without it is the user's own: nothing
is written to it or deleted from it, unless it is empty.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import islice
from pathlib import Path

from fdistill.checkpoint import STEP, files_of
from fdistill.config import Config, ConfigError
from fdistill.files import LOCK, SUMS, FolderError, files_below, held, remove, write_atomically

MARK = ".fdistill-run"
FORMAT = 1
MOST_LOOKED_AT = 1000  # folders that are searched for a run inside; a folder that is no run may hold millions
OWN = {MARK, f".{MARK}.partial", LOCK}  # files that stay when a run is replaced

_FILES = (
    r"(config\.yaml|log\.jsonl|metrics(\.previous)?\.json|report\.html|evaluation\.npz|\.saved"
    r"|(samples|curves|drawn)\.png|drawn\.npy)"
)
OF_A_CHECKPOINT = files_of(("student", "fake", "discriminator", "ema"))
OF_A_STUDENT = re.compile(
    rf"README\.md|{SUMS}|\.{SUMS}\.partial|student\.safetensors|model_index\.json|scheduler/scheduler_config\.json"
    r"|unet/(config\.json|diffusion_pytorch_model\.safetensors)"
)
# The paths of all files that a run makes in its folder: `--fresh` deletes nothing else.
OF_A_RUN = re.compile(
    rf"{_FILES}|\.{_FILES}\.partial|progress/step-\d{{8,}}\.png|(student|\.student\.partial-\d+)/({OF_A_STUDENT.pattern})"
    rf"|checkpoints/(latest|({STEP.pattern}|\.{STEP.pattern}\.partial-\d+|\.partial-\d+)/({OF_A_CHECKPOINT.pattern}))"
)
PLACES = {"progress", "checkpoints", "student"}


def folder_of(cfg: Config) -> Path:
    return Path(cfg.out) / cfg.name


def is_run(folder: Path) -> bool:
    return (folder / MARK).is_file()


def run_around(folder: Path) -> Path | None:
    """The run that a folder lies in, if any. Links in the path are followed."""
    return next((parent for parent in Path(os.path.realpath(folder)).parents if is_run(parent)), None)


def check(folder: Path, out: Path) -> None:
    """Raise if a run must not lie in `folder`. Changes nothing.

    Raises:
        ConfigError: the folder is reached by a link, lies in another run or holds one, or is not a run's.
    """
    another = "pass name=... for another folder"
    # Not Path.resolve, which raises on links that lead in a circle.
    there, meant = Path(os.path.realpath(folder)), Path(os.path.realpath(out)) / folder.relative_to(out)
    if there != meant:
        raise ConfigError(f"{folder} is reached by a link and lies at {there}; name that with out=... and name=...")
    around = run_around(there)
    if around is not None:
        raise ConfigError(f"{folder} lies in another run, {around}; {another}")
    if not os.path.lexists(folder):
        return
    if not folder.is_dir():
        raise ConfigError(f"{folder} is a file, not a run's folder; {another}")
    for place, _, _ in islice(os.walk(folder), MOST_LOOKED_AT):
        if place != str(folder) and is_run(Path(place)):
            raise ConfigError(f"{folder} holds another run, {place}; move it away, or {another}")
    if is_run(folder):
        _check_format(folder)
        _check_links(folder)
        _check_places(folder)
    elif os.path.lexists(folder / MARK):
        raise ConfigError(f"{folder / MARK} is no file; move it away, or {another}")
    elif set(os.listdir(folder)) - OWN:
        raise ConfigError(
            f"{folder} is not a run, or one of an older version: it has no {MARK}. Nothing in it is touched; {another}"
        )


def _check_links(folder: Path) -> None:
    """Raise if a link would lead a run's files out of its folder."""
    for name in files_below(folder):
        if (folder / name).is_symlink() and (Path(name).parts[0] in PLACES or OF_A_RUN.fullmatch(name)):
            raise ConfigError(f"{folder / name} is a link to {os.readlink(folder / name)}; move it away")


def _check_places(folder: Path) -> None:
    """Raise if a file lies where a run has a folder, or the reverse: the run would fail only after the training."""
    for entry in os.scandir(folder):
        if entry.name in PLACES and not entry.is_dir() or re.fullmatch(_FILES, entry.name) and entry.is_dir():
            raise ConfigError(f"{entry.path} is in the way; move it away")


def _check_format(folder: Path) -> None:
    try:
        found = json.loads((folder / MARK).read_text(encoding="utf-8"))["format"]
    except (ValueError, KeyError, TypeError):
        raise ConfigError(f"{folder / MARK} is damaged; expected {json.dumps({'format': FORMAT})}") from None
    if found != FORMAT:
        raise ConfigError(f"{folder} is a run of format {found}, from another version of fdistill: here it is {FORMAT}")


@contextmanager
def claimed(folder: Path, out: Path) -> Iterator[None]:
    """The folder, marked as a run and locked against other processes.

    Raises:
        ConfigError: as `check`.
        FolderError: another process trains in it; the message names the process.
    """
    check(folder, out)
    folder.mkdir(parents=True, exist_ok=True)
    with held(folder / LOCK, f"{folder} is being trained"):
        check(folder, out)
        if not is_run(folder):
            write_atomically(folder / MARK, json.dumps({"format": FORMAT}) + "\n")
        yield


def clear(folder: Path) -> list[str]:
    """Delete what a run made in a folder that is marked and held. Returns the names of all other files, which stay."""
    if not is_run(folder):
        raise FolderError(f"{folder} has no {MARK}: nothing in it is deleted")
    return [name for name in remove(folder, OF_A_RUN) if name not in OWN]
