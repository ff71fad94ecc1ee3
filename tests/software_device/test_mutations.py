"""Faults planted in the library's own sources: one of them here, all in `make software-device`."""

import subprocess
import sys

import pytest

from tests.software_device import build
from tests.software_device.mutations import MUTATIONS, mutated


def test_a_fault_is_caught():
    what = "the grid's wait acquires nothing"
    number = [mutation.what for mutation in MUTATIONS].index(what)
    command = [sys.executable, "-m", "tests.software_device.mutations", str(number)]
    result = subprocess.run(command, capture_output=True, text=True, timeout=600, cwd=build.ROOT)
    assert result.returncode == 0 and "1 of 1 caught" in result.stdout, result.stdout + result.stderr
    assert result.stdout.startswith(what)


@pytest.mark.parametrize("mutation", MUTATIONS, ids=lambda mutation: mutation.what)
def test_every_fault_can_be_planted(mutation, tmp_path):
    changed = mutated(mutation, tmp_path) / mutation.file
    assert changed.read_text() != (build.ROOT / "csrc" / mutation.file).read_text()


def test_every_fault_is_in_the_docs():
    text = (build.ROOT / "docs" / "cuda.md").read_text()
    assert [mutation.what for mutation in MUTATIONS if f"| {mutation.what} |" not in text] == []
