"""Files that appear whole or not at all, folders that can tell, and one process at a time in each."""

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
EDITABLE = "README.md"  # in no SHA256SUMS
LOCK = ".fdistill-lock"
OF_THE_CACHE = re.compile(rf"config\.json|\w+\.safetensors|{SUMS}|\.{SUMS}\.partial")


class FolderError(Exception):
    """A folder or file with which a command cannot go on; the message names it and says what to do."""


def say(message: str) -> None:
    print(f"fdistill: {message}", file=sys.stderr, flush=True)


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Failures of the disk name `path`, whichever library met them: a full disk's come without a name."""
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
    """A new file, on the disk when this returns. A link that lies there is replaced, not followed."""
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
    """Give all files the modes of the umask (safetensors' are private), and write their hashes, last."""
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
    """Why the folder is not what `seal` saw, else None."""
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
    """Delete the files in `folder` whose relative paths match, then their folders where empty; returns what stays."""
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
    """Delete what `new_partial` made in `folder` for processes that died; to be called where no other one writes."""
    for path in folder.glob(".*partial-*"):
        remove(path, made)


def new_partial(folder: Path) -> Path:
    """An empty hidden folder beside `folder`, for what becomes `folder`."""
    for number in itertools.count():
        partial = folder.with_name(f".{folder.name}.partial-{number}")
        try:
            partial.mkdir(parents=True)
        except FileExistsError:  # somebody's files lie in it
            continue
        break
    return partial


def install(partial: Path, folder: Path) -> None:
    """Make a sealed folder `folder`. In one that is there, files of these names are replaced, its hashes last."""
    if not folder.exists():
        partial.rename(folder)
        return
    for name in sorted(files_below(partial), key=lambda name: (name == SUMS, name)):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (partial / name).replace(folder / name)
    shutil.rmtree(partial)


@contextmanager
def held(path: Path, busy: str, wait: bool = False) -> Iterator[None]:
    """Hold a lock file. The kernel frees it when its process ends, however that happens; the file stays.

    Args:
        busy: what is said, with the holder behind it, where another process holds the lock.
        wait: for that process, with a word; else raise.
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
    """The folder home/part, whole: as it lies there, else made now by `make`, while other processes wait.

    What lies there and is damaged, or was made before there were hashes, is replaced, with a word.
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
