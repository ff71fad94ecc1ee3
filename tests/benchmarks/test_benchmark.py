"""The benchmark times what it says, refuses wrong variants, and prints a row for each variant."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from benchmarks import fdiv
from benchmarks.timing import summarize, time_interleaved

SHAPE = (4, 3, 16, 16)


def test_median_and_its_interval() -> None:
    timing = summarize([float(i) for i in range(100, 0, -1)], calls=3)
    assert (timing.median, timing.rounds, timing.calls) == (50.5, 100, 3)
    assert timing.low < 50 < 51 < timing.high
    assert timing.high - timing.low < 25
    assert (summarize([2.0], 1).low, summarize([2.0], 1).high) == (2.0, 2.0)


def test_variants_interleave_and_rotate_their_inputs() -> None:
    calls: list[tuple[str, int]] = []
    variants = {name: (lambda i, name=name: calls.append((name, i))) for name in "ab"}
    time_interleaved(variants, rounds=4, window=0.0)
    timed = calls[8:]  # three warm-up calls and one to size the window, for each
    assert [name for name, _ in timed] == list("abbaabba")
    assert [i for name, i in timed if name == "a"] == [0, 1, 2, 3]


@pytest.mark.parametrize("dtype", fdiv.DTYPES)
def test_every_variant_is_right_before_it_is_timed(dtype: str) -> None:
    inputs = fdiv.make_inputs(SHAPE, fdiv.DTYPES[dtype], seed=0)
    errors = fdiv.gradient_errors(fdiv.steps("reference", compiled=False), inputs, dtype)
    assert errors["fdkernels reference"] < errors["eager FastGen"]


def test_a_wrong_variant_is_refused() -> None:
    inputs = fdiv.make_inputs(SHAPE, torch.float32, seed=0)
    right = fdiv.steps("reference", compiled=False)["eager FastGen"]

    def wrong() -> fdiv.Step:
        def step(v: fdiv.Inputs) -> tuple[torch.Tensor, torch.Tensor]:
            loss, gradient = right()(v)
            return loss, gradient * 1.001

        return step

    with pytest.raises(RuntimeError, match="wrong: gradient is off by 0.001"):
        fdiv.gradient_errors({"wrong": wrong}, inputs, "fp32")


def test_command_line_prints_and_writes_rows(tmp_path: Path) -> None:
    file = tmp_path / "rows.json"
    settings = "--shapes 4x3x16x16 --dtypes fp32 --rounds 3 --threads 1 --no-compile"
    run = subprocess.run(
        [sys.executable, "-m", "benchmarks", *settings.split(), "--json", str(file)],
        capture_output=True,
        text=True,
        cwd=Path(__file__).parents[2],
    )
    assert run.returncode == 0, run.stderr
    written = json.loads(file.read_text())
    assert written["setting"]["threads"] == 1
    variants = [row["variant"] for row in written["rows"]]
    assert variants[1:] == ["eager FastGen", "streaming limit"] and variants[0].startswith("fdkernels ")
    assert all(0 < row["low_ms"] <= row["median_ms"] <= row["high_ms"] for row in written["rows"])
    assert all(variant in run.stdout for variant in variants)


def test_command_line_refuses_a_bad_shape() -> None:
    run = subprocess.run(
        [sys.executable, "-m", "benchmarks", "--shapes", "8x0"],
        capture_output=True, text=True, cwd=Path(__file__).parents[2],
    )  # fmt: skip
    assert run.returncode == 2
    assert "expected a shape like 8x3x512x512, got '8x0'" in run.stderr
