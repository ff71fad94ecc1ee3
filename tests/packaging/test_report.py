"""`python -m fdkernels` prints its report whatever is missing or broken."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest
import torch

import fdkernels
from tests.packaging.conftest import ROOT, clean_variables, make_environment

LIBRARY = "libfdkernels_cpu.so"


@pytest.fixture
def package(tmp_path: Path) -> Path:
    """A copy of the package with its binaries, to break; `python -m fdkernels` from its parent folder finds it."""
    copy = tmp_path / "fdkernels"
    shutil.copytree(ROOT / "fdkernels", copy, ignore=shutil.ignore_patterns("__pycache__"))
    assert (copy / LIBRARY).exists(), "the checkout has no binaries; run `make build`"
    return copy


def report(package: Path, python: Path) -> str:
    run = subprocess.run(
        [str(python), "-m", "fdkernels"], capture_output=True, text=True, cwd=package.parent, env=clean_variables()
    )
    assert run.returncode == 0, run.stderr
    assert run.stderr == ""
    assert f"fdkernels {fdkernels.__version__} at {package}" in run.stdout
    assert "Compiled parts" in run.stdout
    return run.stdout


def core(package: Path) -> Path:
    (found,) = package.glob("_core.*.so")
    return found


def test_all_well(package: Path, uninstalled: Path) -> None:
    text = report(package, uninstalled)
    assert f"torch     {torch.__version__}" in text
    assert "libfdkernels_cpu  loads" in text
    assert "_core             version" in text and "-O3" in text
    assert "auto picks native" in text


def test_library_missing(package: Path, uninstalled: Path) -> None:
    (package / LIBRARY).unlink()
    text = report(package, uninstalled)
    assert f"{LIBRARY} was not built" in text
    assert "auto picks reference" in text


def test_library_is_no_library(package: Path, uninstalled: Path) -> None:
    (package / LIBRARY).write_bytes(b"not a library" * 100)
    text = report(package, uninstalled)
    assert "does not load" in text and "invalid ELF header" in text
    assert "auto picks reference" in text


def test_library_truncated(package: Path, uninstalled: Path) -> None:
    whole = (package / LIBRARY).read_bytes()
    (package / LIBRARY).write_bytes(whole[: len(whole) // 2])
    text = report(package, uninstalled)
    assert "does not load" in text or "a library is damaged; reinstall" in text


def test_core_missing(package: Path, uninstalled: Path) -> None:
    core(package).unlink()
    text = report(package, uninstalled)
    assert "_core             missing or broken" in text
    assert "auto picks native" in text


def test_core_corrupt(package: Path, uninstalled: Path) -> None:
    core(package).write_bytes(b"\x7fELF but no more")
    text = report(package, uninstalled)
    assert "_core             missing or broken" in text
    assert "auto picks native" in text


def test_torch_broken(package: Path, uninstalled: Path) -> None:
    (package.parent / "torch.py").write_text("raise ImportError('libcudnn.so.9: cannot open shared object file')\n")
    text = report(package, uninstalled)
    assert "torch             missing or broken, so nothing can run: libcudnn.so.9" in text
    assert "_core             version" in text


def test_torch_absent(package: Path) -> None:
    text = report(package, make_environment(package.parent / "venv", reuse=False))
    assert "torch     not installed" in text
    assert "missing or broken, so nothing can run: No module named 'torch'" in text
    assert "_core             version" in text


def test_without_torch_the_math_works_and_the_rest_says_why(package: Path, uninstalled: Path) -> None:
    (package.parent / "torch.py").write_text("raise ImportError('no torch today')\n")
    code = """
import fdkernels
from fdkernels import _core
assert _core.weight("js", [0.0])[0] == 0.5
assert not hasattr(fdkernels, "no_such_name")
fdkernels.FDivLoss
"""
    run = subprocess.run([str(uninstalled), "-c", code], capture_output=True, text=True, cwd=package.parent)
    assert "fdkernels.FDivLoss needs torch, which does not import here (ImportError: no torch today)" in run.stderr
