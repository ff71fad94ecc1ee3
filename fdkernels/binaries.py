"""Where the compiled files are, and whether they belong to these sources. Free of torch.

They lie beside the package's Python files. A checkout, which has csrc/ beside the package, has them there only after
`make build`. Whoever stands in it after `pip install .` imports the checkout's Python files, which hide the installed
ones; then the installed binaries serve.

Every binary holds a digest of the csrc/ that it was built from. A checkout uses none of another csrc/: Python passes
arguments by a schema that those sources may not share.
"""

from __future__ import annotations

import hashlib
import re
import sys
import sysconfig
from pathlib import Path

PACKAGE = Path(__file__).parent
CORE = f"_core{sysconfig.get_config_var('EXT_SUFFIX')}"
SUFFIXES = (".cpp", ".h", ".cu", ".cuh")


def folder() -> Path:
    """Of the compiled files: the package itself, or where it has none the installed one that it hides."""
    return PACKAGE if _has_binaries(PACKAGE) else _hidden() or PACKAGE


def unusable(name: str) -> str | None:
    """Why a compiled file can't be used, in one sentence; None where it can, as far as is known without loading it."""
    if not (folder() / name).exists():
        nvcc = "with nvcc on PATH, " if "cuda" in name else ""
        return f"{name} was not built ({nvcc}run `pip install .` or `make build` in the source tree)"
    return misfit(name)


def misfit(name: str) -> str | None:
    """Where a compiled file is there, but not known to belong to these sources: what to do about it."""
    file, sources = folder() / name, digest()
    borrowed = file.parent != PACKAGE
    if not file.exists() or (sources is None and not borrowed) or sources == built_from(file):
        return None
    if not borrowed:
        return f"{file} was built from other sources than csrc/ has now: run `make build`"
    return (
        f"the source tree {PACKAGE.parent} hides the fdkernels that is installed in {file.parents[1]}, which was built "
        "from other sources: run from another folder, or `make build` or `pip install .` here"
    )


def borrowed() -> list[str]:
    """What `fdkernels.__path__` lacks for `fdkernels._core` to be found: the folder of an installed one that fits."""
    found = folder()
    return [] if found == PACKAGE or unusable(CORE) else [str(found)]


def require_core() -> None:
    """Raise ImportError where `from fdkernels import _core` would find nothing, or what other sources were built to."""
    reason = unusable(CORE)
    if reason is not None:
        raise ImportError(reason)


def digest() -> str | None:
    """Of the checkout's csrc/, as CMakeLists.txt makes it; None where this is no checkout."""
    csrc = PACKAGE.parent / "csrc"
    if not (csrc / "fdkernels").is_dir():
        return None
    names = sorted(file.relative_to(csrc).as_posix() for file in csrc.rglob("*") if file.suffix in SUFFIXES)
    names = [name for name in names if not any(part.startswith(".") for part in name.split("/"))]  # an editor's
    lines = (f"{hashlib.sha256((csrc / name).read_bytes()).hexdigest()} {name}\n" for name in names)
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def built_from(file: Path) -> str | None:
    """The digest that a compiled file holds."""
    found = re.search(rb"fdkernels sources ([0-9a-f]{64})", file.read_bytes())
    return found[1].decode() if found else None


def _has_binaries(package: Path) -> bool:
    return any(package.glob("*.so"))


def _hidden() -> Path | None:
    """The next fdkernels on the path that has binaries."""
    packages = (Path(entry or ".").resolve() / "fdkernels" for entry in sys.path)
    return next((p for p in packages if p != PACKAGE.resolve() and _has_binaries(p)), None)
