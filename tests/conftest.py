"""Backends as a parameter of every contract test, and the table of what was shown on which."""

from __future__ import annotations

import os

# Before Triton is imported by anything: it decides then whether kernels are interpreted.
os.environ.setdefault("TRITON_INTERPRET", "1")

import hypothesis
import pytest
import torch

from tests.contracts import BACKENDS, ContractTable

hypothesis.settings.register_profile("ci", derandomize=True, deadline=None, max_examples=40)
hypothesis.settings.register_profile("search", deadline=None, max_examples=1000)
hypothesis.settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "ci"))


def pytest_addoption(parser):
    parser.addoption("--backend", action="append", help="only these backends (then no cell is demanded of the table)")


def pytest_configure(config):
    config.addinivalue_line("markers", "contract(name): the contract of DESIGN that a test shows")
    config.addinivalue_line("markers", "backends(*names): the backends that can show it, where not every one can")
    config.pluginmanager.register(ContractTable(), "contract-table")
    if "PYTEST_XDIST_WORKER" in os.environ:
        # Workers share the cores.
        workers = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
        torch.set_num_threads(max(1, torch.get_num_threads() // workers))


def pytest_generate_tests(metafunc):
    if "backend" in metafunc.fixturenames:
        # What only some backends can show names them: @pytest.mark.backends("native").
        mark = metafunc.definition.get_closest_marker("backends")
        named = mark.args if mark else BACKENDS
        chosen = metafunc.config.getoption("backend") or BACKENDS
        metafunc.parametrize("backend", [name for name in named if name in chosen], scope="session")


@pytest.fixture(autouse=True)
def _usable(request):
    """A backend that cannot run is a failure here, not a skip."""
    if "backend" in request.fixturenames:
        from fdkernels.backends import available

        backend = request.getfixturevalue("backend")
        reason = available("cpu")[backend]
        if reason is not None:
            pytest.fail(f"backend {backend} is unavailable: {reason}")
