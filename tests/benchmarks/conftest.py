"""The reports that page and figures are tested with, and stages of `make gpu-check`."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from benchmarks import page
from benchmarks.comparisons import Report
from tests.benchmarks.reading import Element, read
from tests.benchmarks.synthetic import REPORTS
from tests.gpu_check.stage import Options, Stage


@pytest.fixture(scope="module", params=REPORTS)
def report(request: pytest.FixtureRequest) -> Report:
    return REPORTS[request.param]


@pytest.fixture(scope="module")
def tree(report: Report) -> Element:
    return read(page.render(report))


@pytest.fixture
def stage(tmp_path: Path) -> Callable[..., Stage]:
    def make(name: str = "test", budget: float = 60.0, tests: Sequence[str] = (), device: str = "cpu") -> Stage:
        return Stage(name, Options(tmp_path, device, budget, sys.executable, tuple(tests), {"commit": "c0ffee"}))

    return make
