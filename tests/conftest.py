"""Backends as a parameter of every contract test, and the table of what was shown on which."""

from __future__ import annotations

import os

# Before Triton is imported by anything: it decides then whether kernels are interpreted.
os.environ.setdefault("TRITON_INTERPRET", "1")

import hypothesis
import pytest
import torch

from fdkernels.fdiv.triton_plan import Limits
from tests.contracts import BACKENDS, ContractTable

INTERPRETED = Limits(
    whole_elements=128, whole_elements_general=128, weighed=512, busy_programs=12,
    tiles=(131_072, 16_384, 4_096, 1_024, 256, 64), most_programs=16, most_tiles=2,
)  # fmt: skip

hypothesis.settings.register_profile("ci", derandomize=True, deadline=None, max_examples=40)
hypothesis.settings.register_profile("search", deadline=None, max_examples=1000)
hypothesis.settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "ci"))


def _round_like_a_gpu():
    """Triton's interpreter cuts float32 off to bfloat16; compiled, the cast rounds to nearest even."""
    import numpy as np
    import triton.language as tl
    from triton.runtime.interpreter import InterpreterBuilder, TensorHandle

    cast = InterpreterBuilder.cast_impl

    def rounding(self, src, dst_type):
        if src.dtype.scalar == tl.float32 and dst_type.scalar == tl.bfloat16:
            rounded = torch.from_numpy(np.array(src.data)).to(torch.bfloat16).view(torch.uint16)
            return TensorHandle(rounded.numpy(), dst_type.scalar)
        return cast(self, src, dst_type)

    InterpreterBuilder.cast_impl = rounding


def pytest_addoption(parser):
    parser.addoption("--backend", action="append", help="only these backends (then no cell is demanded of the table)")


def pytest_configure(config):
    config.addinivalue_line("markers", "contract(name): the contract of DESIGN that a test shows")
    config.addinivalue_line("markers", "backends(*names): the backends that can show it, where not every one can")
    config.pluginmanager.register(ContractTable(), "contract-table")
    if os.environ["TRITON_INTERPRET"] == "1":
        _round_like_a_gpu()
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
        names = [name for name in named if name in chosen]
        none = pytest.param("none", marks=pytest.mark.skip(f"asked for {chosen}, shown on {named}"))
        metafunc.parametrize("backend", names or [none], scope="session")


@pytest.fixture(autouse=True)
def _usable(request):
    """A backend that cannot run is a failure here, not a skip."""
    if "backend" in request.fixturenames:
        from fdkernels.backends import available

        backend = request.getfixturevalue("backend")
        if backend == "none":
            return
        reason = available("cpu")[backend]
        if reason is not None:
            pytest.fail(f"backend {backend} is unavailable: {reason}")


@pytest.fixture(autouse=True)
def _small_programs(monkeypatch):
    """Interpreted, a program costs milliseconds: few of them, but several a sample, with tails and loops over tiles."""
    if os.environ["TRITON_INTERPRET"] == "1":
        from fdkernels.fdiv import triton_plan

        monkeypatch.setattr(triton_plan, "LIMITS", INTERPRETED)
