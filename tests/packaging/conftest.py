"""Scratch environments for the packaging tests; no network, nothing installed twice."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
BUILD_INPUTS = ("setup.py", "CMakeLists.txt", "pyproject.toml", "MANIFEST.in", "README.md", "LICENSE")
SOURCES = ("csrc", "fdkernels", "python")


def copy_checkout(target: Path) -> Path:
    """The sources of a fresh checkout: nothing that was built."""
    target.mkdir(parents=True)
    for name in BUILD_INPUTS:
        shutil.copy(ROOT / name, target / name)
    ignore = shutil.ignore_patterns("*.so", "__pycache__", "*.egg-info", "build")
    for name in SOURCES:
        shutil.copytree(ROOT / name, target / name, ignore=ignore)
    return target


def make_environment(target: Path, *, reuse: bool) -> Path:
    """A virtual environment; with `reuse` this one's third-party packages can be imported, but not this checkout.

    Returns its Python.
    """
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(target)], check=True)
    python = target / "bin" / "python"
    if reuse:
        # A directory named in a .pth file goes on sys.path; the .pth files in it (an editable install's) are not run.
        code = "import sysconfig; print(sysconfig.get_path('purelib'))"
        site = subprocess.check_output([python, "-c", code], text=True)
        heavy = "\n".join(dict.fromkeys(sysconfig.get_path(kind) for kind in ("purelib", "platlib")))
        (Path(site.strip()) / "heavy.pth").write_text(heavy + "\n")
    return python


def clean_variables(**extra: str) -> dict[str, str]:
    """The environment without what could lead back to this checkout."""
    dropped = ("PYTHONPATH", "FDKERNELS_TORCH_DIR", "VIRTUAL_ENV")
    return {k: v for k, v in os.environ.items() if k not in dropped} | extra


@pytest.fixture(scope="session")
def uninstalled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Python of an environment that has everything but this project."""
    return make_environment(tmp_path_factory.mktemp("uninstalled") / "venv", reuse=True)


@pytest.fixture(scope="session")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel of a copy of this checkout, built without isolation, so offline."""
    folder = tmp_path_factory.mktemp("wheel")
    source = copy_checkout(folder / "checkout")
    build = [sys.executable, "-m", "pip", "wheel", "--no-build-isolation", "--no-deps", "--no-index", "-w", str(folder)]
    run = subprocess.run([*build, str(source)], capture_output=True, text=True, env=clean_variables(), cwd=folder)
    assert run.returncode == 0, run.stdout + run.stderr
    (built,) = folder.glob("fdkernels-*.whl")
    return built
