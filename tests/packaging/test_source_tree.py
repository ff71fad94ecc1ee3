"""In a clone, whose Python files hide the installed ones: which binaries serve, and what is said if none do."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from fdkernels import binaries
from tests.forked import Forked
from tests.packaging.conftest import ROOT, copy_checkout

USE = """
import json, torch
import fdkernels as fdk
from fdkernels import backends

x = torch.randn(8, 3, requires_grad=True)
def loss(x, **options):
    return fdk.fused_fdiv_loss(x, torch.ones(8, 3), torch.zeros(8, 3), torch.randn(8), **options)
for _ in range(2):
    loss(x).backward()
try:
    loss(x, backend="native")
    refused = ""
except RuntimeError as error:
    refused = str(error)
print(json.dumps([fdk.__file__, sorted(map(str, torch.ops.loaded_libraries)), backends.choose("auto", "cpu"), refused]))
"""
COMPILED = USE.replace("    loss(x)", "    torch.compile(loss, fullgraph=True, backend='eager')(x)")
CORE = """
from fdkernels import _core
import fdkernels._core as same
assert same is _core
print(_core.__file__)
"""
PLAN = ("-m", "fdkernels", "plan", "--shape", "8,4,64,64")


@pytest.fixture
def clone(tmp_path: Path) -> Path:
    """A fresh clone, where nothing was built."""
    target = copy_checkout(tmp_path / "clone")
    shutil.copytree(ROOT / "benchmarks", target / "benchmarks", ignore=shutil.ignore_patterns("__pycache__", "results"))
    return target


def build_in_place(clone: Path) -> None:
    """Put binaries into the clone, as `make build` does."""
    for file in (ROOT / "fdkernels").glob("*.so"):
        shutil.copy(file, clone / "fdkernels" / file.name)


def change(clone: Path) -> None:
    """Change a C++ file, as a `git pull` may."""
    with (clone / "csrc/fdiv/cpu/op.cpp").open("a") as file:
        file.write("// another line\n")


def use(python: Forked, clone: Path, code: str = USE) -> tuple[list[str], str, str, str]:
    """(Libraries that a training step loads, what auto picks, why native is refused, warnings)."""
    run = python.run(clone, "-c", code)
    assert run.returncode == 0, run.stderr
    file, libraries, auto, refused = json.loads(run.stdout)
    assert Path(file).is_relative_to(clone)
    return libraries, auto, refused, run.stderr


def assert_says_in_a_line(
    python: Forked, clone: Path, what: str, commands: tuple[tuple[str, ...], ...] = (PLAN,)
) -> None:
    """The report goes on, commands stop; each with the reason, none with a traceback."""
    report = python.run(clone, "-m", "fdkernels")
    assert report.returncode == 0 and report.stderr == ""
    told = [line.split()[0] for line in report.stdout.splitlines() if what in line]
    assert {"_core", "libfdkernels_cpu", "native"} <= set(told) and "auto picks reference" in report.stdout
    for command in commands:
        run = python.run(clone, *command)
        assert run.returncode == 1 and what in run.stderr and run.stderr.count("\n") == 1


def assert_warned_once(python: Forked, clone: Path, what: str, code: str = USE) -> None:
    libraries, auto, refused, warned = use(python, clone, code)
    assert libraries == [] and auto == "reference"
    assert refused.startswith("backend 'native' is not available for cpu tensors: ") and what in refused
    assert warned.count("RuntimeWarning") == 1
    assert "fdkernels serves cpu tensors with eager PyTorch" in warned and what in warned


def test_the_installed_binaries_serve_a_clone_of_the_same_sources(
    installed: Path, forked_installed: Forked, clone: Path
) -> None:
    libraries, auto, refused, warned = use(forked_installed, clone)
    assert (auto, refused, warned) == ("native", "", "")
    environment = installed.parents[1]
    assert len(libraries) == 1 and Path(libraries[0]).is_relative_to(environment)
    core = forked_installed.run(clone, "-c", CORE)
    assert Path(core.stdout.strip()).is_relative_to(environment), core.stderr
    report = forked_installed.run(clone, "-m", "fdkernels")
    assert "libfdkernels_cpu  loads" in report.stdout and "auto picks native" in report.stdout
    (line,) = (
        line for line in report.stdout.splitlines() if line.endswith("has them, built from the same csrc/ as here")
    )
    assert Path(line.split()[0]).is_relative_to(environment)
    assert "predicted" in forked_installed.run(clone, *PLAN).stdout


def test_the_installed_binaries_of_other_sources_do_not(installed: Path, forked_installed: Forked, clone: Path) -> None:
    change(clone)
    what = f"the source tree {clone} hides the fdkernels that is installed in {installed.parents[1]}"
    assert_warned_once(forked_installed, clone, what)
    assert_says_in_a_line(
        forked_installed, clone, "built from other sources: run from another folder, or `make build` or"
    )
    # From another folder, the installed package serves.
    libraries = forked_installed.run(clone.parent, "-c", USE.replace("fdk.__file__", "''")).stdout
    assert "libfdkernels_cpu.so" in libraries and "native" in libraries


def test_a_clone_without_binaries_anywhere(forked_uninstalled: Forked, clone: Path) -> None:
    what = "was not built (run `pip install .` or `make build` in the source tree)"
    assert_warned_once(forked_uninstalled, clone, what, COMPILED)
    assert_says_in_a_line(forked_uninstalled, clone, what, (PLAN, ("-m", "benchmarks.report.traffic")))
    assert forked_uninstalled.run(clone, "-m", "benchmarks", "--help").returncode == 0


def test_binaries_in_place_go_before_installed_ones(installed: Path, forked_installed: Forked, clone: Path) -> None:
    build_in_place(clone)
    libraries, auto, _, warned = use(forked_installed, clone)
    assert auto == "native" and warned == ""
    assert libraries == [str(clone / "fdkernels/libfdkernels_cpu.so")]
    assert forked_installed.run(clone, "-c", CORE).stdout.startswith(str(clone))


@pytest.mark.parametrize("how", ("stale", "of another Python"))
def test_installed_binaries_that_fit_go_before_those_in_place_that_do_not(
    installed: Path, forked_installed: Forked, clone: Path, how: str
) -> None:
    build_in_place(clone)
    for file in (clone / "fdkernels").glob("*.so"):
        if how == "stale":
            file.write_bytes(file.read_bytes().replace(b"fdkernels sources ", b"fdkernels sources 0"))
        elif file.name == binaries.CORE:
            file.rename(file.with_name("_core.cpython-39-x86_64-linux-gnu.so"))
    libraries, auto, refused, warned = use(forked_installed, clone)
    assert (auto, refused, warned) == ("native", "", "")
    assert len(libraries) == 1 and not Path(libraries[0]).is_relative_to(clone)
    core = forked_installed.run(clone, "-c", CORE)
    assert Path(core.stdout.strip()).is_relative_to(installed.parents[1]), core.stderr
    assert "predicted" in forked_installed.run(clone, *PLAN).stdout


def test_stale_binaries_in_place_are_refused(forked_uninstalled: Forked, clone: Path) -> None:
    build_in_place(clone)
    change(clone)
    assert_warned_once(forked_uninstalled, clone, "libfdkernels_cpu.so was built from other sources than csrc/ has now")
    assert_says_in_a_line(forked_uninstalled, clone, "than csrc/ has now: run `make build`")


def test_every_binary_holds_the_digest_of_its_sources(wheel: Path, tmp_path: Path) -> None:
    shutil.unpack_archive(wheel, tmp_path, "zip")
    files = [*(tmp_path / "fdkernels").glob("*.so"), *(ROOT / "fdkernels").glob("*.so")]
    assert len(files) >= 4
    assert {binaries.built_from(file) for file in files} == {binaries.digest()}


@pytest.mark.parametrize(
    ("name", "counts"),
    [
        ("fdiv/new.cpp", True),
        ("cpu/new.h", True),
        ("core/cuda/new.cu", True),
        ("notes.txt", False),
        (".#new.cpp", False),
        (".ipynb_checkpoints/new.cpp", False),
    ],
)
def test_what_the_digest_is_of(clone: Path, monkeypatch: pytest.MonkeyPatch, name: str, counts: bool) -> None:
    monkeypatch.setattr(binaries, "PACKAGE", clone / "fdkernels")
    before = binaries.digest()
    (clone / "csrc" / name).parent.mkdir(exist_ok=True)
    (clone / "csrc" / name).write_text("// other\n")
    assert (binaries.digest() != before) == counts


def test_an_installed_package_has_no_sources_to_compare(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder csrc that another project left in site-packages is not ours."""
    monkeypatch.setattr(binaries, "PACKAGE", tmp_path / "fdkernels")
    (tmp_path / "csrc").mkdir()
    (tmp_path / "fdkernels").mkdir()
    (tmp_path / "fdkernels/libfdkernels_cpu.so").write_bytes(b"of some build")
    assert binaries.digest() is None and binaries.locate("libfdkernels_cpu.so")[1] is None
