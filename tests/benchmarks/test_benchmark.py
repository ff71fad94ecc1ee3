"""The benchmark times what it says, flags what is wrong, and writes the report that its page and --compare read."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import benchmarks.__main__ as cli
from benchmarks import comparisons, formulas, measure, predicted, variants
from benchmarks.formulas import FORMULAS
from benchmarks.shapes import DTYPES, SHAPES
from benchmarks.timing import Timing, summarize, time_interleaved
from fdkernels.devices import PRESETS

ROOT = Path(__file__).parents[2]
ROW = {
    "op": str, "shape_name": str, "shape": list, "dtype": str, "formula": str, "variant": str, "ours": bool,
    "backend": (str, type(None)), "mode": (str, type(None)), "wrong": bool, "wrong_because": (str, type(None)),
    "time_us": float, "low_us": float, "high_us": float, "call_us": (float, type(None)), "min_bytes": int,
    "gb_per_s": float, "percent_of_ceiling": float, "counted_bytes": (int, type(None)),
    "extra_bytes": (int, type(None)), "launches": (int, type(None)), "syncs": (int, type(None)),
    "gradient_error": float, "predicted_us": (float, type(None)), "input_sets": int,
}  # fmt: skip
SETTING = {
    "device", "kind", "threads", "torch", "triton", "driver", "cuda", "clocks", "commit", "date", "fdkernels",
    "command", "load_average", "compile_modes", "warm_up",
}  # fmt: skip


def tiny(name, dtype="fp32"):
    return FORMULAS[name].case("tiny", SHAPES["tiny_video" if name == "self_forcing" else "tiny"].sizes, dtype)


def run(*arguments):
    environment = {**os.environ, "TRITON_INTERPRET": "0"}
    command = [sys.executable, "-m", "benchmarks", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=environment)


def test_median_and_its_interval():
    timing = summarize([float(i) for i in range(100, 0, -1)], calls=3)
    assert (timing.median, timing.rounds, timing.calls) == (50.5, 100, 3)
    assert timing.low < 50 < 51 < timing.high
    assert timing.high - timing.low < 25
    assert (summarize([2.0], 1).low, summarize([2.0], 1).high) == (2.0, 2.0)


def test_variants_interleave_and_rotate_their_inputs():
    calls = []
    named = {name: (lambda i, name=name: calls.append((name, i))) for name in "ab"}
    time_interleaved(named, rounds=4, window=0.0)
    timed = calls[8:]  # three warm-up calls and one to size the window, for each
    assert [name for name, _ in timed] == list("abbaabba")
    assert [i for name, i in timed if name == "a"] == [0, 1, 2, 3]


def test_rounds_end_early_but_not_before_there_are_enough():
    found = time_interleaved({"a": lambda i: None}, rounds=100, window=0.0, seconds=0.0)
    assert found["a"].rounds == 12


@pytest.mark.filterwarnings("ignore:normalize_weight over")
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", FORMULAS)
def test_ours_is_the_peers_formula(name, dtype):
    """Both against float64, which shares code with neither, and ours no farther from it."""
    case = tiny(name, dtype)
    inputs = formulas.make_inputs(case, "cpu", seed=0)
    exact = FORMULAS[name].exact(inputs)
    assert exact.abs().max() > 0
    ours, peer = variants.variants(FORMULAS[name], ["reference"], ["eager"], "cpu")
    errors = {each.name: variants.relative_error(each.make()(inputs), exact) for each in (ours, peer)}
    assert errors[ours.name] <= 1.1 * errors[peer.name]
    for each in (ours, peer):
        assert variants.wrong_because(each, FORMULAS[name], case.dtype, errors[each.name], "cpu") is None


def scaled(chain):
    return lambda *inputs: chain(*inputs) * 1.001


def unguided(student, cond, uncond, fake, w, mask):
    return formulas.baselines.self_forcing_chain(student, cond, uncond, fake, 0.99 * w, mask)


BROKEN = [
    ("fastgen", "fp32", scaled(FORMULAS["fastgen"].chain)),
    ("dmd2_pixel", "bf16", scaled(FORMULAS["dmd2_pixel"].chain)),  # hidden by bf16's rounding, not by float32's
    ("self_forcing", "bf16", unguided),
    ("weight", "fp32", scaled(FORMULAS["weight"].chain)),
]


@pytest.mark.filterwarnings("ignore:normalize_weight over")
@pytest.mark.parametrize(("name", "dtype", "chain"), BROKEN)
def test_a_broken_baseline_is_wrong_not_fast(name, dtype, chain):
    broken = dataclasses.replace(FORMULAS[name], chain=chain)
    options = measure.Options("cpu", ["reference"], ["eager"], rounds=2)
    rows = [dataclasses.asdict(row) for row in measure.measure(broken, tiny(name, dtype), options).rows]
    ours, peer = rows
    assert not ours["wrong"] and peer["wrong"] and "is off by" in peer["wrong_because"]
    (comparison,) = comparisons.compared(rows)
    assert comparison["verdict"] == "wrong" and comparison["ratio"] is comparison["low"] is None


@pytest.mark.filterwarnings("ignore:normalize_weight over")
def test_a_variant_that_fails_is_skipped():
    def fails(*inputs):
        raise RuntimeError("no such kernel\nand more")

    broken = dataclasses.replace(FORMULAS["fastgen"], chain=fails)
    found = measure.measure(broken, tiny("fastgen"), measure.Options("cpu", ["reference"], ["eager"], rounds=1))
    assert [row.variant for row in found.rows] == ["reference"]
    (skipped,) = found.skipped
    assert skipped.what.endswith("fastgen eager") and skipped.why == "RuntimeError: no such kernel"


@pytest.mark.filterwarnings("ignore:normalize_weight over")
def test_times_of_a_gpu(monkeypatch):
    """Ours by the graph and by plain calls, a peer that syncs by plain calls alone."""

    class Replay:
        def __init__(self, step, data):
            self.calls, self.once = 2 * len(data), lambda: [step(v) for _ in range(2) for v in data]

        def __call__(self):
            self.once()

    monkeypatch.setattr(measure, "Replay", Replay)
    monkeypatch.setattr(measure, "syncs", lambda function: True)
    formula, case = FORMULAS["fastgen"], tiny("fastgen")
    data = [formulas.make_inputs(case, "cpu", seed) for seed in range(2)]
    steps = {
        "reference": formula.our_step("reference", "cpu"),
        "fastgen eager": formula.peer_step(formula.chain, "cpu"),
    }
    options = measure.Options("cpu", ["reference"], ["eager"], rounds=3, copied=2**16)
    found = measure.gpu_timings(formula, case, steps, data, options)
    assert found.kinds == {"reference": "graph", "fastgen eager": "wall"} and not found.uncaptured
    assert set(found.calls_us) == set(found.walls) == set(found.times) == set(steps)
    assert found.times["fastgen eager"] == found.walls["fastgen eager"]
    assert found.times["reference"] != found.walls["reference"] and found.ceiling_bytes == 2 * 2**16


def test_predicted_bytes():
    case = FORMULAS["fastgen"].case("pixels1024", SHAPES["pixels1024"].sizes, "bf16")
    least = FORMULAS["fastgen"].minimum_bytes(case)
    assert least == 8 * case.elements
    assert predicted.native_bytes(FORMULAS["fastgen"], case, PRESETS["h200"]) == least
    assert predicted.triton_bytes(FORMULAS["fastgen"], case, 50 << 20) > least
    for name, formula in FORMULAS.items():
        if name != "weight":
            shape = SHAPES["wan" if name == "self_forcing" else "sdxl"].sizes
            case = formula.case("", shape, "fp32")
            assert predicted.native_bytes(formula, case, PRESETS["a100"]) >= formula.minimum_bytes(case)
            assert predicted.triton_bytes(formula, case, 0) >= formula.minimum_bytes(case)
    assert predicted.predicted_bytes(FORMULAS["fastgen"], case, None, 123, "cpu") == 123.0
    assert predicted.predicted_bytes(FORMULAS["fastgen"], case, None, None, "cpu") is None


def test_a_run_its_report_and_its_comparison(tmp_path):
    file = tmp_path / "report.json"
    settings = "fused_fdiv_loss fdiv_weight --shapes tiny --dtype fp32 --rounds 3 --threads 1 --mode eager --device cpu"
    done = run(*settings.split(), "--json", file)
    assert done.returncode == 0, done.stderr
    report = json.loads(file.read_text())
    assert list(report) == ["schema", "setting", "ceiling", "rows", "comparisons", "skipped"] and report["schema"] == 1
    assert set(report["setting"]) >= SETTING and report["setting"]["threads"] == 1
    assert report["setting"]["command"] == f"python -m benchmarks {settings}"
    assert report["ceiling"]["low"] <= report["ceiling"]["gb_per_s"] <= report["ceiling"]["high"]
    found = [(row["formula"], row["variant"]) for row in report["rows"]]
    names = {"fastgen": "fastgen", "dmd2_pixel": "dmd2", "dmd2_latent": "dmd2", "weight": "fastgen"}
    ours = found[0][1]
    assert found == [(name, v) for name, peer in names.items() for v in (ours, f"{peer} eager")]
    for row in report["rows"]:
        assert not {key: row.get(key) for key, kind in ROW.items() if not isinstance(row.get(key), kind)}
        assert 0 < row["low_us"] <= row["time_us"] <= row["high_us"] and not row["wrong"]
        assert row["gb_per_s"] == pytest.approx(row["min_bytes"] / row["time_us"] / 1e3)
        assert row["percent_of_ceiling"] == pytest.approx(100 * row["gb_per_s"] / row["ceiling_gb_per_s"])
        assert row["extra_bytes"] > 0 and row["launches"] > 0 and row["predicted_us"] > 0
        assert row["variant"] in done.stdout
    assert len(report["comparisons"]) == 4 and report["skipped"] == []
    assert run("--compare", file, file).returncode == 0


ERRORS = [
    ("--shapes 8x0", "expected two sizes or more, of at least 1, as in 8,4,128,128; got '8x0'"),
    ("--shapes 8", "expected two sizes or more"),
    ("--shapes cifar,8", "unknown shape '8'"),
    ("--shapes sdlx", "unknown shape 'sdlx'"),
    ("--dtype fp8", "unknown dtype 'fp8'"),
    ("fdiv", "unknown op 'fdiv'"),
    ("--backend cuda", "unknown backend 'cuda'"),
    ("--backend triton --device cpu", "--backend triton: not available on cpu"),
    ("--baseline dmd3", "unknown baseline 'dmd3'"),
    ("--baseline self_forcing --shapes cifar", "self_forcing takes videos"),
    ("fdiv_weight --baseline dmd2_pixel", "--baseline: the peers of fdiv_weight are fixed"),
    ("--mode fast", "unknown mode 'fast'"),
    ("--rounds 0", "expected a number of at least 1, got '0'"),
    ("--seconds soon", "expected a number of at least 0, got 'soon'"),
    ("--json /nowhere/at/all.json", "there is no folder"),
    ("--compare /nowhere.json", "No such file"),
    ("--compare a.json b.json c.json", "got 3 files"),
]


@pytest.mark.parametrize(("arguments", "message"), ERRORS)
def test_bad_arguments(arguments, message, capsys, monkeypatch):
    monkeypatch.setenv("TRITON_INTERPRET", "0")
    with pytest.raises(SystemExit) as stopped:
        cli.main(arguments.split())
    assert stopped.value.code == 2
    assert message in capsys.readouterr().err


def test_no_gpu_is_said(capsys):
    if torch.cuda.is_available():
        pytest.skip("there is one")
    with pytest.raises(SystemExit):
        cli.main(["--device", "cuda"])
    assert "sees no CUDA or ROCm device" in capsys.readouterr().err


def chosen(*arguments, device="cpu"):
    def error(text):
        raise AssertionError(text)

    return cli.cases_of(cli.command_line().parse_args(arguments), device, error)


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_the_quick_choice_has_every_formula(device):
    cases = chosen(device=device)
    assert {case.formula for case in cases} == set(FORMULAS) and len(cases) == len(set(cases))
    assert {case.op for case in chosen("fdiv_weight", device=device)} == {"fdiv_weight"}


def test_what_is_asked_for():
    cases = chosen("--shapes", "sdxl,wan", "2,3,4,4", "--dtype", "bf16")
    assert [(c.formula, c.shape_name) for c in cases if c.op == "fused_fdiv_loss"] == [
        ("fastgen", "sdxl"), ("fastgen", "wan"), ("fastgen", "2,3,4,4"), ("dmd2_latent", "sdxl"),
        ("self_forcing", "wan"),
    ]  # fmt: skip
    assert {case.dtype for case in cases if case.op == "fused_fdiv_loss"} == {"bf16"}
    assert chosen("--shapes", "wan", "--baseline", "self_forcing")[0].shape == (1, 21, 16, 60, 104)
    assert [c.formula for c in chosen("--shapes", "2x3x4x4", "--dtype", "fp32", "--baseline", "none")] == ["fastgen"]
    assert [c.shape for c in chosen("fdiv_weight", "--shapes", "64,3", "cifar")] == [(64, 3), (64, 2)]
    assert {c.shape_name for c in chosen("--shapes", "large", "--baseline", "fastgen")} >= {"wan_large", "cifar_large"}


def test_the_command_that_is_recorded_names_no_files():
    given = [
        "fdiv_weight",
        "--json",
        "/a/b.json",
        "--dtype",
        "fp32",
        "--compare",
        "/c.json",
        "/d.json",
        "--html=/e.html",
    ]
    assert cli.command(given) == "python -m benchmarks fdiv_weight --dtype fp32"


def test_microseconds_of_a_timing():
    assert Timing(2e-6, 1e-6, 4e-6, 3, 1).microseconds(2) == pytest.approx((1.0, 0.5, 2.0))
