"""Builds tests/host/host.cpp once a run: the CUDA kernels' own functions, for the host."""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sysconfig
from pathlib import Path
from types import ModuleType

import pybind11
import pytest

ROOT = Path(__file__).parents[2]
SOURCE = Path(__file__).with_name("host.cpp")


@pytest.fixture(scope="session")
def host(tmp_path_factory: pytest.TempPathFactory) -> ModuleType:
    compiler = os.environ.get("CXX") or shutil.which("c++") or shutil.which("g++")
    assert compiler is not None, "no C++ compiler; it built the package"
    target = tmp_path_factory.mktemp("host") / f"fdkernels_host{sysconfig.get_config_var('EXT_SUFFIX')}"
    includes = (pybind11.get_include(), sysconfig.get_path("include"))
    # Undefined behaviour (a misaligned access, a signed overflow, a shift too far) ends the run.
    checks = ("-fsanitize=undefined", "-fno-sanitize=vptr", "-fsanitize-undefined-trap-on-error")
    subprocess.run(
        [compiler, "-std=c++20", "-O1", "-shared", "-fPIC", "-fvisibility=hidden", *checks, f"-I{ROOT / 'csrc'}",
         *(f"-isystem{path}" for path in includes), str(SOURCE), "-o", str(target)],
        check=True,
    )  # fmt: skip
    spec = importlib.util.spec_from_file_location("fdkernels_host", target)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
