"""The wheel runs on systems with glibc 2.28 and, installed elsewhere, works without the checkout."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from fdkernels import binaries
from tests.packaging.conftest import ROOT, clean_variables
from tools.wheel import AUDITWHEEL, PLATFORM

SMOKE = """
import json, sys, torch
import fdkernels as fdk, fdistill
from fdkernels import _core, backends
torch.manual_seed(0)
x = torch.randn(8, 3, 4, 4, requires_grad=True)
tau, fake, logits, t = torch.randn(8, 3, 4, 4), torch.randn(8, 3, 4, 4), torch.randn(8, 2), torch.rand(8)
gradients = {}
for backend in ("native", "reference"):
    loss = fdk.fused_fdiv_loss(x, tau, fake, logits, t, normalizer=fdk.RatioNormalizer(), backend=backend)
    gradients[backend] = torch.autograd.grad(loss, x)[0]
print(json.dumps({
    "files": [fdk.__file__, _core.__file__, fdistill.__file__],
    "libraries": sorted(str(path) for path in torch.ops.loaded_libraries),
    "auto": backends.choose("auto", "cpu"),
    "version": [fdk.__version__, _core.build_info()["version"]],
    "norm": gradients["native"].norm().item(),
    "difference": (gradients["native"] - gradients["reference"]).norm().item(),
}))
"""


def test_runs_outside_the_checkout(installed: Path, tmp_path: Path) -> None:
    run = subprocess.run(
        [str(installed), "-c", SMOKE], capture_output=True, text=True, cwd=tmp_path, env=clean_variables()
    )
    assert run.returncode == 0, run.stderr
    result = json.loads(run.stdout)
    environment = installed.parents[1]
    for file in [*result["files"], *result["libraries"]]:
        assert Path(file).is_relative_to(environment), f"{file} is not from the wheel"
        assert not Path(file).is_relative_to(ROOT)
    assert [Path(library).name for library in result["libraries"]] == ["libfdkernels_cpu.so"]
    assert result["auto"] == "native"
    assert result["version"][0] == result["version"][1]
    assert result["norm"] > 0
    assert result["difference"] <= 1e-6 * result["norm"]


def test_commands_work_outside_the_checkout(installed: Path, tmp_path: Path) -> None:
    def run(*command: str) -> str:
        done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env=clean_variables())
        assert done.returncode == 0, done.stderr
        return done.stdout

    assert "auto picks native" in run(str(installed), "-m", "fdkernels")
    tiny = ("steps=4", "batch=8", "eval.samples=100", "eval.snapshots=1", "width=8", "critic_width=8", "name=tiny")
    assert "report: runs/tiny/report.html" in run(str(installed.parent / "fdistill"), "train", "gmm", *tiny)


def test_holds_both_packages_and_nothing_else(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
    roots = {name.split("/")[0] for name in names if ".dist-info/" not in name}
    assert roots == {"fdkernels", "fdistill"}
    core, library = sorted(name for name in names if name.endswith(".so"))
    assert re.fullmatch(r"fdkernels/_core\.cpython-\d+-.*\.so", core)
    assert library == "fdkernels/libfdkernels_cpu.so"
    modules = {
        str(path.relative_to(base))
        for base in (ROOT, ROOT / "python")
        for package in ("fdkernels", "fdistill")
        for path in (base / package).rglob("*")
        if path.suffix in (".py", ".pyi", ".yaml", ".in") or path.name == "py.typed"
    }
    assert {"fdkernels/py.typed", "fdistill/py.typed", "fdistill/presets/digits.yaml"} <= modules
    assert modules <= names


def test_auditwheel_finds_the_platform_of_its_tag(wheel: Path) -> None:
    assert wheel.name.endswith(f"-cp3{sys.version_info.minor}-{PLATFORM}.whl")
    found = json.loads(subprocess.check_output([*AUDITWHEEL, "show", "--json", wheel], text=True))
    assert list(found["external_libs"]) == ["libtorch_cpu.so"]
    oldest, promised = (re.fullmatch(r"manylinux_2_(\d+)_\w+", name) for name in (found["sym_tag"], PLATFORM))
    assert oldest is not None and promised is not None
    assert int(oldest[1]) <= int(promised[1])


@pytest.mark.parametrize("name", (binaries.CORE, "libfdkernels_cpu.so", "libfdkernels_cuda.so"))
def test_binaries_need_an_old_system_alone(name: str) -> None:
    """The wheel's have no optimization and no CUDA; these have both, and call other functions."""
    file = ROOT / "fdkernels" / name
    if not file.exists():
        pytest.skip("built without CUDA")
    table = subprocess.check_output(["nm", "--dynamic", file], text=True)
    needed = re.findall(r"(\w+)@+([A-Z]+)_([\d.]+)$", table, re.MULTILINE)
    glibc = {function: tuple(map(int, version.split("."))) for function, of, version in needed if of == "GLIBC"}
    assert glibc and {of for _, of, _ in needed} == {"GLIBC", "GCC"}  # no C++ runtime: GLIBCXX, CXXABI
    assert {function for function, version in glibc.items() if version > (2, 28)} == set()
    defined = set(re.findall(r" [A-TV-Z] (\w+)$", table, re.MULTILINE))
    assert defined == {"fdkernels_sources", *(["PyInit__core"] if name == binaries.CORE else [])}


@pytest.fixture(params=["cpu", "cuda"])
def library(request: pytest.FixtureRequest) -> Path:
    """A library of this checkout, which is optimized; the wheel's is not."""
    file = ROOT / f"fdkernels/libfdkernels_{request.param}.so"
    if not file.exists():
        pytest.skip("built without CUDA")
    return file


def test_library_needs_of_torch_only_libtorch_cpu(library: Path) -> None:
    dynamic = subprocess.check_output(["readelf", "--dynamic", "--wide", library], text=True)
    needed = set(re.findall(r"\(NEEDED\).*\[(.+?)\]", dynamic))
    assert {name for name in needed if re.match(r"libtorch|libc10|libcu", name)} == {"libtorch_cpu.so"}
    assert "RPATH" not in dynamic and "RUNPATH" not in dynamic


def test_library_uses_only_the_stable_c_interface_of_torch(library: Path) -> None:
    """There is one exception, a weak symbol that may be missing: `inside_backward` of csrc/torch/operands.h uses it."""
    table = subprocess.check_output(["nm", "--dynamic", "--undefined-only", library], text=True)
    undefined = {name: kind for kind, name in re.findall(r"([A-Za-z]) (\S+)$", table, re.MULTILINE)}
    torch_symbols = {name for name in undefined if "torch" in name or "c10" in name or "_ZN2at" in name}
    assert undefined["_ZN5torch8autograd25get_current_graph_task_idEv"] == "w"
    torch_symbols.remove("_ZN5torch8autograd25get_current_graph_task_idEv")
    assert torch_symbols
    assert all(re.match(r"(aoti_)?torch_", name) for name in torch_symbols), torch_symbols
    assert "torch_exception_get_what_without_backtrace" not in torch_symbols  # absent from torch 2.10


def test_library_keeps_its_cuda_runtime_to_itself(library: Path) -> None:
    """torch brings another version of the CUDA runtime into the process."""
    dynamic = subprocess.check_output(["nm", "--dynamic", library], text=True)
    assert not re.findall(r"\b(?:__cuda|cuda[A-Z]|cu[A-Z])\w*", dynamic)


def test_wide_instructions_stay_in_their_level() -> None:
    """No function that the linker could share between levels uses registers beyond the baseline's."""
    library = ROOT / "fdkernels/libfdkernels_cpu.so"
    code = subprocess.check_output(["objdump", "--disassemble", "--no-show-raw-insn", "--demangle", library], text=True)
    if "elf64-x86-64" not in code:
        return
    function, wide = "", set()
    for line in code.splitlines():
        header = re.fullmatch(r"[0-9a-f]+ <(.*)>:", line)
        if header:
            function = header[1]
        elif re.search(r"%[yz]mm", line):
            wide.add(function)
    assert any("::v4::" in name for name in wide) and any("::v3::" in name for name in wide)
    shared = {name for name in wide if not re.search(r"\bfdkernels::v[34]::|\(anonymous namespace\)", name)}
    assert not shared
