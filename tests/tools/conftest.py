"""Stages of `make gpu-check`."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from tools.gpu_check.stage import Options, Stage


@pytest.fixture
def stage(tmp_path: Path) -> Callable[..., Stage]:
    def make(name: str = "test", budget: float = 60.0, tests: Sequence[str] = (), device: str = "cpu") -> Stage:
        return Stage(name, Options(tmp_path, device, budget, sys.executable, tuple(tests), {"commit": "c0ffee"}))

    return make
