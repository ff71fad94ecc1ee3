"""Files that are whole or not there at all, folders with hashes that show damage, and locks for one process each."""

from __future__ import annotations

import errno
import fcntl
import hashlib
import itertools
import os
import re
import shutil
import socket
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

SUMS = "SHA256SUMS"  # as `sha256sum -c` reads it
EDITABLE = "README.md"  # users may edit it, so SHA256SUMS leaves it out
LOCK = ".fdistill-lock"
OF_THE_CACHE = re.compile(rf"config\.json|\w+\.safetensors|{SUMS}|\.{SUMS}\.partial")


class FolderError(Exception):
    """A command can't go on because of a folder or file; the message names it and says what to do."""


def say(message: str) -> None:
    print(f"fdistill: {message}", file=sys.stderr, flush=True)


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Put `path` into an error of the disk that has no name, such as that of a full disk, also from safetensors."""
    from safetensors import SafetensorError  # here, so that --help works without it

    try:
        yield
    except SafetensorError as error:
        raise OSError(errno.EIO, str(error), str(path)) from error
    except OSError as error:
        if error.filename is not None or error.errno is None:
            raise
        raise OSError(error.errno, error.strerror, str(path)) from error


def write(path: Path, data: bytes) -> None:
    """Write a new file, which is on the disk when this returns. An existing link is replaced, not followed."""
    with writing(path):
        path.unlink(missing_ok=True)
        with path.open("xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())


def write_atomically(path: Path, text: str) -> None:
    partial = path.with_name(f".{path.name}.partial")
    write(partial, text.encode())
    partial.replace(path)


def files_below(folder: Path) -> list[str]:
    """Relative paths of all files; links to folders count as files."""
    found = []
    for place, folders, files in os.walk(folder):
        links = [name for name in folders if os.path.islink(os.path.join(place, name))]
        found += [os.path.relpath(os.path.join(place, name), folder) for name in (*files, *links)]
    return sorted(found)


def seal(folder: Path) -> None:
    """Give all files the umask's mode (safetensors makes private files), then write their hashes."""
    mode = 0o666 & ~_umask()
    names = [name for name in files_below(folder) if name != SUMS]
    for name in names:
        path = folder / name
        path.chmod(mode)
        sync(path)
    lines = [f"{_sha256(folder / name)}  {name}" for name in names if name != EDITABLE]
    write_atomically(folder / SUMS, "\n".join((f"# {len(lines)} files", *lines)) + "\n")
    sync(folder)


def damage(folder: Path) -> str | None:
    """How the folder differs from what `seal` saw; None if it does not."""
    if not folder.is_dir():
        return "is not there"
    try:
        count, *lines = (folder / SUMS).read_text(encoding="utf-8").splitlines() or [""]
        if count != f"# {len(lines)} files":
            return f"{SUMS} is not whole"
        for digest, _, name in (line.partition("  ") for line in lines):
            if not (folder / name).is_file():
                return f"{name} is missing"
            if _sha256(folder / name) != digest:
                return f"{name} does not match its hash in {SUMS}"
        return None
    except FileNotFoundError:
        return "is empty" if not any(folder.iterdir()) else f"{SUMS} is missing"
    except (OSError, ValueError) as error:
        return f"cannot be read: {error}"


def remove(folder: Path, made: re.Pattern[str]) -> list[str]:
    """Delete the files in `folder` whose relative paths match, then empty folders. Returns the files that stay."""
    if folder.is_symlink() or not folder.is_dir():
        return []
    emptied = {folder}
    for name in files_below(folder):
        if made.fullmatch(name) and not (folder / name).is_symlink():
            (folder / name).unlink()
            emptied.update(folder / parent for parent in Path(name).parents)
    for parent in sorted(emptied, key=lambda path: -len(path.parts)):
        if not any(parent.iterdir()):
            parent.rmdir()
    return files_below(folder) if folder.exists() else []


def sweep(folder: Path, made: re.Pattern[str]) -> None:
    """Call this only if no other process writes to `folder`: it deletes what `new_partial` made for dead processes."""
    for path in folder.glob(".*partial-*"):
        remove(path, made)


def new_partial(folder: Path) -> Path:
    """A new hidden folder beside `folder`, to be filled and then renamed to `folder`."""
    for number in itertools.count():
        partial = folder.with_name(f".{folder.name}.partial-{number}")
        try:
            partial.mkdir(parents=True)
        except FileExistsError:  # a user's files lie in it
            continue
        break
    return partial


def install(partial: Path, folder: Path) -> None:
    """Rename a sealed folder to `folder`. If `folder` exists, its files of the same names are replaced, hashes last."""
    if not folder.exists():
        partial.rename(folder)
        return
    for name in sorted(files_below(partial), key=lambda name: (name == SUMS, name)):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (partial / name).replace(folder / name)
    shutil.rmtree(partial)


@contextmanager
def held(path: Path, busy: str, wait: bool = False) -> Iterator[None]:
    """Hold a lock file. The kernel frees the lock when the process ends, however that happens; the file stays.

    Args:
        busy: the message if another process holds the lock, before the name of that process.
        wait: print the message and wait for that process; else raise.
    """
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o666)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.pread(descriptor, 500, 0).decode(errors="replace").strip() or "another process"
            if not wait:
                raise FolderError(f"{busy} by {holder}") from None
            say(f"{busy} by {holder}: waiting for it")
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        holder = f"process {os.getpid()} on host {socket.gethostname()} since {time.strftime('%Y-%m-%d %H:%M')}\n"
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, holder.encode(), 0)
        yield
    finally:
        os.close(descriptor)


def cached(home: Path, part: str, make: Callable[[Path], None]) -> Path:
    """The whole folder home/part: the existing one, or one that `make` makes now while other processes wait.

    A folder that is damaged, or that was made before there were hashes, is replaced, with a message.
    """
    folder = home / part
    if damage(folder) is None:
        return folder
    home.mkdir(parents=True, exist_ok=True)
    with held(home / LOCK, f"{home} is being made", wait=True):
        fault = damage(folder)
        if fault is None:  # the other process made it
            return folder
        if folder.exists():
            say(f"{folder} is damaged ({fault}): it is made anew")
        with writing(folder):
            sweep(home, OF_THE_CACHE)
            partial = new_partial(folder)
            make(partial)
            seal(partial)
            install(partial, folder)
    return folder


def _umask() -> int:
    current = os.umask(0o077)
    os.umask(current)
    return current


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
