"""The reports for the tests of page, charts and figures."""

from __future__ import annotations

import pytest

from benchmarks.report import figures
from benchmarks.report.reading import Report
from tests.benchmarks.made_up import report as made_up

MEASURED = figures.reports(figures.RESULTS)
REPORTS = {"made up": made_up(), **{path.stem: report for path, report in MEASURED.items()}}


@pytest.fixture(scope="module", params=REPORTS)
def report(request: pytest.FixtureRequest) -> Report:
    return REPORTS[request.param]
