"""Scratch environments for the packaging tests; no network, nothing installed twice."""

from __future__ import annotations

import fcntl
import importlib.util
import os
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

from tests.forked import Forked
from tools.wheel import build

ROOT = Path(__file__).parents[2]
BUILD_INPUTS = ("setup.py", "CMakeLists.txt", "pyproject.toml", "MANIFEST.in", "README.md", "LICENSE")
SOURCES = ("csrc", "fdkernels", "python")


def copy_checkout(target: Path) -> Path:
    """Copy the sources as in a fresh checkout: nothing that was built."""
    target.mkdir(parents=True)
    for name in BUILD_INPUTS:
        shutil.copy(ROOT / name, target / name)
    ignore = shutil.ignore_patterns("*.so", "__pycache__", "*.egg-info", "build")
    for name in SOURCES:
        shutil.copytree(ROOT / name, target / name, ignore=ignore)
    return target


def make_environment(target: Path, *, reuse: bool) -> Path:
    """Make a virtual environment, and return its Python. With `reuse`, it can import the third-party packages of this
    environment, but not this checkout."""
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(target)], check=True)
    python = target / "bin" / "python"
    if reuse:
        # A folder named in a .pth file goes on sys.path; .pth files in that folder (an editable install's) are not run.
        code = "import sysconfig; print(sysconfig.get_path('purelib'))"
        site = subprocess.check_output([python, "-c", code], text=True)
        heavy = "\n".join(dict.fromkeys(sysconfig.get_path(kind) for kind in ("purelib", "platlib")))
        (Path(site.strip()) / "heavy.pth").write_text(heavy + "\n")
    return python


def clean_variables(**extra: str) -> dict[str, str]:
    """The environment without what could lead back to this checkout."""
    dropped = ("PYTHONPATH", "FDKERNELS_TORCH_DIR", "VIRTUAL_ENV")
    return {k: v for k, v in os.environ.items() if k not in dropped} | extra


def succeed(*command: str, cwd: Path | None = None, **variables: str) -> None:
    done = subprocess.run(command, capture_output=True, text=True, cwd=cwd, env=clean_variables(**variables))
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.fixture(scope="session")
def uninstalled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Python of an environment that has everything but this project."""
    return make_environment(tmp_path_factory.mktemp("uninstalled") / "venv", reuse=True)


@pytest.fixture(scope="session")
def forked_uninstalled(uninstalled: Path) -> Iterator[Forked]:
    python = Forked(uninstalled, clean_variables())
    yield python
    python.close()


@pytest.fixture(scope="session")
def setup_file() -> ModuleType:
    """setup.py as a module, without running setup()."""
    spec = importlib.util.spec_from_file_location("setup_file", ROOT / "setup.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel as `make wheel` builds it, without isolation, so offline; once for all of pytest's workers.

    It is compiled without optimization and without CUDA, in a tenth of the time; `make build` leaves the other kind.
    """
    base = tmp_path_factory.getbasetemp()
    folder = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "wheel"
    folder.mkdir(exist_ok=True)
    with open(folder / "lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not list(folder.glob("*.whl")):
            # CMake has no flags for a build of this type.
            variables = {"FDKERNELS_CUDA_ARCHS": "none", "CMAKE_BUILD_TYPE": "Quick"}
            build(folder, sys.executable, "--no-build-isolation", "--no-index", run=succeed, **variables)
    (built,) = folder.glob("fdkernels-*.whl")
    return built


@pytest.fixture(scope="session")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Python of an environment with the wheel, and no checkout on its path."""
    python = make_environment(tmp_path_factory.mktemp("environment") / "venv", reuse=True)
    succeed(sys.executable, "-m", "pip", "--python", str(python), "install", "--no-deps", "--no-index", str(wheel))
    return python


@pytest.fixture(scope="session")
def forked_installed(installed: Path) -> Iterator[Forked]:
    python = Forked(installed, clean_variables())
    yield python
    python.close()
