"""How setup.py chooses architectures from FDKERNELS_CUDA_ARCHS, nvcc and the GPUs it finds. Nothing is compiled."""

from __future__ import annotations

import subprocess
import sys
import sysconfig
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from setuptools import Distribution

from tests.packaging.conftest import clean_variables, copy_checkout

ALL = ("80", "90", "100", "120", "120+PTX")


def nvcc(setup_file: ModuleType, version: str = "13.0", archs: str = "75 80 86 90 100 120") -> Any:
    return setup_file.Nvcc("/cuda/bin/nvcc", version, frozenset(archs.split()))


@pytest.mark.parametrize(
    ("text", "archs"),
    [
        ("none", ()),
        ("all", ALL),
        ("90", ("90",)),
        ("80;90", ("80", "90")),
        ("100 90", ("90", "100")),
        ("80, 80", ("80",)),
        ("90+PTX", ("90", "90+PTX")),
        ("120+PTX;80", ("80", "120", "120+PTX")),
        ("8.0;9.0+PTX", ("80", "90", "90+PTX")),
    ],
)
def test_architectures(setup_file: ModuleType, text: str, archs: tuple[str, ...]) -> None:
    assert setup_file.parse_cuda_archs(text) == archs


@pytest.mark.parametrize("text", ["75", "9", "90a", "sm_90", "90+ptx", "90;", "all 90", "native", "90+PTX+PTX"])
def test_bad_values(setup_file: ModuleType, text: str) -> None:
    with pytest.raises(ValueError) as error:
        setup_file.parse_cuda_archs(text)
    assert str(error.value) == (
        f"FDKERNELS_CUDA_ARCHS: expected all, none, or architectures from 80 on such as '80;90+PTX', got {text!r}"
    )


@pytest.mark.parametrize(("present", "archs"), [([], ALL), (["90"], ("90",)), (["86", "90"], ("86", "90"))])
def test_unset_takes_the_gpus_of_this_machine(setup_file: ModuleType, present: list[str], archs: Any) -> None:
    plan = setup_file.plan_cuda("", nvcc(setup_file), present)
    assert plan.archs == archs and plan.nvcc == "/cuda/bin/nvcc"
    assert plan.note == f"CUDA library for {', '.join(archs)} with /cuda/bin/nvcc of CUDA 13.0"


def test_a_value_goes_before_the_gpus_of_this_machine(setup_file: ModuleType) -> None:
    assert setup_file.plan_cuda("all", nvcc(setup_file), ["90"]).archs == ALL
    assert setup_file.plan_cuda("80+PTX", nvcc(setup_file), ["90"]).archs == ("80", "80+PTX")
    plan = setup_file.plan_cuda("none", nvcc(setup_file), ["90"])
    assert plan.archs == () and plan.note == "no CUDA library (FDKERNELS_CUDA_ARCHS=none)"


@pytest.mark.parametrize(
    ("compiler", "present", "problem"),
    [
        (None, [], "nvcc not found (looked at CUDACXX, CUDA_HOME, PATH and /usr/local/cuda)"),
        (("11.8", "80 90"), ["90"], "/cuda/bin/nvcc is of CUDA 11.8; 12.0 or later is needed"),
        (("12.4", "80 90"), [], "/cuda/bin/nvcc of CUDA 12.4 does not know 100, 120, 120+PTX"),
        (("12.4", "80 90"), ["100"], "/cuda/bin/nvcc of CUDA 12.4 does not know 100"),
    ],
)
def test_what_nvcc_cannot_is_left_out_unasked_and_an_error_asked_for(
    setup_file: ModuleType, compiler: tuple[str, str] | None, present: list[str], problem: str
) -> None:
    found = compiler and nvcc(setup_file, *compiler)
    plan = setup_file.plan_cuda("", found, present)
    assert plan.archs == () and plan.note == f"no CUDA library: {problem}; Triton serves GPUs"
    asked = ";".join(present) or "all"
    with pytest.raises(ValueError) as error:
        setup_file.plan_cuda(asked, found, [])
    assert str(error.value) == f"FDKERNELS_CUDA_ARCHS={asked}: {problem}"


def program(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return path


def fake_nvcc(path: Path, version: str) -> Path:
    return program(
        path, f'[ "$1" = --version ] && echo "tools, release {version}, V{version}.88" || echo "sm_80\nsm_90"'
    )


def test_nvcc_is_looked_for_in_order(setup_file: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    on_path = fake_nvcc(tmp_path / "path/nvcc", "12.1")
    at_home = fake_nvcc(tmp_path / "home/bin/nvcc", "12.2")
    named = fake_nvcc(tmp_path / "named/nvcc-12", "12.3")
    monkeypatch.setenv("PATH", f"{on_path.parent}:/bin:/usr/bin")
    monkeypatch.delenv("CUDACXX", raising=False)
    monkeypatch.setenv("CUDA_HOME", str(tmp_path / "no such folder"))
    assert setup_file.find_nvcc() == (str(on_path), "12.1", {"80", "90"})
    monkeypatch.setenv("CUDA_HOME", str(tmp_path / "home"))
    assert setup_file.find_nvcc() == (str(at_home), "12.2", {"80", "90"})
    monkeypatch.setenv("CUDACXX", str(named))
    assert setup_file.find_nvcc() == (str(named), "12.3", {"80", "90"})
    monkeypatch.setenv("CUDACXX", str(program(tmp_path / "clang++", "echo clang version 19")))
    assert setup_file.find_nvcc().path == str(at_home)


@pytest.mark.parametrize(
    ("text", "archs"),
    [
        ("echo 9.0", ["90"]),
        ("printf '12.0\n9.0\n12.0\n7.5\n'", ["90", "120"]),
        ("echo 7.5", []),
        ("echo '[N/A]'", []),
        ("echo 9.0; exit 9", []),
    ],
)
def test_gpus_of_this_machine(
    setup_file: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str, archs: list[str]
) -> None:
    monkeypatch.setenv("PATH", f"{program(tmp_path / 'nvidia-smi', text).parent}:/bin:/usr/bin")
    assert setup_file.present_archs() == archs


def test_no_nvidia_smi(setup_file: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    assert setup_file.present_archs() == []


def test_cmake_gets_machine_code_and_ptx_by_its_own_names(setup_file: ModuleType) -> None:
    plan = setup_file.plan_cuda("80;90+PTX", nvcc(setup_file), [])
    assert setup_file.cuda_options(plan) == [
        "-DCMAKE_CUDA_COMPILER=/cuda/bin/nvcc",
        "-DCMAKE_CUDA_ARCHITECTURES=80-real;90-real;90-virtual",
    ]
    assert setup_file.cuda_options(setup_file.plan_cuda("none", None, [])) == []


@pytest.mark.parametrize("archs", [(), ("90",)])
def test_outputs_are_what_is_built_and_an_earlier_cuda_library_goes(
    setup_file: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, archs: tuple[str, ...]
) -> None:
    commands: list[list[str]] = []
    monkeypatch.setattr(setup_file, "ROOT", tmp_path)
    monkeypatch.setattr(setup_file.subprocess, "run", lambda command, **_: commands.append(command))
    build = setup_file.CMakeBuild(Distribution({"name": "fdkernels", "version": "1"}))
    build.build_lib = str(tmp_path / "lib")
    build._cuda = setup_file.CudaPlan(archs, "/cuda/bin/nvcc", "")
    stale = tmp_path / "lib/fdkernels/libfdkernels_cuda.so"
    stale.parent.mkdir(parents=True)
    stale.touch()
    build_directory = f"cmake-{sysconfig.get_platform()}-{sys.implementation.cache_tag}"
    (tmp_path / "build" / build_directory).mkdir(parents=True)
    build.run()
    assert len(commands) == 3
    assert stale.exists() == bool(archs)
    assert (str(stale) in build.get_outputs()) == bool(archs)
    assert any("CMAKE_CUDA_ARCHITECTURES" in option for option in commands[0]) == bool(archs)


def test_a_bad_value_stops_the_build_without_a_traceback(tmp_path: Path) -> None:
    run = subprocess.run(
        [sys.executable, "setup.py", "build_ext", "--inplace"],
        capture_output=True,
        text=True,
        cwd=copy_checkout(tmp_path / "checkout"),
        env=clean_variables(FDKERNELS_CUDA_ARCHS="hopper"),
    )
    assert run.returncode == 1
    assert "fdkernels: FDKERNELS_CUDA_ARCHS: expected all, none, or architectures from 80 on" in run.stderr
    assert "got 'hopper'" in run.stderr and "Traceback" not in run.stderr
