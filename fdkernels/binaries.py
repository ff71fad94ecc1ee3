"""Where the compiled files are, and whether they belong to these sources. Does not import torch.

The compiled files lie beside the package's Python files. A checkout, which has csrc/ beside the package, has them there
only after `make build`. After `pip install .`, a Python that starts in the checkout imports the checkout's Python
files, which hide the installed ones; then the installed binaries serve.

Every binary holds a digest of the csrc/ that it was built from. A checkout never uses binaries of another csrc/,
whether they lie in it or are installed: Python passes arguments by a schema that those sources may not share.
"""

from __future__ import annotations

import hashlib
import re
import sys
import sysconfig
from importlib.machinery import ModuleSpec
from importlib.util import spec_from_file_location
from pathlib import Path
from typing import Any

PACKAGE = Path(__file__).parent
CORE = f"_core{sysconfig.get_config_var('EXT_SUFFIX')}"
SUFFIXES = (".cpp", ".h", ".cu", ".cuh")


def locate(name: str) -> tuple[Path, str | None]:
    """(a compiled file, why it can't be used). The reason is one sentence, or None. The file is not loaded here.

    The file lies in the package itself. If that is a checkout without fitting binaries, the packages that the checkout
    hides are searched.
    """
    sources = digest()
    packages = [PACKAGE] if sources is None else [p for p in (PACKAGE, *_hidden()) if (p / CORE).exists()]
    folder = next((p for p in packages if sources and built_from(p / CORE) == sources), (*packages, PACKAGE)[0])
    file = folder / name
    if not file.exists():
        nvcc = "with nvcc on PATH, " if "cuda" in name else ""
        return file, f"{name} was not built ({nvcc}run `pip install .` or `make build` in the source tree)"
    if sources is None or sources == built_from(file):
        return file, None
    if folder == PACKAGE:
        return file, f"{file} was built from other sources than csrc/ has now: run `make build`"
    return file, (
        f"the source tree {PACKAGE.parent} hides the fdkernels that is installed in {file.parents[1]}, which was built "
        "from other sources: run from another folder, or `make build` or `pip install .` here"
    )


def misfit(name: str) -> str | None:
    """Why an existing file can't be used: it was not built from these sources. None if it fits or does not exist."""
    file, reason = locate(name)
    return reason if file.exists() else None


class CoreFinder:
    """Imports `fdkernels._core` from the package where it fits, or raises ImportError with the reason."""

    @staticmethod
    def find_spec(name: str, *_: Any) -> ModuleSpec | None:
        if name != "fdkernels._core":
            return None
        file, reason = locate(CORE)
        if reason is not None:
            raise ImportError(reason)
        return spec_from_file_location(name, file)


def digest() -> str | None:
    """The digest of the checkout's csrc/, computed as in CMakeLists.txt; None if this is not a checkout."""
    csrc = PACKAGE.parent / "csrc"
    if not (csrc / "core").is_dir():
        return None
    names = sorted(file.relative_to(csrc).as_posix() for file in csrc.rglob("*") if file.suffix in SUFFIXES)
    names = [name for name in names if not any(part.startswith(".") for part in name.split("/"))]  # an editor's files
    lines = (f"{hashlib.sha256((csrc / name).read_bytes()).hexdigest()} {name}\n" for name in names)
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def built_from(file: Path) -> str | None:
    """The digest that a compiled file holds."""
    found = re.search(rb"fdkernels sources ([0-9a-f]{64})", file.read_bytes())
    return found[1].decode() if found else None


def _hidden() -> list[Path]:
    """Where else on sys.path an fdkernels package may lie."""
    packages = (Path(entry or ".").resolve() / "fdkernels" for entry in sys.path)
    return [package for package in packages if package != PACKAGE.resolve()]
