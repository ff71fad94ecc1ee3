"""From steps to rows: sets of inputs, figures of a row, counts, predictions."""

from __future__ import annotations

import dataclasses
from types import SimpleNamespace

import pytest
import torch

from benchmarks import counting, formulas, measure, predicted, variants
from benchmarks.counting import Trace
from benchmarks.formulas import FORMULAS
from benchmarks.measure import Checked, Options, Timed
from benchmarks.shapes import SHAPES
from benchmarks.timing import Timing
from benchmarks.variants import Variant
from fdkernels.devices import PRESETS
from tests.benchmarks.tiny import tiny

MIB = 1 << 20
FASTGEN = FORMULAS["fastgen"]


# ---- sets of inputs


@pytest.fixture
def cache(monkeypatch):
    def of(size):
        monkeypatch.setattr(measure, "last_level_cache", lambda: size)
        monkeypatch.setattr(torch.cuda, "get_device_properties", lambda: SimpleNamespace(L2_cache_size=size))

    return of


@pytest.mark.parametrize(
    ("sizes", "size", "sets"),
    [
        ((8, 87381), 0, 1),  # 8 MiB - 32 of inputs: in cache
        ((8, 87382), 0, 32),  # 256 MiB at least
        ((8, 2**18), 128 * MIB, 11),
        ((8, 2**18), 200 * MIB, 17),  # twice the cache, in sets of 24 MiB
        ((8, 2**18), 4096 * MIB, 86),  # 2 GiB at most
        ((8, 2**22), 0, 2),  # but two
    ],
)
def test_sets_of_inputs_of_a_cpu(cache, sizes, size, sets):
    cache(size)
    assert measure.input_sets(FASTGEN, FASTGEN.case("", sizes, "fp32"), "cpu") == sets


@pytest.mark.parametrize(
    ("sizes", "size", "sets"),
    [((8, 2**16), 50 * MIB, 34), ((8, 2**20), 50 * MIB, 3), ((8, 2**24), 50 * MIB, 2), ((8, 16), 50 * MIB, 512)],
)
def test_sets_of_inputs_of_a_gpu(cache, sizes, size, sets):
    """Four times the cache, two sets or more, 512 at most."""
    cache(size)
    assert measure.input_sets(FASTGEN, FASTGEN.case("", sizes, "fp32"), "cuda") == sets


def test_a_rotation_lies_apart_in_memory():
    data = formulas.rotation(tiny("self_forcing"), "cpu", 6)
    for name in formulas.Inputs._fields:
        tensors = [getattr(v, name) for v in data]
        if tensors[0] is not None:
            assert len({w.data_ptr() for w in tensors}) == 6
            assert torch.equal(tensors[4], tensors[0]) and torch.equal(tensors[5], tensors[1])
            assert [w.requires_grad for w in tensors] == [name == "student"] * 6
    assert len({v.student.sum().item() for v in data}) == formulas.DISTINCT == 4
    assert all(v.student.is_leaf for v in data)


def test_a_cpus_inputs_take_turns():
    data = formulas.rotation(tiny("dmd2_pixel"), "cpu", 3)
    seen = []
    options = Options("cpu", [], [], rounds=100, seconds=0.0)
    found = measure.cpu_timings(FORMULAS["dmd2_pixel"], tiny("dmd2_pixel"), {"a": seen.append}, data, options)
    assert all(v is data[i % 3] for i, v in enumerate(seen[:4]))  # warm-up
    assert len(seen) > 10 and all(v is data[i % 3] for i, v in enumerate(seen[4:]))
    assert found.kinds == {"a": "calls"} and found.calls == found.walls == found.uncaptured == {}
    assert found.ceiling.rounds == 12  # those that are made in any case


@pytest.mark.filterwarnings("ignore:normalize_weight over")
def test_a_case_is_measured_on_as_many_sets_as_it_has(monkeypatch, cache):
    cache(0)
    one = FASTGEN.input_bytes(tiny("fastgen"))
    monkeypatch.setattr(measure, "RESIDENT_BYTES", 0)
    monkeypatch.setattr(measure, "LEAST_ROTATED", 3 * one)
    seen = []
    ours = dataclasses.replace(FASTGEN, ours=lambda v, *more: seen.append(v) or FASTGEN.ours(v, *more))
    (row,) = measure.measure(ours, tiny("fastgen"), Options("cpu", ["reference"], [], rounds=7)).rows
    assert (row.input_sets, row.rounds) == (3, 7)
    assert len({v.student.data_ptr() for v in seen}) == 3


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_the_streaming_limit_reads_three_and_writes_one(dtype):
    data = formulas.rotation(tiny("fastgen", dtype), "cpu", 3)
    stream = measure.Stream(data)
    assert stream.bytes == 4 * data[0].student.nbytes == FASTGEN.minimum_bytes(tiny("fastgen", dtype))
    out = [stream(i) for i in range(4)]
    assert len({w.data_ptr() for w in out}) == 3 and out[3] is out[0]
    a, b, c, result = stream.sets[1]
    assert a.data_ptr() == data[1].student.data_ptr() and out[1] is result
    torch.testing.assert_close(result, a + b * c, equal_nan=True)


def test_a_limit_where_a_case_has_no_data_of_that_size(monkeypatch):
    monkeypatch.setattr(measure, "STREAMED", tiny("fastgen"))
    weight = FORMULAS["weight"]
    data = formulas.rotation(tiny("weight"), "cpu", 1)
    found = measure.cpu_timings(weight, tiny("weight"), {}, data, Options("cpu", [], [], rounds=6))
    assert found.ceiling_bytes == FASTGEN.minimum_bytes(tiny("fastgen"))


# ---- figures of a row


def timed(name, kind="calls", **more):
    """10 µs, at a limit of 4 GB/s."""
    ceiling = Timing(1e-3, 9e-4, 2e-3, 30, 1)
    times = {"times": {name: (10.0, 9.0, 12.0)}, "kinds": {name: kind}, "calls": {}, "walls": {}, "uncaptured": {}}
    return Timed(**times | {"ceiling": ceiling, "ceiling_bytes": 4_000_000} | more)


def figures(formula, backend="native", mode=None, **more):
    case = tiny(formula)
    variant = Variant(backend or "peer", backend, mode, lambda: None)
    each = Checked(variant, lambda v: v.student, 1e-7, None)
    return measure.timed_row(case, FORMULAS[formula], each, timed(variant.name, **more), None, 5), case


def test_figures_of_a_row():
    row, case = figures("dmd2_pixel")
    least = 4 * 4 * case.elements
    assert (row.min_bytes, row.time_us, row.low_us, row.high_us) == (least, 10.0, 9.0, 12.0)
    assert row.gb_per_s == pytest.approx(least / 10e-6 / 1e9)
    assert row.ceiling_gb_per_s == pytest.approx(4.0)
    assert row.percent_of_ceiling == pytest.approx(100 * least / 10e-6 / 4e9)
    assert row.predicted_us == pytest.approx(least / 4e9 * 1e6)
    assert (row.timed_by, row.input_sets, row.rounds, row.call_us, row.wall_us) == ("calls", 5, 30, None, None)


def test_a_weight_has_no_limit_and_no_prediction():
    row, _ = figures("weight")
    assert row.percent_of_ceiling is row.predicted_us is None and row.gb_per_s > 0


def test_a_peers_prediction_waits_for_its_count():
    row, case = figures("dmd2_pixel", None, "eager")
    assert row.predicted_us is None
    counted = measure.predicted(dataclasses.replace(row, counted_bytes=8_000_000), FORMULAS["dmd2_pixel"], case)
    assert counted.predicted_us == pytest.approx(2000.0)


def test_times_of_a_gpus_row(monkeypatch):
    monkeypatch.setattr(predicted, "present", lambda: PRESETS["h200"])
    row, _ = figures("fastgen", kind="graph", calls={"native": (3.0, 2.0, 4.0)}, walls={"native": (20.0, 19.0, 21.0)})
    assert row.timed_by == "graph"
    assert (row.call_us, row.call_low_us, row.call_high_us) == (3.0, 2.0, 4.0)
    assert (row.wall_us, row.wall_low_us, row.wall_high_us) == (20.0, 19.0, 21.0)


def test_times_of_a_gpu(monkeypatch):
    """Ours by a graph, a peer that syncs by plain calls; a replay's time is that of its calls, each set once in it."""
    captured = {}

    class Replay:
        def __init__(self, step, data):
            captured[step] = data
            self.calls = 20

    def device_timings(functions, rounds, device):
        assert (rounds, device) == (9, "cpu") and functions["ceiling"].bytes == 2 * 2**16
        return {name: Timing(1e-3, 9e-4, 2e-3, rounds, 1) for name in functions}

    def call_timings(steps, given, rounds, device):
        assert given is data and rounds == 9
        wall, call = Timing(8e-4, 7e-4, 9e-4, rounds, 3), Timing(4e-5, 3e-5, 5e-5, rounds, 3)
        return dict.fromkeys(steps, (wall, call))

    for fake in (Replay, device_timings, call_timings):
        monkeypatch.setattr(measure, fake.__name__, fake)
    monkeypatch.setattr(measure, "syncs", lambda function: function() == "syncs")
    data = formulas.rotation(tiny("fastgen"), "cpu", 5)
    steps = {"reference": lambda v: "ours", "fastgen eager": lambda v: "syncs", "fastgen compile": lambda v: "not"}
    options = Options("cpu", ["reference"], ["eager"], rounds=9, copied=2**16)
    found = measure.gpu_timings(FASTGEN, tiny("fastgen"), steps, data, options)
    assert found.kinds == {"reference": "graph", "fastgen eager": "wall", "fastgen compile": "graph"}
    assert captured == {steps["reference"]: data, steps["fastgen compile"]: data} and not found.uncaptured
    assert found.times["reference"] == found.times["fastgen compile"] == pytest.approx((50.0, 45.0, 100.0))
    assert found.times["fastgen eager"] == found.walls["reference"] == pytest.approx((800.0, 700.0, 900.0))
    assert found.calls["reference"] == pytest.approx((40.0, 30.0, 50.0))
    assert found.ceiling_bytes == 2 * 2**16


@pytest.mark.filterwarnings("ignore:normalize_weight over")
def test_ours_that_is_not_captured_is_a_fault(monkeypatch):
    class Replay:
        def __init__(self, step, data):
            raise RuntimeError("a replay of the graph leaves results unwritten")

    plain = (Timing(8e-4, 7e-4, 9e-4, 9, 3), Timing(4e-5, 3e-5, 5e-5, 9, 3))
    replaced = {
        "Replay": Replay, "syncs": lambda function: False, "clocks": lambda device: None,
        "input_sets": lambda *_: 2, "rotation": lambda case, device, count: formulas.rotation(case, "cpu", count),
        "variants": lambda f, names, modes, device: variants.variants(f, names, modes, "cpu"),
        "device_timings": lambda functions, rounds, device: dict.fromkeys(functions, Timing(1e-3, 9e-4, 2e-3, 9, 1)),
        "call_timings": lambda steps, data, rounds, device: dict.fromkeys(steps, plain),
    }  # fmt: skip
    for name, fake in replaced.items():
        monkeypatch.setattr(measure, name, fake)
    options = Options("cuda", ["reference"], [], copy=[measure.Copy(2**16, "cpu")])
    found = measure.measure(FASTGEN, tiny("fastgen"), options)
    (row,), (skipped,) = found.rows, found.skipped
    assert row.timed_by == "wall" and row.time_us == row.wall_us == pytest.approx(800.0)
    assert (skipped.kind, skipped.ours) == ("failed", True)
    assert skipped.why == "not captured: RuntimeError: a replay of the graph leaves results unwritten"


# ---- counts


def on_gpu():
    row, case = figures("dmd2_pixel")
    return dataclasses.replace(row, timed_by="graph", backend="reference"), case


def test_counts_of_a_gpu_are_those_of_a_call(monkeypatch):
    seen = []

    def trace(function, device):
        seen.clear()
        function()
        return Trace([{"name": "k", "us": 3.0}] * 8, syncs=2, peak_bytes=0)

    monkeypatch.setattr(measure, "trace", trace)
    monkeypatch.setattr(measure, "extra_memory", lambda function: function() and 123)
    row, case = on_gpu()
    found = measure.counted(row, lambda v: seen.append(v) or True, [1, 2, 3, 4], FORMULAS["dmd2_pixel"], case, "cuda")
    assert seen == [1, 2, 3, 4]
    assert (found.launches, found.syncs, found.kernel_us, found.extra_bytes) == (2, 0.5, 6.0, 123)


def test_a_profiler_that_records_nothing_counts_nothing(monkeypatch):
    monkeypatch.setattr(measure, "trace", lambda function, device: Trace([], 0, 0))
    monkeypatch.setattr(measure, "extra_memory", lambda function: 123)
    row, case = on_gpu()
    found = measure.counted(row, lambda v: v, [1, 2], FORMULAS["dmd2_pixel"], case, "cuda")
    assert found.launches is found.syncs is found.kernel_us is None and found.extra_bytes == 123


def test_memory_of_a_gpu_is_what_comes_on_top(monkeypatch):
    memory = SimpleNamespace(now=1000, most=9000)

    def call():
        memory.most = max(memory.most, memory.now + 500)

    fakes = {
        "synchronize": lambda: None, "memory_allocated": lambda: memory.now,
        "max_memory_allocated": lambda: memory.most,
        "reset_peak_memory_stats": lambda: setattr(memory, "most", memory.now),
    }  # fmt: skip
    for name, fake in fakes.items():
        monkeypatch.setattr(torch.cuda, name, fake)
    assert counting.extra_memory(call) == 500


def test_rows_get_their_counts_later(monkeypatch):
    """Each with a step of its own; one that fails keeps its times and is said."""
    made = []

    def variant(name, works):
        def make():
            made.append(name)
            if not works:
                raise RuntimeError("out of memory")
            return lambda v: v

        return Variant(name, "native", None, make)

    def counted(row, step, data, formula, case, device):
        assert len(data) == measure.TRACED_SETS and device == "cpu"
        return dataclasses.replace(row, launches=7)

    monkeypatch.setattr(measure, "variants", lambda *_: [variant("reference", True), variant("native", False)])
    monkeypatch.setattr(measure, "counted", counted)
    row, case = on_gpu()
    rows = [dataclasses.replace(row, variant=name) for name in ("native", "reference")]
    found = measure.Measured(rows, [], Timing(1, 1, 1, 6, 1), 1, None)
    options = Options("cpu", ["native", "reference"], [])
    measure.count_later(found, FORMULAS["dmd2_pixel"], case, options, compiled=True)
    assert [each.launches for each in found.rows] == [None, None] and found.skipped == []
    measure.count_later(found, FORMULAS["dmd2_pixel"], case, options, compiled=False)
    assert [(each.variant, each.launches) for each in found.rows] == [("native", None), ("reference", 7)]
    (skipped,) = found.skipped
    assert skipped.what.endswith("native: launches and memory") and (skipped.kind, skipped.ours) == ("failed", True)


# ---- predictions


def test_predicted_bytes():
    case = FASTGEN.case("pixels1024", SHAPES["pixels1024"].sizes, "bf16")
    least = FASTGEN.minimum_bytes(case)
    assert least == 8 * case.elements
    assert predicted.native_bytes(FASTGEN, case, PRESETS["h200"]) == least
    assert predicted.triton_bytes(FASTGEN, case, 50 << 20) > least
    for name, formula in FORMULAS.items():
        if name != "weight":
            shape = SHAPES["wan" if name == "self_forcing" else "sdxl"].sizes
            case = formula.case("", shape, "fp32")
            assert predicted.native_bytes(formula, case, PRESETS["a100"]) >= formula.minimum_bytes(case)
            assert predicted.triton_bytes(formula, case, 0) >= formula.minimum_bytes(case)
    assert predicted.predicted_bytes(FASTGEN, case, None, 123, "cpu") == 123.0
    assert predicted.predicted_bytes(FASTGEN, case, None, None, "cpu") is None
    assert predicted.predicted_bytes(FORMULAS["weight"], tiny("weight"), "native", 123, "cpu") is None


@pytest.mark.parametrize("planned", ["native", "triton"])
@pytest.mark.parametrize(
    ("name", "dtype", "scales"),
    [("fastgen", "bf16", False), ("fastgen", "fp16", True), ("fastgen_scaled", "bf16", True)],
)
def test_a_backward_that_scales_reads_and_writes_the_gradient_once_more(name, dtype, scales, planned):
    case = FORMULAS[name].case("sdxl", SHAPES["sdxl"].sizes, dtype)
    at_one = predicted.predicted_bytes(FASTGEN, case._replace(dtype="bf16"), planned, None, "cpu")
    found = predicted.predicted_bytes(FORMULAS[name], case, planned, None, "cpu")
    assert found - at_one == (2 * 2 * case.elements if scales else 0)
