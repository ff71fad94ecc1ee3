"""Every example runs, alone and in two processes, and its students come closer to the data."""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
EXAMPLES = sorted((ROOT / "examples").glob("*.py"))


def run(*command: str | Path) -> str:
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, *command], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=600
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def figures(name: str, output: str) -> list[float]:
    return [float(found) for found in re.findall(rf"{name}[ =](-?[\d.e-]+)", output)]


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_it_is_short(path):
    module = ast.parse(path.read_text())
    docstring = ast.get_docstring(module, clean=False)
    lines = len(path.read_text().splitlines()) - len(docstring.splitlines())
    assert lines < 90
    assert f"examples/{path.name}" in docstring and f"examples/{path.name}" in (ROOT / "README.md").read_text()


def test_plain(tmp_path):
    saved = tmp_path / "checkpoint.pt"
    output = run("examples/plain.py", "--steps", "300", "--save", saved)
    first, *_, last = figures("energy distance", output)
    assert last < 0.3 * first, output
    import torch

    state = torch.load(saved)
    assert set(state) == {"student", "loss"} and not (state["loss"]["normalizer.mean"] == 1).all()


def test_diffusers():
    output = run("examples/diffusers_dmd.py", "--steps", "2", "--compiler", "aot_eager")
    patterns, sizes = figures("pattern", output), figures("effective_sample_size", output)
    assert len(patterns) == len(sizes) == 2
    assert all(0 <= pattern < 1 for pattern in patterns) and all(0 < size <= 1 for size in sizes)


@pytest.mark.parametrize("processes", [1, 2])
def test_accelerate(processes, tmp_path):
    of_two = ("--cpu", "--num_processes", "2", "--main_process_port", "0")
    launch = ("-m", "accelerate.commands.launch", *of_two) if processes == 2 else ()
    output = run(*launch, "examples/accelerate_dmd.py", "--steps", "400", "--save", tmp_path)
    distances = figures("distance", output)
    assert len(distances) == 4, "one line every 100 steps, from one process"
    assert distances[-1] < 0.8 * distances[0], output
    assert (tmp_path / "custom_checkpoint_0.pkl").exists()  # the normalizer's


def test_fsdp2(tmp_path):
    launch = ("-m", "torch.distributed.run", "--nproc-per-node", "2", "--standalone")
    output = run(*launch, "examples/fsdp2.py", "--steps", "400", "--save", tmp_path)
    distances = figures("distance", output)
    assert len(distances) == 4 and distances[-1] < 0.8 * distances[0], output
    assert len(list(tmp_path.glob("*.distcp"))) == 2  # a shard of each rank
