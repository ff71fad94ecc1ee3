"""The reports that page and figures are tested with."""

from __future__ import annotations

import pytest

from benchmarks import page
from benchmarks.comparisons import Report
from tests.benchmarks.reading import Element, read
from tests.benchmarks.synthetic import REPORTS


@pytest.fixture(scope="module", params=REPORTS)
def report(request: pytest.FixtureRequest) -> Report:
    return REPORTS[request.param]


@pytest.fixture(scope="module")
def tree(report: Report) -> Element:
    return read(page.render(report))
