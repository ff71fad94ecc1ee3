"""A pytest plugin: runs the tests of one backend, and writes a line of JSON when each starts and when it ends.

A run that hangs or crashes thus leaves its results, and the name of the test that it was in. `--only none` takes the
tests that have no backend. With --collect-only the lines count tests by file and backend instead, without the tests
that pytest will skip.
"""

from __future__ import annotations

import json
from collections import Counter

import pytest


def pytest_addoption(parser):
    parser.addoption("--only", help="tests of this backend; none: those without one")
    parser.addoption("--record", help="append lines of JSON to this file")


def backend_of(item) -> str:
    return item.callspec.params.get("backend", "none") if hasattr(item, "callspec") else "none"


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(config, items):
    only = config.getoption("only")
    if only is not None:
        others = [item for item in items if backend_of(item) != only]
        items[:] = [item for item in items if backend_of(item) == only]
        if others:
            config.hook.pytest_deselected(items=others)


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item):
    outcome = yield
    contract = item.get_closest_marker("contract")
    outcome.get_result().user_properties.append(
        ("gpu_check", (backend_of(item), contract.args[0] if contract else None))
    )


def pytest_configure(config):
    path = config.getoption("record")
    if path and not hasattr(config, "workerinput"):
        config.pluginmanager.register(Recorder(path), "gpu-check-recorder")


class Recorder:
    def __init__(self, path: str) -> None:
        self.path = path

    def write(self, **line) -> None:
        with open(self.path, "a") as file:
            file.write(json.dumps(line) + "\n")

    def pytest_collection_finish(self, session):
        if session.config.option.collectonly:
            # A process whose tests are all skipped costs ten seconds for nothing.
            left = (item for item in session.items if not item.get_closest_marker("skip"))
            counts = Counter((str(item.path), backend_of(item)) for item in left)
            for (path, backend), tests in counts.items():
                self.write(file=path, backend=backend, tests=tests)

    def pytest_runtest_logstart(self, nodeid):
        self.write(test=nodeid, outcome="unfinished")

    def pytest_runtest_logreport(self, report):
        if report.when != "call" and report.outcome == "passed":
            return
        backend, contract = next((v for k, v in report.user_properties if k == "gpu_check"), ("none", None))
        crash = getattr(report.longrepr, "reprcrash", None)
        text = (crash.message if crash else report.longreprtext[-300:]) if report.failed else ""
        self.write(
            test=report.nodeid, outcome=report.outcome, backend=backend, contract=contract, text=text.strip()[:300]
        )
