"""Baselines, eager and compiled: each is what its name says, and a wrong one is flagged as wrong, not as fast."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from benchmarks import comparisons, formulas, measure, variants
from benchmarks.formulas import FORMULAS
from benchmarks.measure import Options
from benchmarks.shapes import DTYPES
from benchmarks.variants import Variant
from tests.benchmarks.tiny import tiny

pytestmark = pytest.mark.filterwarnings("ignore:normalize_weight over")
FASTGEN = FORMULAS["fastgen"]
MODES = list(variants.MODES.values())
COMPILED = list(variants.COMPILE_MODES)


@pytest.fixture
def compiling(monkeypatch, fresh_compiler):
    """torch.compile without its slow half: what was asked of it, by Dynamo's graphs run as they are."""
    asked, whole = [], torch.compile

    def compile(function, **options):
        asked.append((function, options))
        return whole(function, backend="eager", dynamic=options["dynamic"])

    monkeypatch.setattr(torch, "compile", compile)
    return asked


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", FORMULAS)
def test_ours_is_the_peers_formula(name, dtype):
    """Both against float64, which shares code with neither, and ours no farther from it."""
    case = tiny(name, dtype)
    inputs = formulas.make_inputs(case, "cpu", seed=0)
    exact = FORMULAS[name].exact_result(inputs)
    assert exact.abs().max() > 0
    ours, peer = variants.variants(FORMULAS[name], ["reference"], ["eager"], "cpu")
    errors = {each.name: variants.relative_error(each.make()(inputs), exact) for each in (ours, peer)}
    assert errors[ours.name] <= 1.1 * errors[peer.name]
    for each in (ours, peer):
        assert variants.wrong_because(each, FORMULAS[name], case.dtype, errors[each.name], "cpu") is None


@pytest.mark.parametrize(
    ("name", "dtype", "upstream"),
    [("fastgen", "fp32", 1.0), ("fastgen_scaled", "bf16", 0.25), ("fastgen", "fp16", 32768.0)],
)
def test_the_upstream_of_a_step(name, dtype, upstream):
    """The exact gradient, ours and the peer's are all at it."""
    inputs = formulas.make_inputs(tiny(name, dtype), "cpu", seed=0)
    exact = upstream * FASTGEN.exact(inputs)
    assert torch.equal(FORMULAS[name].exact_result(inputs), exact)
    for each in variants.variants(FORMULAS[name], ["reference"], ["eager"], "cpu"):
        assert variants.relative_error(each.make()(inputs), exact) < 0.01


def scaled(chain, by=1.001):
    return lambda *inputs: chain(*inputs) * by


def unguided(student, cond, uncond, fake, w, mask):
    return formulas.baselines.self_forcing_chain(student, cond, uncond, fake, 0.99 * w, mask)


BROKEN = [
    ("fastgen", "fp32", scaled(FASTGEN.chain)),
    ("dmd2_pixel", "bf16", scaled(FORMULAS["dmd2_pixel"].chain)),  # hidden by bf16's rounding, not by float32's
    ("self_forcing", "bf16", unguided),
    ("weight", "fp32", scaled(FORMULAS["weight"].chain)),
]


@pytest.mark.parametrize(("name", "dtype", "chain"), BROKEN)
def test_a_broken_baseline_is_wrong_not_fast(name, dtype, chain, monkeypatch):
    monkeypatch.setattr(measure, "STREAMED", tiny("fastgen"))
    broken = dataclasses.replace(FORMULAS[name], chain=chain)
    options = Options("cpu", ["reference"], ["eager"], rounds=2)
    rows = [dataclasses.asdict(row) for row in measure.measure(broken, tiny(name, dtype), options).rows]
    ours, peer = rows
    assert not ours["wrong"] and peer["wrong"] and "is off by" in peer["wrong_because"]
    (comparison,) = comparisons.compared(rows)
    assert comparison["verdict"] == "wrong" and comparison["ratio"] is comparison["low"] is None


def test_a_variant_that_fails_is_skipped():
    def fails(*inputs):
        raise RuntimeError("no such kernel\nand more")

    broken = dataclasses.replace(FASTGEN, chain=fails)
    found = measure.measure(broken, tiny("fastgen"), Options("cpu", ["reference"], ["eager"], rounds=1))
    assert [row.variant for row in found.rows] == ["reference"]
    (skipped,) = found.skipped
    assert skipped.what.endswith("fastgen eager") and skipped.why == "RuntimeError: no such kernel"
    assert (skipped.kind, skipped.ours) == ("failed", False)
    broken = dataclasses.replace(FASTGEN, ours=fails)
    (skipped,) = measure.measure(broken, tiny("fastgen"), Options("cpu", ["reference"], [], rounds=1)).skipped
    assert (skipped.kind, skipped.ours) == ("failed", True)


# ---- how far off is wrong


def because(error, *, ours=False, mode="eager", dtype="bf16", eager=None, formula=FASTGEN):
    variant = Variant("", "native" if ours else None, None if ours else mode, lambda: None)
    return variants.wrong_because(variant, formula, dtype, error, "cpu", eager)


@pytest.mark.parametrize(("dtype", "ours", "peers"), [("fp32", 1e-5, 1e-4), ("bf16", 4e-3, 0.2), ("fp16", 1e-3, 0.2)])
def test_the_error_that_is_allowed(dtype, ours, peers):
    for mine, allowed in ((True, ours), (False, peers)):
        assert because(0.99 * allowed, ours=mine, dtype=dtype) is None
        assert because(1.01 * allowed, ours=mine, dtype=dtype).endswith(f"(allowed {allowed:g})")
        assert because(float("nan"), ours=mine, dtype=dtype) is not None


@pytest.mark.parametrize("mode", COMPILED)
def test_compiled_code_may_not_be_worse_than_eager(mode):
    assert because(0.1, mode=mode, eager=0.08) is None
    assert because(0.1, mode=mode, eager=0.04) == "gradient is off by 0.1 when compiled, by 0.04 in eager mode"
    # As near as ours has to be is near enough.
    assert because(3.9e-3, mode=mode, eager=1e-5) is None
    assert because(0.1, mode="eager", eager=0.04) is None
    assert because(0.1, mode=mode, eager=None) is None


@pytest.mark.parametrize("by", [1.1, 0.9])
def test_a_compiler_that_is_off_by_a_tenth_is_flagged(by, monkeypatch):
    """In bf16, where a peer's own formula may be off by as much, but at this case is not."""
    monkeypatch.setattr(torch, "compile", lambda chain, **_: scaled(chain, by))
    options = Options("cpu", ["reference"], ["eager", "compile default"], rounds=1)
    rows = measure.measure(FASTGEN, tiny("fastgen", "bf16"), options).rows
    assert [row.wrong for row in rows] == [False, False, True]
    assert "when compiled" in rows[2].wrong_because


# ---- compiled


def test_each_mode_is_asked_of_the_compiler(compiling):
    found = variants.variants(FASTGEN, ["reference"], MODES, "cpu")
    assert [each.name for each in found] == [
        "reference", "fastgen eager", "fastgen compile default", "fastgen compile max-autotune-no-cudagraphs",
    ]  # fmt: skip
    assert [each.compiled for each in found] == [False, False, True, True]
    for each in found:
        each.make()
    assert compiling == [
        (FASTGEN.chain, {"dynamic": False, "mode": None}),
        (FASTGEN.chain, {"dynamic": False, "mode": "max-autotune-no-cudagraphs"}),
    ]


@pytest.mark.parametrize("mode", COMPILED)
def test_it_is_what_was_compiled_that_is_called(mode, monkeypatch):
    calls = []

    def compile(chain, **_):
        return lambda *inputs: calls.append("compiled") or chain(*inputs)

    monkeypatch.setattr(torch, "compile", compile)
    _, compiled = variants.variants(FASTGEN, [], ["eager", mode], "cpu")
    step, inputs = compiled.make(), formulas.make_inputs(tiny("fastgen"), "cpu", 0)
    step(inputs)
    step(inputs)
    assert calls == ["compiled"] * 2


def test_graphs_are_those_of_a_case_alone(compiling):
    """What an earlier case has left is forgotten, or later ones would run code that was compiled for it."""
    options = Options("cpu", ["reference"], ["eager", "compile default"], rounds=1)
    for _ in range(2):
        found = measure.measure(FORMULAS["dmd2_pixel"], tiny("dmd2_pixel"), options)
        assert [row.graphs for row in found.rows] == [None, None, 1] and found.skipped == []
    assert torch._dynamo.config.recompile_limit == measure.RECOMPILE_LIMIT


def test_every_set_of_inputs_goes_through_compiled_code_before_it_is_timed():
    calls = []

    def make():
        return lambda v: calls.append(v) or v

    exact = torch.ones(2)
    for mode, seen in (("compile default", [1.0, 2.0, 3.0]), ("eager", [1.0])):
        calls.clear()
        data = [value * exact for value in (1.0, 2.0, 3.0)]
        found = measure.checked(Variant("", None, mode, make), data, exact)
        assert [v[0].item() for v in calls] == seen and found.error == 0.0


def test_code_that_is_compiled_again_while_it_is_timed_is_said(compiling, monkeypatch):
    whole = measure.cpu_timings

    def timings(formula, case, steps, data, options):
        other = formula.case("", (3, 3, 8, 8), "fp32")
        steps["dmd2 compile default"](formulas.make_inputs(other, "cpu", 0))
        return whole(formula, case, steps, data, options)

    monkeypatch.setattr(measure, "cpu_timings", timings)
    options = Options("cpu", ["reference"], ["compile default"], rounds=1)
    found = measure.measure(FORMULAS["dmd2_pixel"], tiny("dmd2_pixel"), options)
    (skipped,) = found.skipped
    assert "compiled again while they were timed" in skipped.why and "compile default" in skipped.what
    assert (skipped.kind, skipped.ours) == ("failed", False)
