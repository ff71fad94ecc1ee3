"""`python -m fdkernels` prints its report whatever is missing or broken."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest
import torch

import fdkernels
from fdkernels import _core, backends
from fdkernels.__main__ import probe_backends
from tests.forked import Forked
from tests.packaging.conftest import ROOT, clean_variables, make_environment

LIBRARY = "libfdkernels_cpu.so"
CUDA_LIBRARY = "libfdkernels_cuda.so"


@pytest.fixture
def package(tmp_path: Path) -> Path:
    """A copy of the package with its binaries, to break; `python -m fdkernels` from its parent folder finds it."""
    copy = tmp_path / "fdkernels"
    shutil.copytree(ROOT / "fdkernels", copy, ignore=shutil.ignore_patterns("__pycache__"))
    assert (copy / LIBRARY).exists(), "the checkout has no binaries; run `make build`"
    return copy


def report(package: Path, python: Path | Forked) -> str:
    command = ("-m", "fdkernels")
    if isinstance(python, Forked):
        run = python.run(package.parent, *command)
    else:
        run = subprocess.run(
            [python, *command], capture_output=True, text=True, cwd=package.parent, env=clean_variables()
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
    assert "auto picks native, the first usable of native, reference" in text
    info = _core.build_info()
    assert f"CUDA {info['cuda']}" in text
    if info["cuda_archs"]:
        assert f"compiled for GPUs of {', '.join(info['cuda_archs'])}" in text
        assert "libfdkernels_cuda loads" in text


def test_library_missing(package: Path, forked_uninstalled: Forked) -> None:
    (package / LIBRARY).unlink()
    text = report(package, forked_uninstalled)
    assert f"{LIBRARY} was not built" in text
    assert "auto picks reference" in text


def test_library_is_no_library(package: Path, forked_uninstalled: Forked) -> None:
    (package / LIBRARY).write_bytes(b"not a library" * 100)
    text = report(package, forked_uninstalled)
    assert "does not load" in text and "invalid ELF header" in text
    assert "auto picks reference" in text


def test_library_truncated(package: Path, uninstalled: Path) -> None:
    whole = (package / LIBRARY).read_bytes()
    (package / LIBRARY).write_bytes(whole[: len(whole) // 2])
    text = report(package, uninstalled)
    assert "does not load" in text or "a library is damaged; reinstall" in text


def test_cuda_library_missing(package: Path, forked_uninstalled: Forked) -> None:
    (package / CUDA_LIBRARY).unlink(missing_ok=True)
    text = report(package, forked_uninstalled)
    assert f"libfdkernels_cuda {CUDA_LIBRARY} was not built (with nvcc on PATH, run `pip install .`" in text
    assert "auto picks native" in text


def test_cuda_library_is_no_library(package: Path, forked_uninstalled: Forked) -> None:
    (package / CUDA_LIBRARY).write_bytes(b"not a library" * 100)
    text = report(package, forked_uninstalled)
    assert f"libfdkernels_cuda {CUDA_LIBRARY} does not load" in text and "invalid ELF header" in text
    assert "libfdkernels_cpu  loads" in text and "auto picks native" in text


def test_cuda_library_truncated(package: Path, forked_uninstalled: Forked) -> None:
    whole = (package / LIBRARY).read_bytes()  # any library will do; the CUDA one may not be built
    (package / CUDA_LIBRARY).write_bytes(whole[: len(whole) // 2])
    text = report(package, forked_uninstalled)
    assert f"{CUDA_LIBRARY} does not load" in text or "a library is damaged; reinstall" in text
    assert "libfdkernels_cpu  loads" in text


def test_each_gpu_has_its_own_choice(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Made-up cards: one on which native was checked, one on which it was not, one for which it was not compiled."""
    cards, current = [("Hopper", (9, 0)), ("Ada", (8, 9)), ("Blackwell", (12, 0))], [0]

    class Current:
        def __init__(self, device: str) -> None:
            self.index = int(device.removeprefix("cuda:"))

        def __enter__(self) -> None:
            current[0] = self.index

        def __exit__(self, *_: object) -> None:
            current[0] = 0

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: len(cards))
    monkeypatch.setattr(torch.cuda, "device", Current)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda index: cards[index][0])
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda i=None: cards[current[0] if i is None else i][1])
    monkeypatch.setattr(backends, "load_native", lambda device_type: None)
    monkeypatch.setattr(backends, "_driver_version", lambda: (13, 0))
    monkeypatch.setattr(_core, "build_info", lambda: {"cuda": "13.0", "cuda_archs": ["80", "90"]})
    results = "benchmarks/results/h100_check.json"
    monkeypatch.setitem(backends.CHECKED, (9, 0), results)
    probe_backends()
    hopper, ada, blackwell = capsys.readouterr().out.split("\n  cuda:")[1:]
    assert hopper.startswith("0 (Hopper, compute capability 9.0)\n")
    assert "auto picks native, the first usable of native, triton, reference" in hopper
    assert f"in this order because native passed its checks on compute capability 9.0 ({results})" in hopper
    assert "auto picks triton, the first usable of triton, native, reference" in ada
    assert "in this order because native has not been checked on compute capability 8.9" in ada
    assert "native     usable" in ada
    assert "auto picks triton, the first usable of triton, native, reference" in blackwell
    assert "native     the CUDA library was compiled for 80, 90; this GPU has compute capability (12, 0)" in blackwell
    table = f"native has been checked on compute capability 9.0 ({results}); auto picks triton first on other GPUs"
    assert table in blackwell.splitlines()[-1]


def test_core_missing(package: Path, forked_uninstalled: Forked) -> None:
    core(package).unlink()
    text = report(package, forked_uninstalled)
    assert "_core             missing or broken" in text
    assert "auto picks native" in text


def test_core_corrupt(package: Path, forked_uninstalled: Forked) -> None:
    core(package).write_bytes(b"\x7fELF but no more")
    text = report(package, forked_uninstalled)
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
assert _core.log_weight("kl", [0.5])[0] == 0.5
assert not hasattr(fdkernels, "no_such_name")
fdkernels.FDivLoss
"""
    run = subprocess.run([str(uninstalled), "-c", code], capture_output=True, text=True, cwd=package.parent)
    assert "fdkernels.FDivLoss needs torch, which does not import here (ImportError: no torch today)" in run.stderr
