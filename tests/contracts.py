"""Counts tests by contract and backend, prints the table, and fails a whole run that leaves a cell empty."""

from __future__ import annotations

import platform
import sys
from collections import Counter, defaultdict

import pytest
import torch

from tests import device
from tests.software_device import build

# DESIGN's contracts. A test says which one it shows with `pytestmark = pytest.mark.contract("...")`.
CONTRACTS = (
    "exactness",
    "weights",
    "predictions",
    "masks",
    "reductions",
    "nonfinite",
    "layouts",
    "autograd",
    "determinism",
    "state",
    "bad input",
    "stats",
    "compile",
    "distributed",
    "peers",
    "properties",
)
BACKENDS = ("reference", "native", "triton")
# The CUDA library's own sources on CPU tensors (tests/software_device): a column beside them, on Linux x86-64 with GCC.
SOFTWARE = "native (software device)"
HAS_SOFTWARE = sys.platform == "linux" and platform.machine() == "x86_64" and build.compiler() is not None
# What serves each device. To PyTorch, ROCm's are CUDA's; native's kernels are for NVIDIA's alone.
BACKENDS_ON = {
    "cpu": (*BACKENDS, SOFTWARE) if HAS_SOFTWARE else BACKENDS,
    "cuda": BACKENDS if torch.version.hip is None else ("reference", "triton"),
}


def column(backend: str) -> str:
    """Of the table: the software device's has many ways."""
    return backend.partition(":")[0]


def backends() -> tuple[str, ...]:
    """The backends of this run's device."""
    return BACKENDS_ON[device.name()]


class ContractTable:
    """A pytest plugin; reports reach it from this process or, under xdist, from the workers."""

    def __init__(self) -> None:
        self.cells: dict[tuple[str, str], Counter[str]] = defaultdict(Counter)
        self.settings: Counter[str] = Counter()  # of the software device
        self.whole = True
        # Cells that this run cannot show. Processes have no part in a kernel.
        self.excused = {("distributed", SOFTWARE)}

    @pytest.hookimpl(hookwrapper=True)
    def pytest_runtest_makereport(self, item):
        outcome = yield
        mark = item.get_closest_marker("contract")
        backend = getattr(item, "callspec", None) and item.callspec.params.get("backend")
        if mark and backend:
            outcome.get_result().user_properties.append(("contract", (mark.args[0], column(backend))))

    def pytest_collection_modifyitems(self, items):
        for item in items:
            mark = item.get_closest_marker("contract")
            if mark and mark.args[0] not in CONTRACTS:
                raise pytest.UsageError(f"{item.nodeid}: unknown contract {mark.args[0]!r}; known: {CONTRACTS}")

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
        """The cells in which nothing ran."""
        return [
            f"{contract} × {backend}"
            for contract in CONTRACTS
            for backend in backends()
            if (contract, backend) not in self.excused
            and not (self.cells[contract, backend]["passed"] or self.cells[contract, backend]["failed"])
        ]

    def pytest_sessionfinish(self, session):
        if hasattr(session.config, "workerinput") or not self.is_whole(session.config):
            return
        if session.exitstatus == pytest.ExitCode.OK and self.empty():
            session.exitstatus = pytest.ExitCode.TESTS_FAILED

    def is_whole(self, config: pytest.Config) -> bool:
        """Whether all of the core's tests were asked for."""
        here = config.rootpath / "tests"
        asked = [(config.invocation_params.dir / str(arg).split("::")[0]).resolve() for arg in config.args]
        narrowed = any(config.getoption(name, None) for name in ("keyword", "markexpr", "lf", "collectonly", "backend"))
        core = here / "fdkernels"
        return self.whole and not narrowed and any(core == path or core.is_relative_to(path) for path in asked)

    def pytest_terminal_summary(self, terminalreporter, config):
        if not self.cells:
            return
        write = terminalreporter.write_line
        terminalreporter.section(f"contract × backend on {device.name()}: passed / failed / skipped")
        write(f"{'':14}" + "".join(f"{backend:>26}" for backend in backends()))
        for contract in CONTRACTS:
            row = (self.cells[contract, backend] for backend in backends())
            text = [" / ".join(str(cell[k]) for k in ("passed", "failed", "skipped")) if cell else "-" for cell in row]
            write(f"{contract:14}" + "".join(f"{cell:>26}" for cell in text))
        if self.settings:
            write(f"{SOFTWARE}, tests: " + ", ".join(f"{part} {n}" for part, n in sorted(self.settings.items())))
        if self.is_whole(config) and self.empty():
            write("empty cells, so the run fails: " + ", ".join(self.empty()), red=True)
