"""Runs another Python in processes forked from one that has loaded torch: loading takes most of a run's seconds.

What happens while torch is imported, or while Python ends, is not covered.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Iterable
from pathlib import Path

SERVER = """
import json, os, runpy, sys
import torch
for line in sys.stdin:
    folder, files, missing, (way, what, *arguments) = json.loads(line)
    child = os.fork()
    if not child:
        os.chdir(folder)
        for number, path in enumerate([os.devnull, *files]):
            os.dup2(os.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC), number)
        sys.argv[1:] = arguments
        sys.modules.update(dict.fromkeys(missing))  # importing None raises ModuleNotFoundError
        try:
            if way == "-m":
                sys.path[0] = folder
                runpy.run_module(what, run_name="__main__", alter_sys=True)
            else:
                exec(what, {"__name__": "__main__"})
            status = 0
        except SystemExit as stop:
            status = stop.code or 0
            if isinstance(status, str):
                print(status, file=sys.stderr)
                status = 1
        sys.stdout.flush()
        os._exit(status)  # to take torch down in order takes another second
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""


class Forked:
    """A server that runs the Python at this path in an environment of these variables; `close` ends it."""

    def __init__(self, python: Path | str = sys.executable, variables: dict[str, str] | None = None) -> None:
        self.folder = tempfile.TemporaryDirectory()
        self.files = [f"{self.folder.name}/{name}" for name in ("out", "err")]
        self.server = subprocess.Popen([python, "-c", SERVER], stdin=-1, stdout=-1, text=True, env=variables)

    def run(self, folder: Path | str, *arguments: str, missing: Iterable[str] = ()) -> subprocess.CompletedProcess[str]:
        """Run `python -m module …` or `python -c code …` in a folder, as if the missing modules were not installed."""
        assert self.server.stdin and self.server.stdout and arguments[0] in ("-m", "-c")
        for file in self.files:
            Path(file).write_text("")
        self.server.stdin.write(json.dumps([str(folder), self.files, list(missing), arguments]) + "\n")
        self.server.stdin.flush()
        code = int(self.server.stdout.readline())
        return subprocess.CompletedProcess(arguments, code, *(Path(file).read_text() for file in self.files))

    def close(self) -> None:
        self.server.communicate()
        self.folder.cleanup()
