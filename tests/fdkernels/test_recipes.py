"""docs/recipes.md: every call on the page against its trainer's formula in float64, and against recorded outputs."""

from __future__ import annotations

import contextlib
import os
import re
import subprocess
import sys
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

import fdkernels as fdk
from fdkernels import testing
from tests.device import is_slow, on_device
from tests.fdkernels.recipes import FAKE_GUIDANCE, GUIDANCE, PARTS, RECIPES, Recipe, inputs
from tests.fdkernels.test_peers import TOLERANCE, record

pytestmark = [pytest.mark.contract("peers"), pytest.mark.filterwarnings("ignore:normalize_weight over")]

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs/recipes.md").read_text(encoding="utf-8")
BLOCKS = dict(re.findall(r"^```python (\S+)\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL))
HERE = [name for name in RECIPES if name != "ranks"]  # recipes that run in one process


def test_each_block_has_a_formula_and_each_formula_a_block():
    fences = re.findall(r"^```(.*)$", PAGE, re.MULTILINE)
    assert len(fences) == 2 * len(BLOCKS), "a block without a name, or a name twice"
    assert sorted(BLOCKS) == sorted(RECIPES)


def run(block: str, backend: str, given: dict[str, Any], also: tuple[str, ...] = ()) -> tuple[Tensor, list[Tensor]]:
    """Run the block with these names on this backend, as a reader would; return loss and gradients."""
    students, others = leaves(given, also)
    names = {**given, "student": students[0], "students": students, **others}
    functions = {
        name: partial(on_device(getattr(fdk, name)), backend=backend)
        for name in ("fused_fdiv_loss", "fdiv_weight", "score_implicit_loss")
    }
    names |= {"torch": torch, "fdk": SimpleNamespace(**{**vars(fdk), **functions})}
    exec(block, names)
    return names["loss"].detach(), list(torch.autograd.grad(names["loss"], [*students, *others.values()]))


def leaves(given: dict[str, Any], also: tuple[str, ...]) -> tuple[list[Tensor], dict[str, Tensor]]:
    """Copies of the students, and of other inputs, that get a gradient."""
    fresh = [v.detach().clone().requires_grad_() for v in (*as_list(given), *(given[name] for name in also))]
    count = len(fresh) - len(also)
    return fresh[:count], dict(zip(also, fresh[count:], strict=True))


def as_list(given: dict[str, Any]) -> list[Tensor]:
    return given["students"] if given.get("student") is None else [given["student"]]


def expected(recipe: Recipe, given: dict[str, Any]) -> tuple[Tensor, list[Tensor]]:
    """Loss and gradients of the formula in float64, from the same, already rounded inputs."""

    def wide(v: Any) -> Any:
        if isinstance(v, list):
            return [wide(entry) for entry in v]
        return v.double() if isinstance(v, Tensor) and v.is_floating_point() else v

    names = {name: wide(v) for name, v in given.items()}
    students, others = leaves(names, recipe.also)
    loss = recipe.formula(SimpleNamespace(**{**names, "student": students[0], "students": students, **others}))
    return loss.detach(), list(torch.autograd.grad(loss, [*students, *others.values()]))


def made(name: str, dtype: torch.dtype) -> dict[str, Any]:
    given = inputs(RECIPES[name], dtype)
    return {**given, "student": None} if name == "cosmos-ragged" else given


def bound_of(block: str, given: dict[str, Any], grad: Tensor) -> Tensor | None:
    """The error that guidance may add to each element (`testing.guidance_bound`)."""
    if "teacher_uncond" not in block:
        return None
    v = {name: given[name].double() for name in ("teacher", "teacher_uncond", "fake", "fake_uncond")}
    tau = v["teacher_uncond"] + GUIDANCE * (v["teacher"] - v["teacher_uncond"])
    fake = v["fake"]
    if "fake_uncond" in block:
        fake = v["fake_uncond"] + FAKE_GUIDANCE * (v["fake"] - v["fake_uncond"])
    slope = grad / (fake - tau)
    epsilon = 2.0**-53 if given["student"].dtype == torch.float64 else 2.0**-24
    bound = testing.guidance_bound(fake, v["teacher"], v["teacher_uncond"], GUIDANCE, slope, epsilon=epsilon)
    if "fake_uncond" in block:
        bound += testing.guidance_bound(tau, v["fake"], v["fake_uncond"], FAKE_GUIDANCE, slope, epsilon=epsilon)
    return bound


def hold(
    name: str, given: dict[str, Any], found: tuple[Tensor, list[Tensor]], want: tuple[Tensor, list[Tensor]]
) -> None:
    """Compare within the published tolerances, or within the difference that the page states."""
    recipe, normalized = RECIPES[name], "normalizer=" in BLOCKS[name]
    (loss, grads), (wanted_loss, wanted) = found, want
    for actual, exact in zip(grads, wanted, strict=True):
        if recipe.differs:
            assert testing.relative_l2(actual, exact) < recipe.differs
        else:
            bound = bound_of(BLOCKS[name], given, exact)
            testing.assert_gradient(actual, exact, normalized=normalized, bound=bound)
    if not recipe.value:
        return
    # The loss is quadratic in the weight.
    normalizer = 2 * testing.NORMALIZED_RELATIVE_L2 if normalized else 0.0
    tolerance = max(testing.LOSS_RELATIVE[loss.dtype], normalizer, recipe.differs)
    torch.testing.assert_close(loss.double(), wanted_loss, rtol=tolerance, atol=0.0)


@pytest.mark.parametrize("name", HERE)
def test_the_call_is_the_formula(backend, name):
    for dtype in (torch.float32,) if is_slow(backend) or backend == "triton" else (torch.float32, torch.float64):
        want = expected(RECIPES[name], made(name, dtype))
        given = made(name, dtype)  # a call updates its normalizer
        hold(name, given, run(BLOCKS[name], backend, given, RECIPES[name].also), want)


@pytest.mark.cpu_only("gloo")
def test_ranks(tmp_path):
    """Two ranks have uneven parts of a batch. The mean over the ranks, as DDP takes it, is the whole batch's result."""
    command = [sys.executable, "-m", "tests.fdkernels.recipes_rank", str(tmp_path)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
    ranks = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=240)
    assert ranks.returncode == 0, ranks.stdout + ranks.stderr
    found = [torch.load(tmp_path / f"{rank}.pt") for rank in range(len(PARTS))]
    for backend in ("reference", "native"):
        loss = torch.stack([rank[backend][0] for rank in found]).mean()
        grad = torch.cat([rank[backend][1][0] for rank in found]) / len(PARTS)
        given = made("ranks", torch.float64)
        hold("ranks", given, (loss, [grad]), expected(RECIPES["ranks"], given))


NANS = [name for name, block in BLOCKS.items() if 'nonfinite="zero"' in block]


@pytest.mark.parametrize("name", NANS)
@pytest.mark.backends("reference", "native")
def test_a_nan_of_the_teacher_drops_what_it_drops_there(backend, name):
    given = made(name, torch.float64)
    given["gradient" if name == "cosmos-gradient" else "teacher"][0, 1, 1, 0, 0] = torch.nan
    loss, (grad,) = run(BLOCKS[name], backend, given)
    wanted_loss, (wanted,) = expected(RECIPES[name], given)
    assert wanted.isfinite().all() and (wanted[0, 1] == 0).all() and bool(wanted.any()) != (name == "fastvideo")
    torch.testing.assert_close(grad, wanted, rtol=1e-9, atol=0.0)
    if RECIPES[name].value:
        torch.testing.assert_close(loss, wanted_loss, rtol=1e-9, atol=0.0)


@pytest.mark.backends("reference", "native")
def test_where_nan_to_num_differs(backend):
    """The three cases of the page: the gradient of the first sample, in the trainer and here."""

    def first(name: str, of: str, element: Any, value: Any) -> tuple[Tensor, Tensor]:
        given = made(name, torch.float64)
        given[of][element] = value(given) if callable(value) else value
        return expected(RECIPES[name], given)[1][0][0], run(BLOCKS[name], backend, given)[1][0][0]

    theirs, ours = first("dmd2-pixels", "fake", (0, 1, 1, 0, 0), torch.nan)
    assert (theirs == 0).sum() == 1 and not ours.any()
    theirs, ours = first("dmd2-pixels", "teacher", 0, lambda given: given["student"][0])
    assert theirs.abs().min() > 1e300 and not ours.any()
    theirs, ours = first("self-forcing", "teacher", (0, 4, 1, 0, 0), torch.nan)
    assert not theirs.any() and ours[:2].all() and not ours[2:].any()


# Slips of a writer, as pattern and wrong text. Each changes the gradient by more than any tolerance.
SLIPS = {
    r"eps=0\.0": "eps=1e-6",
    r"scale=fdk\.DmdScale\(kept_only=True\)": "scale=None",
    r"floor=(?!0\.0)[\d.e-]+": "floor=0.0",
    r"alpha=sid_alpha": "alpha=1.0",
    r'over=("batch"|frames_per_block)': 'over="sample"',
    r"kept_only=True": "kept_only=False",
    r"1 \+ w": "w",
    r"1 \+ fake_w": "fake_w",
    r"guidance_scale=guidance_scale": "guidance_scale=1 + guidance_scale",
    r"\bmask=(mask\[.*?\]|kept\[.*?\]|chunk_mask != 0|mask)": "mask=None",
    r"\b2( / len\(student\))? \*": "1 *",
    r" / len\(student\)": " / 1",
    r"-gradient": "gradient",
    r"count=kept": "count=None",
    r"losses\.mean\(\)": "losses.sum()",
    r"alpha \* sigma": "sigma",
    r"sigma=1\.0": "sigma=0.5",
    r"weight=h\b": "weight=h[:1]",
    r"normalizer=normalizer": "normalizer=None",
    r"c=-sin": "c=-cos",
    r"part\(slice\(0, 1\), None\)": 'part(slice(0, 1), "dmd")',
}


@pytest.mark.backends("reference")
def test_slips_are_seen(backend):
    seen = set()
    for name in HERE:
        wanted = expected(RECIPES[name], made(name, torch.float64))[1]
        for slip, wrong in SLIPS.items():
            block, count = re.subn(slip, wrong, BLOCKS[name])
            if count:
                with contextlib.suppress(ValueError, TypeError):
                    grads = run(block, backend, made(name, torch.float64), RECIPES[name].also)[1]
                    assert max(map(testing.relative_l2, grads, wanted)) > 1e-7, (name, slip)
                seen.add(slip)
    assert seen == set(SLIPS)


# The page's names for fields of the records (tests/data/README.md).
RECORDS = {
    "fastgen_vsd_image": ("fastgen-weight", {"h": "weight"}),
    "fastgen_vsd_video": ("fastgen-weight", {"h": "weight"}),
    "self_forcing_dmd": ("self-forcing", {"teacher": "teacher_cond", "w": "guidance_w"}),
    "self_forcing_dmd_masked": ("self-forcing", {"teacher": "teacher_cond", "w": "guidance_w"}),
    "dmd2_pixel": ("dmd2-pixels", {}),
    "dmd2_latent_epsilon": ("dmd2-latents", {}),
}


def recorded(name: str, dtype: torch.dtype) -> tuple[str, dict[str, Any], dict[str, Tensor]]:
    """(block, its inputs, the record)"""
    block, renamed = RECORDS[name]
    r = record(f"{name}_{'bf16' if dtype == torch.bfloat16 else 'fp32'}")
    image = {k: v.to(dtype) if v.shape == r["student"].shape and v.is_floating_point() else v for k, v in r.items()}
    given = {"mask": None, "teacher_uncond": None, "guidance_scale": 1.0, **image}
    given |= {ours: image[theirs] for ours, theirs in renamed.items()}
    return block, {**given, "w": float(given.get("w", 0.0))}, r


@pytest.mark.parametrize("name", RECORDS)
def test_records(backend, name):
    block, given, r = recorded(name, torch.float32)
    loss, (grad,) = run(BLOCKS[block], backend, given)
    assert abs(loss.item() / r["loss"].item() - 1) < TOLERANCE
    assert testing.relative_l2(grad, r["grad"]) < TOLERANCE


@pytest.mark.backends("reference", "native")
def test_the_pages_errors_of_bf16(backend):
    rows = re.findall(r"^\| `(\w+)_bf16` \| ([\d.]+) % \| ([\d.]+) % \|$", PAGE, re.MULTILINE)
    assert {name for name, *_ in rows} == {name for name in RECORDS if not name.startswith("dmd2")}
    for name, ours, theirs in rows:
        block, given, r = recorded(name, torch.bfloat16)
        _, (grad,) = run(BLOCKS[block], backend, given)
        exact = expected(RECIPES[block], given)[1][0]
        figures = [100 * testing.relative_l2(v, exact) for v in (grad, r["grad"])]
        assert [f"{figure:.2f}" for figure in figures] == [ours, theirs], name
