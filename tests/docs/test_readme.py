"""The README's code runs, and prints what it says; its numbers are those of the pages that measure them."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

import fdkernels as fdk
from fdkernels import testing

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCKS = dict(re.findall(r"^```\w+ (\S+)\n(.*?)^```$", TEXT, re.MULTILINE | re.DOTALL))


def page(name: str) -> str:
    return (ROOT / "docs" / name).read_text(encoding="utf-8")


def cells(text: str, first: str) -> list[list[str]]:
    """The cells of the table rows that begin with `first`, without the first cell."""
    return [line.strip("| \n").split(" | ")[1:] for line in text.splitlines() if line.startswith(f"| {first} |")]


def test_the_example_prints_what_the_readme_shows() -> None:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    run = subprocess.run([sys.executable, "-c", BLOCKS["example"]], capture_output=True, text=True, env=environment)
    assert (run.returncode, run.stderr) == (0, "")
    assert run.stdout == BLOCKS["output"]
    assert len(BLOCKS["example"].splitlines()) <= 35


def inputs() -> dict[str, Any]:
    torch.manual_seed(0)
    x, noise, eps_teacher, eps_fake, tau, f = torch.randn(6, 16, 3, 8, 8).unbind()
    sigma = torch.rand(16, 1, 1, 1) * 0.8 + 0.1
    alpha = (1 - sigma**2).sqrt()
    return {
        "x": x, "x_t": alpha * x + sigma * noise, "eps_teacher": eps_teacher, "eps_fake": eps_fake, "tau": tau, "f": f,
        "alpha": alpha, "sigma": sigma, "logits": torch.randn(16, 2), "t": torch.rand(16), "gan_weight": 0.1,
    }  # fmt: skip


def run(block: str, **also: Any) -> tuple[Tensor, list[Tensor]]:
    names = {"torch": torch, "F": F, "fdk": fdk, **inputs(), **also}
    leaves = [names[name].requires_grad_() for name in ("x", "logits")]
    exec(BLOCKS[block], names)
    grads = torch.autograd.grad(names["loss"], leaves, allow_unused=True)
    return names["loss"].detach(), [grad for grad in grads if grad is not None]


@pytest.mark.parametrize("name", ["dmd2", "fastgen"])
def test_the_code_in_place_of_which_a_call_stands_computes_the_same(name: str) -> None:
    (made,) = re.findall(r"# loss_fn = (.+)$", BLOCKS["fastgen-here"], re.MULTILINE)
    here, there = {}, {}
    if name == "fastgen":
        here["loss_fn"], there["bins"] = eval(made, {"fdk": fdk, "gan_weight": 0.1}), torch.ones(10)
    loss, grads = run(f"{name}-here", **here)
    wanted_loss, wanted = run(f"{name}-theirs", **there)
    assert len(grads) == len(wanted) == (2 if name == "fastgen" else 1)
    assert abs(loss.item() / wanted_loss.item() - 1) < 1e-5
    assert all(testing.relative_l2(a, b) < 1e-5 for a, b in zip(grads, wanted, strict=True))


def test_ops_bytes_and_errors_are_those_of_the_pages() -> None:
    (ops,), (moved,), (errors,) = (
        cells(TEXT, first) for first in ("ops", "bytes moved per element", "error of the gradient, to float64 ¹")
    )
    chains = {name: row for name in ("fastgen", "dmd2_pixel", "dmd2_latent", "self_forcing")
              for row in cells(page("kernels.md"), name) if row[0] == "bf16"}  # fmt: skip
    assert re.findall(r"\d+", ops[0].replace("DMD2", "")) == [chains["dmd2_pixel"][1], chains["fastgen"][1]]
    assert min(int(row[1]) for row in chains.values()) == 13 and max(int(row[1]) for row in chains.values()) == 52
    launches = {row[2].split(" (")[0] for row in table(page("kernels.md"), "| shape | dtype | schedule (programs")}
    cuda = {row[5] for row in table(page("cuda.md"), "| shape | dtype | schedule | blocks")}
    assert (launches, cuda, ops[1]) == ({"1 + 1", "2 + 1"}, {"1 + 1"}, "2; Triton 3 for large samples")
    theirs = sorted(int(row[2]) for row in chains.values())
    ours = [int(row[i]) for row in chains.values() for i in (3, 4)]
    assert [re.findall(r"\d+", v.replace("DMD2", "")) for v in moved[:2]] == [
        [str(theirs[0]), str(theirs[-1])], [str(min(ours)), str(max(ours))]
    ]  # fmt: skip
    found = re.findall(r"^\| `(\w+)_bf16` \| ([\d.]+) % \| ([\d.]+) % \|$", page("recipes.md"), re.MULTILINE)
    here, theirs = (sorted((row[i], row[0]) for row in found) for i in (1, 2))
    assert errors[1] == f"{here[0][0]} to {here[-1][0]} %"
    assert errors[0] == f"{theirs[0][0]} % (Self-Forcing) to {theirs[-1][0]} % (FastGen)"
    assert theirs[0][1].startswith("self_forcing") and theirs[-1][1].startswith("fastgen")
    (step,) = cells(page("benchmarks.md"), "`fastgen_student`")[-1:]
    said = re.search(r"is (\d+) ops and (\d+) bytes per element; here it is (\d+) and\s(\d+)", TEXT)
    assert said and [said[4], said[3], said[2], said[1]] == [step[0], step[1], step[3], step[4]]


def table(text: str, head: str) -> list[list[str]]:
    """The rows of the table whose head begins so, with two cells of the first column left out."""
    lines = text[text.index(head) :].split("\n\n")[0].splitlines()[2:]
    return [line.strip("| ").split(" | ")[1:] for line in lines if line.startswith("| ")]
