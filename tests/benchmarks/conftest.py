"""The reports that page, charts and figures are tested with."""

from __future__ import annotations

import pytest

from benchmarks.report import figures
from benchmarks.report.reading import Report
from tests.benchmarks.made_up import report as made_up

REPORTS = {"made up": made_up()}
REPORTS |= {path.stem: report for path, report in figures.reports(figures.RESULTS).items()}


@pytest.fixture(scope="module", params=REPORTS)
def report(request: pytest.FixtureRequest) -> Report:
    return REPORTS[request.param]
