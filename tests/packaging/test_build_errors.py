"""If torch cannot be found, the build says what to do."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from tests.packaging.conftest import clean_variables, copy_checkout, make_environment


def build(python: Path, source: Path, **variables: str) -> subprocess.CompletedProcess[str]:
    # Only setuptools and pybind11 come from this environment, so there is no torch.
    import _distutils_hack
    import pybind11
    import setuptools

    blocked = source / "path"
    blocked.mkdir()
    for package in (setuptools, _distutils_hack, pybind11):
        folder = Path(package.__path__[0])
        (blocked / folder.name).symlink_to(folder)
    return subprocess.run(
        [str(python), "setup.py", "build_ext", "--inplace"],
        capture_output=True, text=True, cwd=source, env=clean_variables(PYTHONPATH=str(blocked), **variables),
    )  # fmt: skip


def test_no_torch(tmp_path: Path) -> None:
    run = build(make_environment(tmp_path / "venv", reuse=False), copy_checkout(tmp_path / "checkout"))
    assert run.returncode == 1
    for line in (
        "torch >= 2.10 was not found",
        "pip install torch && pip install .",
        "uv pip install --no-build-isolation .",
        "python -m build --wheel --no-isolation",
        "export FDKERNELS_TORCH_DIR=",
        str(tmp_path / "venv"),
    ):
        assert line in run.stderr
    assert "Traceback" not in run.stderr


def test_wrong_torch_directory(tmp_path: Path) -> None:
    python, source = make_environment(tmp_path / "venv", reuse=False), copy_checkout(tmp_path / "checkout")
    run = build(python, source, FDKERNELS_TORCH_DIR=str(tmp_path))
    assert run.returncode == 1
    assert f"FDKERNELS_TORCH_DIR={tmp_path} is no torch package directory" in run.stderr


def test_old_torch(tmp_path: Path) -> None:
    old = tmp_path / "torch"
    (old / "include/torch/csrc/stable").mkdir(parents=True)
    (old / "include/torch/csrc/stable/library.h").touch()
    (old / "version.py").write_text("__version__ = '2.9.1+cpu'\n")
    python, source = make_environment(tmp_path / "venv", reuse=False), copy_checkout(tmp_path / "checkout")
    run = build(python, source, FDKERNELS_TORCH_DIR=str(old))
    assert run.returncode == 1
    assert "holds torch 2.9, which is too old" in run.stderr


def test_setup_never_imports_torch() -> None:
    code = (
        "import runpy, sys; sys.argv[1:] = ['--version']; runpy.run_path('setup.py'); assert 'torch' not in sys.modules"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=Path(__file__).parents[2])
    assert run.returncode == 0, run.stderr
