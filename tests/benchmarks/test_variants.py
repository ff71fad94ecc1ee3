"""Baselines, eager and compiled: each is what its name says, and a wrong one is flagged as wrong, not as fast."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from benchmarks.cases import baselines, formulas, variants
from benchmarks.cases.formulas import FORMULAS
from benchmarks.cases.shapes import DTYPES
from benchmarks.cases.variants import Variant
from benchmarks.measure import rows as measuring
from benchmarks.measure.rows import Options, measure
from benchmarks.report import comparisons

pytestmark = pytest.mark.filterwarnings("ignore:normalize_weight over")
FASTGEN, PIXEL = FORMULAS["fastgen"], FORMULAS["dmd2_pixel"]


def measured(formula, *modes, dtype="fp32"):
    return measure(formula, formula.tiny(dtype), Options("cpu", ["reference"], modes, rounds=2))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", FORMULAS)
def test_ours_is_the_peers_formula(name, dtype):
    """Both are near the float64 result, which shares no code with them, and ours is no farther from it."""
    formula = FORMULAS[name]
    case = formula.tiny(dtype)
    inputs = formulas.make_inputs(case, "cpu", seed=0)
    exact = formula.exact_result(inputs)
    upstream = 32768.0 if case.dtype == "fp16" and not formula.forward else 1.0
    assert torch.equal(exact, upstream * {"fastgen_scaled": 0.25}.get(name, 1.0) * formula.exact(inputs))
    ours, peer = variants.variants(formula, ["reference"], ["eager"], "cpu")
    errors = {each.name: variants.relative_error(each.make()(formulas.copy_of(inputs)), exact) for each in (ours, peer)}
    assert exact.abs().max() > 0 and errors[ours.name] <= 1.1 * errors[peer.name]
    for each in (ours, peer):
        assert variants.wrong_because(each, formula, case.dtype, errors[each.name], "cpu") is None


def scaled(chain, by=1.001):
    return lambda *inputs: chain(*inputs) * by


def unguided(student, cond, uncond, fake, w, mask):
    return baselines.self_forcing_chain(student, cond, uncond, fake, 0.99 * w, mask)


@pytest.mark.parametrize(
    ("name", "dtype", "chain"),
    [
        ("fastgen", "fp32", scaled(FASTGEN.chain)),
        ("dmd2_pixel", "bf16", scaled(PIXEL.chain)),  # bf16's rounding hides this, float32's does not
        ("self_forcing", "bf16", unguided),
        ("weight", "fp32", scaled(FORMULAS["weight"].chain)),
    ],
)
def test_a_broken_baseline_is_wrong_not_fast(name, dtype, chain, monkeypatch):
    monkeypatch.setattr(measuring, "STREAMED", FASTGEN.tiny())
    found = measured(dataclasses.replace(FORMULAS[name], chain=chain), "eager", dtype=dtype)
    ours, peer = rows = [dataclasses.asdict(row) for row in found.rows]
    assert not ours["wrong"] and peer["wrong"] and "is off by" in peer["wrong_because"]
    (comparison,) = comparisons.compared(rows)
    assert comparison["verdict"] == "wrong" and comparison["ratio"] is comparison["low"] is None


@pytest.mark.parametrize(("which", "ours"), [("chain", False), ("ours", True)])
def test_a_variant_that_fails_is_skipped(which, ours):
    def fails(*inputs):
        raise RuntimeError("no such kernel\nand more")

    found = measured(dataclasses.replace(FASTGEN, **{which: fails}), "eager")
    assert [row.ours for row in found.rows] == [not ours]
    (skipped,) = found.skipped
    assert skipped.what.endswith("reference" if ours else "fastgen eager")
    assert (skipped.why, skipped.kind, skipped.ours) == ("RuntimeError: no such kernel", "failed", ours)


def because(error, backend=None, mode="eager", dtype="bf16", eager=None):
    return variants.wrong_because(Variant("", backend, mode, lambda: None), FASTGEN, dtype, error, "cpu", eager)


@pytest.mark.parametrize(("dtype", "ours", "peers"), [("fp32", 1e-5, 1e-4), ("bf16", 4e-3, 0.2), ("fp16", 1e-3, 0.2)])
def test_the_error_that_is_allowed(dtype, ours, peers):
    for backend, allowed in (("native", ours), (None, peers)):
        assert because(0.99 * allowed, backend, dtype=dtype) is None
        assert because(1.01 * allowed, backend, dtype=dtype).endswith(f"(allowed {allowed:g})")
        assert because(float("nan"), backend, dtype=dtype) is not None
    for mode in variants.COMPILE_MODES:  # allowed: twice eager's error, or what ours may have
        assert because(0.1, mode=mode, eager=0.08) is because(3.9e-3, mode=mode, eager=1e-5) is None
        assert because(0.1, mode=mode, eager=0.04) == "gradient is off by 0.1 when compiled, by 0.04 in eager mode"


@pytest.mark.parametrize("eager", [["eager"], []])
@pytest.mark.parametrize("by", [1.1, 0.9])
def test_a_compiler_that_is_off_by_a_tenth_is_flagged(by, eager, monkeypatch):
    """In bf16, where a peer's formula may be off as much, but is not in this case. The compiled chain is what runs."""
    monkeypatch.setattr(torch, "compile", lambda chain, **_: scaled(chain, by))
    rows = measured(FASTGEN, *eager, "compile default", dtype="bf16").rows
    assert [row.wrong for row in rows] == [False, *(False for _ in eager), True]
    assert "when compiled" in rows[-1].wrong_because


def test_compiled_code_is_that_of_a_case_alone_and_is_not_compiled_while_it_is_timed(monkeypatch, fresh_compiler):
    """torch.compile is recorded, and runs Dynamo's graphs without the slow code generation."""
    asked, whole, timings = [], torch.compile, measuring.cpu_timings

    def compile(function, **options):
        asked.append(options)
        return whole(function, backend="eager", dynamic=options["dynamic"])

    def compiling(formula, steps, data, options):
        steps["dmd2 compile default"](formulas.make_inputs(formula.case("", (3, 3, 8, 8), "fp32"), "cpu", 0))
        return timings(formula, steps, data, options)

    monkeypatch.setattr(torch, "compile", compile)
    for _ in range(2):
        found = measured(PIXEL, "eager", "compile default")
        assert len(found.rows) == 3 and found.skipped == []
    measured(PIXEL, "compile max-autotune-no-cudagraphs")
    assert asked == [{"dynamic": False, "mode": mode} for mode in (None, None, "max-autotune-no-cudagraphs")]
    monkeypatch.setattr(measuring, "cpu_timings", compiling)
    (skipped,) = measured(PIXEL, "compile default").skipped
    assert "compiled again while they were timed" in skipped.why and (skipped.kind, skipped.ours) == ("failed", False)


@pytest.mark.parametrize(("mode", "seen"), [("compile default", [0.0, 1.0, 2.0, 3.0]), ("eager", [0.0])])
def test_every_set_of_inputs_goes_through_compiled_code_before_it_is_timed(mode, seen):
    calls, (given, *data) = [], [value * torch.ones(2) for value in (0.0, 1.0, 2.0, 3.0)]
    variant = Variant("", None, mode, lambda: lambda v: calls.append(v[0].item()) or v)
    assert measuring.checked(variant, given, data, given + 1).error == pytest.approx(1.0)
    assert calls == seen
