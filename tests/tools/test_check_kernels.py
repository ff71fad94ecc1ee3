"""`make check-kernels` on this machine: its claims about Triton's kernels hold, and a broken kernel breaks a claim."""

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from tools.machine_code.claims import Expected, failures
from tools.machine_code.compiled import Compiled

ROOT = Path(__file__).parents[2]
CAUGHT_BY = {
    "misaligned": ["loads of 128 bits", "stores of 128 bits", "stores below 32 bits"],
    "misaligned student": ["loads of 128 bits"],
    "misaligned fake": ["loads of 128 bits"],
    "one warp": ["spills"],
    "four warps": ["warps resident"],
    "implicit, one warp": ["spills"],
    "float atomic": ["float atomics"],
    "two tickets": ["2 integer atomics"],
    "no ticket": ["0 integer atomics"],
    "shared memory": ["bytes of shared memory"],
}


def compiled_in_a_process_of_its_own(module: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Runs a module where Triton compiles; in the tests' own process it interprets."""
    return subprocess.run(
        [sys.executable, "-m", module, *arguments],
        cwd=ROOT,
        env={**os.environ, "TRITON_INTERPRET": "0", "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=600,
    )


def test_every_kernel_is_as_claimed():
    """On one target; `make check-kernels` takes another too, and with ALL=1 all."""
    run = compiled_in_a_process_of_its_own("tools.machine_code", "sm_90", "--only", "triton")
    assert run.returncode == 0, run.stdout + run.stderr[-2000:]
    for kernel in (
        "fdiv_fwd_kernel", "fdiv_reduce_kernel", "fdiv_apply_kernel", "scale_kernel", "fdiv_weight_kernel",
        "implicit_fwd_kernel", "implicit_reduce_kernel", "implicit_apply_kernel",
    ):  # fmt: skip
        assert kernel in run.stdout
    assert run.stdout.rstrip().endswith("as claimed, 0 not")


@pytest.mark.parametrize("target", ("sm_90", "gfx942"))
def test_every_broken_kernel_is_caught(target):
    run = compiled_in_a_process_of_its_own("tools.machine_code.broken", target)
    assert run.returncode == 0, run.stderr[-2000:]
    found = json.loads(run.stdout.splitlines()[-1])
    assert found.keys() == CAUGHT_BY.keys()
    for broken, claims in CAUGHT_BY.items():
        if target == "gfx942" and broken in ("misaligned student", "misaligned fake"):
            continue  # with warps of 64 lanes a thread's share of that tile is 8 bytes: nothing is claimed
        if target == "gfx942" and broken == "implicit, one warp":
            claims = ["warps resident"]  # its registers hold what spills on NVIDIA's
        assert all(any(claim in failure for failure in found[broken]) for claim in claims), (broken, found[broken])


def test_an_unknown_target_is_an_error():
    run = compiled_in_a_process_of_its_own("tools.machine_code", "sm_70")
    assert run.returncode == 2 and "sm_70" in run.stderr and "sm_90" in run.stderr


GOOD = Compiled("fdiv_fwd_kernel", 80, 24, 1024, 0, 6, 2, 0, 1, 0, "")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"resident": 8}, "8 warps resident, 12 wanted"),
        ({"spilled": 24}, "spills 24 bytes"),
        ({"shared": 10_000}, "10000 bytes of shared memory"),
        ({"wide_loads": 5}, "5 loads of 128 bits, 6 wanted"),
        ({"wide_stores": 1}, "1 stores of 128 bits, 2 wanted"),
        ({"narrow_stores": 1}, "1 stores below 32 bits"),
        ({"integer_atomics": 0}, "0 integer atomics, 1 wanted"),
        ({"float_atomics": 1}, "1 float atomics"),
        ({"narrow_numbers": ("eps",)}, "passes eps as float32"),
    ],
)
def test_each_claim_can_fail(change, words):
    assert failures(GOOD, Expected(6, 2)) == []
    (failure,) = failures(replace(GOOD, **change), Expected(6, 2))
    assert words in failure


def test_exit_code_of_a_failing_claim(monkeypatch, capsys):
    """The table names the claim, and the command fails."""
    from tools.machine_code import __main__ as command

    monkeypatch.setattr(command, "compile_for", lambda launch, target: replace(GOOD, float_atomics=1))
    monkeypatch.setattr(command, "launches", lambda: command_cases())
    monkeypatch.setattr(sys, "argv", ["machine_code", "sm_90", "--only", "triton"])
    assert command.main() == 1
    assert "float atomics" in capsys.readouterr().out


def command_cases():
    from tools.machine_code.cases import launches

    return launches()[:1]
