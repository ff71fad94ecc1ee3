"""A trainer for each test module: a stand-in of our own, and its checkout where FDKERNELS_<TRAINER> names one."""

from __future__ import annotations

import importlib
import os
import sys
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple
from unittest import mock

import pytest

from fdkernels.integrations._replacing import Integration
from tests.integrations import plugin  # noqa: F401 (a checkout may import absent packages)


class Trainer(NamedTuple):
    integration: Integration
    root: Path
    is_stand_in: bool

    def module(self, name: str):
        return importlib.import_module(name)

    def patched(self):
        return self.integration.patched(accept_changed=self.is_stand_in)


def stand_in(name: str) -> Path:
    return Path(__file__).parent / "stand_ins" / name.removesuffix("_step")


def checkout(name: str) -> Path | None:
    folder = os.environ.get(f"FDKERNELS_{name.removesuffix('_step').upper()}")
    return Path(folder).resolve() if folder else None


@contextmanager
def importable(name: str, root: Path, is_stand_in: bool):
    """The trainer of this folder, importable, and forgotten afterwards."""
    before = set(sys.modules)
    sys.path.insert(0, str(root))
    importlib.invalidate_caches()
    trainer = Trainer(importlib.import_module(f"fdkernels.integrations.{name}").INTEGRATION, root, is_stand_in)
    with mock.patch("torch.cuda.current_device", return_value=0):  # which some ask for when they are imported
        for replacement in trainer.integration.replacements:
            importlib.import_module(replacement.module)
    try:
        yield trainer
    finally:
        trainer.integration.undo()
        sys.path.remove(str(root))
        packages = {each.stem for each in root.iterdir()} - {"tests"}
        packages.add("loguru")  # FastGen removes its first handler, which is there once
        for module in set(sys.modules) - before:
            if module.split(".")[0] in packages:
                del sys.modules[module]


def pytest_generate_tests(metafunc):
    if "trainer" in metafunc.fixturenames:
        found = ["stand-in", "checkout"] if checkout(metafunc.module.TRAINER) else ["stand-in"]
        metafunc.parametrize("trainer", found, indirect=True, scope="module")


@pytest.fixture(scope="module")
def trainer(request):
    name, is_stand_in = request.module.TRAINER, request.param == "stand-in"
    with importable(name, stand_in(name) if is_stand_in else checkout(name), is_stand_in) as found:
        yield found
