"""Child processes, each with a time limit: a child that hangs, crashes or refuses does not end the check."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
LONGEST_OUTPUT = 100_000  # characters kept of one child
NOT_INHERITED = ("PYTEST_XDIST", "PYTEST_CURRENT_TEST", "FDKERNELS_TEST_DEVICE")  # of a test run that runs the check
# A child gets its own process group, so that it can be killed with its children. process_group, unlike a new session,
# leaves it in the parent's terminal.
OWN_GROUP: dict[str, Any] = {"process_group": 0} if sys.version_info >= (3, 11) else {"start_new_session": True}

_running: set[subprocess.Popen[bytes]] = set()


@dataclass(frozen=True)
class Done:
    """A child that ended. `stopped`: whose time limit killed it, "its own" or "the stage's"; None: no limit did."""

    code: int
    seconds: float
    output: str
    stopped: str | None = None

    @property
    def status(self) -> str:
        if self.stopped == "the stage's":
            return "timed out"
        return "ok" if self.code == 0 and not self.stopped else "failed"

    def tail(self, lines: int = 12) -> str:
        """The last lines of its output, and what ended it."""
        end = f"\nstopped after {self.seconds:.0f} s, {self.stopped} limit" if self.stopped else ""
        return "\n".join(self.output.strip().splitlines()[-lines:])[-2000:] + end


def run(command: Sequence[str], seconds: float, environment: Mapping[str, str], whose: str = "its own") -> Done:
    """Run a command in the repository's root, stdout and stderr in one text; kill its process group after `seconds`."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(NOT_INHERITED)}
    start = time.monotonic()
    with tempfile.TemporaryFile() as output:
        try:
            child = subprocess.Popen(
                command, cwd=ROOT, env={**inherited, **environment}, stdin=subprocess.DEVNULL, stdout=output,
                stderr=subprocess.STDOUT, **OWN_GROUP,
            )  # fmt: skip
        except OSError as error:
            return Done(127, 0.0, str(error))
        _running.add(child)
        stopped = None
        try:
            child.wait(max(seconds, 0.1))
        except subprocess.TimeoutExpired:
            stopped = whose
        end(child)
        output.seek(0)
        text = output.read().decode(errors="replace")
    if len(text) > LONGEST_OUTPUT:
        half = LONGEST_OUTPUT // 2
        text = f"{text[:half]}\n... {len(text) - 2 * half} characters left out ...\n{text[-half:]}"
    code = child.returncode if child.returncode is not None else -signal.SIGKILL
    return Done(code, round(time.monotonic() - start, 2), text, stopped)


def tool(name: str) -> str | None:
    """Where a tool is: on PATH, or where CUDA puts it."""
    return shutil.which(name) or shutil.which(name, path=os.environ.get("CUDA_HOME", "/usr/local/cuda") + "/bin")


def end(child: subprocess.Popen[bytes]) -> None:
    """Kill what is left of a child's process group. Wait 10 s at most: the GPU driver may hold a process."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(child.pid, signal.SIGKILL)
    with contextlib.suppress(subprocess.TimeoutExpired):
        child.wait(10)
    _running.discard(child)


def end_all() -> None:
    for child in list(_running):
        end(child)
