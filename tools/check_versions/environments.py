"""Makes an environment for each version: Python, torch, Triton and what the tests need, without this project."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple, TextIO

from tools.check_versions import stand_ins

TORCH_INDEX = "https://download.pytorch.org/whl/cpu"
# Requirements of a CUDA build that its CPU code does not need. Triton is installed separately, by version.
LEFT_OUT = re.compile(r"(nvidia|cuda|triton)")
TESTS_NEED = ("pytest", "pytest-xdist", "hypothesis", "mpmath")
NUMPY = {"3.6": "numpy<2.4"}  # Triton 3.6's interpreter fails with a newer one


class Version(NamedTuple):
    torch: str
    python: str
    triton: str

    @property
    def name(self) -> str:
        return f"torch-{self.torch}-python-{self.python}-triton-{self.triton}"


class Failed(Exception):
    """A command failed; the text is the command's output."""

    def last_words(self) -> str:
        return (str(self).strip().splitlines() or ["without a word"])[-1]


def interpreter(version: str) -> str:
    """A Python of this version: on PATH, or one that pyenv has installed."""
    name = f"python{version}"
    pyenv = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv")) / "versions"
    for candidate in (shutil.which(name), *sorted(map(str, pyenv.glob(f"{version}.*/bin/{name}")))):
        # pyenv puts a shim on PATH even if the shim cannot run.
        if candidate and subprocess.run([candidate, "-c", ""], capture_output=True).returncode == 0:
            return candidate
    raise Failed(f"there is no {name}, neither on PATH nor with pyenv")


def run(log: TextIO, *command: str, cwd: Path | None = None, **variables: str) -> str:
    """Run a command; return its output, which also goes to the log as it comes."""
    dropped = ("PYTHONPATH", "VIRTUAL_ENV", "FDKERNELS_TORCH_DIR")
    inherited = {name: value for name, value in os.environ.items() if name not in dropped}
    log.write(f"\n$ {' '.join(command)}\n")
    log.flush()
    begin = Path(log.name).stat().st_size
    done = subprocess.run(command, cwd=cwd, env={**inherited, **variables}, stdout=log, stderr=subprocess.STDOUT)
    output = Path(log.name).read_bytes()[begin:].decode(errors="replace")
    if done.returncode:
        raise Failed(output)
    return output


def install_torch(version: str, pip: Sequence[str], folder: Path, log: TextIO) -> None:
    """The CPU build where an index has it, else the CUDA build, with stand-ins for the CUDA libraries."""
    try:
        quickly = ("--no-deps", "--retries", "0", "--timeout", "20", "--extra-index-url", TORCH_INDEX)
        run(log, *pip, *quickly, f"torch=={version}+cpu")
    except Failed:
        run(log, *pip, "--no-deps", f"torch=={version}")
        log.write(f"stand-ins: {', '.join(stand_ins.make(packages(folder) / 'torch'))}\n")


def packages(folder: Path) -> Path:
    (found,) = folder.glob("lib/python*/site-packages")
    return found


def dependencies(folder: Path) -> list[str]:
    """torch's requirements, without CUDA's libraries and Triton."""
    (metadata,) = packages(folder).glob("torch-*.dist-info/METADATA")
    found = re.findall(r"^Requires-Dist: (.+)$", metadata.read_text(), re.MULTILINE)
    return [each for each in found if "extra ==" not in each and not LEFT_OUT.match(each)]


def make(version: Version, folder: Path, log: TextIO) -> str:
    """Path of Python in the environment in `folder`, which is made if it is missing."""
    python, ready = folder / "bin/python", folder / "ready"
    if not ready.exists():
        shutil.rmtree(folder, ignore_errors=True)
        run(log, interpreter(version.python), "-m", "venv", str(folder))
        pip = (str(python), "-m", "pip", "--disable-pip-version-check", "install")
        install_torch(version.torch, pip, folder, log)
        numpy = next((pin for triton, pin in NUMPY.items() if version.triton.startswith(triton)), "numpy")
        run(log, *pip, *dependencies(folder), f"triton=={version.triton}", numpy, *TESTS_NEED)
        ready.touch()
    return str(python)
