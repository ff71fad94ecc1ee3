"""Counts tests by op, contract and backend, prints the table, and fails a whole run that leaves a cell empty.

A test names its contract with `pytestmark = pytest.mark.contract("masks")`, and its op with `op="fdiv_weight"`, if that
is not fdiv. A test that takes `op` counts for each op that has the contract.
"""

from __future__ import annotations

import platform
import sys
from collections import Counter, defaultdict

import pytest
import torch

from tests import device
from tests.software_device import build

# The contracts of every op. `tests/ops.py` says which contracts an op adds, and which of these it lacks.
EVERY_OP = ("exactness", "layouts", "autograd", "determinism", "bad input", "compile", "raw operands")
BACKENDS = ("reference", "native", "triton")
# The CUDA library's own sources on CPU tensors (tests/software_device): one more column, on Linux x86-64 with GCC.
SOFTWARE = "native (software device)"
HAS_SOFTWARE = sys.platform == "linux" and platform.machine() == "x86_64" and build.compiler() is not None
# The backends that serve each device. PyTorch calls ROCm devices "cuda" too, but native's kernels are for NVIDIA alone.
BACKENDS_ON = {
    "cpu": (*BACKENDS, SOFTWARE) if HAS_SOFTWARE else BACKENDS,
    "cuda": BACKENDS if torch.version.hip is None else ("reference", "triton"),
}


def column(backend: str) -> str:
    """The table's column of a backend: all ways of the software device share one."""
    return backend.partition(":")[0]


def backends() -> tuple[str, ...]:
    """The backends of this run's device."""
    return BACKENDS_ON[device.name()]


def shown(item: pytest.Item) -> tuple[str, str] | None:
    """The (op, contract) that a test counts for, or None."""
    mark = item.get_closest_marker("contract")
    if mark is None:
        return None
    values = item.callspec.params if hasattr(item, "callspec") else {}
    return values.get("op") or mark.kwargs.get("op", "fdiv"), mark.args[0]


class ContractTable:
    """A pytest plugin. Reports reach it from this process or, under xdist, from the workers."""

    def __init__(self, rows: list[tuple[str, str]]) -> None:
        self.rows = rows  # (op, contract)
        self.cells: dict[tuple[str, str, str], Counter[str]] = defaultdict(Counter)
        self.settings: Counter[str] = Counter()  # settings of the software device: number of tests
        self.whole = True
        # Cells that need no test. Process groups do not involve the device, and the reference is not a registered op.
        self.excused = {("distributed", SOFTWARE), ("raw operands", "reference")}

    @pytest.hookimpl(hookwrapper=True)
    def pytest_runtest_makereport(self, item):
        outcome = yield
        of = shown(item)
        backend = getattr(item, "callspec", None) and item.callspec.params.get("backend")
        if of and backend:
            outcome.get_result().user_properties.append(("contract", (*of, column(backend))))

    def pytest_collection_modifyitems(self, items):
        for item in items:
            of = shown(item)
            if of and of not in self.rows:
                raise pytest.UsageError(f"{item.nodeid}: {of[0]} has no contract {of[1]!r}; known: {self.rows}")

    def pytest_deselected(self, items):
        self.whole = False

    def pytest_runtest_logreport(self, report):
        if report.when == "teardown":
            self.settings.update(part for name, text in report.user_properties if name == "setting" for part in text)
        if report.when != "call" and report.outcome == "passed":
            return
        for name, value in report.user_properties:
            if name == "contract":
                self.cells[tuple(value)][report.outcome] += 1

    def empty(self) -> list[str]:
        """The cells in which no test ran."""
        cells = [(op, contract, backend) for op, contract in self.rows for backend in backends()]
        ran = {cell for cell in cells if self.cells[cell]["passed"] or self.cells[cell]["failed"]}
        return [" × ".join(cell) for cell in cells if cell not in ran and cell[1:] not in self.excused]

    def pytest_sessionfinish(self, session):
        if hasattr(session.config, "workerinput") or not self.is_whole(session.config):
            return
        if session.exitstatus == pytest.ExitCode.OK and self.empty():
            session.exitstatus = pytest.ExitCode.TESTS_FAILED

    def is_whole(self, config: pytest.Config) -> bool:
        """Whether the run was asked for all tests of tests/fdkernels."""
        here = config.rootpath / "tests"
        asked = [(config.invocation_params.dir / str(arg).split("::")[0]).resolve() for arg in config.args]
        narrowed = any(config.getoption(name, None) for name in ("keyword", "markexpr", "lf", "collectonly", "backend"))
        core = here / "fdkernels"
        return self.whole and not narrowed and any(core == path or core.is_relative_to(path) for path in asked)

    def pytest_terminal_summary(self, terminalreporter, config):
        if not self.cells:
            return
        write = terminalreporter.write_line
        terminalreporter.section(f"op × contract × backend on {device.name()}: passed / failed / skipped")
        width = 3 + max(len(" ".join(row)) for row in self.rows)
        write(f"{'':{width}}" + "".join(f"{backend:>26}" for backend in backends()))
        for of in self.rows:
            row = (self.cells[(*of, backend)] for backend in backends())
            text = [" / ".join(str(cell[k]) for k in ("passed", "failed", "skipped")) if cell else "-" for cell in row]
            write(f"{': '.join(of):{width}}" + "".join(f"{cell:>26}" for cell in text))
        if self.settings:
            write(f"{SOFTWARE}, tests: " + ", ".join(f"{part} {n}" for part, n in sorted(self.settings.items())))
        if self.is_whole(config) and self.empty():
            write("empty cells, so the run fails: " + ", ".join(self.empty()), red=True)
