"""From steps to rows: sets of inputs, figures of a row, counts."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from benchmarks.cases import formulas, variants
from benchmarks.cases.formulas import FORMULAS
from benchmarks.cases.variants import Variant
from benchmarks.measure import rows
from benchmarks.measure.counting import Trace
from benchmarks.measure.gpu_timing import Copy
from benchmarks.measure.rows import Options
from benchmarks.measure.timing import Timing
from tests.benchmarks import made_up

pytestmark = pytest.mark.filterwarnings("ignore:normalize_weight over")
MIB = 1 << 20
FASTGEN, PIXEL = FORMULAS["fastgen"], FORMULAS["dmd2_pixel"]


@pytest.mark.parametrize(
    ("device", "sizes", "cache", "sets"),
    [
        ("cpu", (8, 87381), 0, 1),  # 8 MiB - 32 of inputs: in cache
        ("cpu", (8, 87382), 0, 32),  # 256 MiB at least
        ("cpu", (8, 2**18), 200 * MIB, 17),  # twice the cache, in sets of 24 MiB
        ("cpu", (8, 2**18), 4096 * MIB, 86),  # 2 GiB at most
        ("cuda", (8, 2**16), 50 * MIB, 34),  # four times the cache
        ("cuda", (8, 2**24), 50 * MIB, 2),
        ("cuda", (8, 16), 50 * MIB, 512),  # at most
    ],
)
def test_sets_of_inputs(monkeypatch, device, sizes, cache, sets):
    monkeypatch.setattr(rows, "last_level_cache", lambda: cache)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda: SimpleNamespace(L2_cache_size=cache))
    assert rows.input_sets(FASTGEN, FASTGEN.case("", sizes, "fp32"), device) == sets


def test_inputs_take_turns_that_lie_apart_in_memory(monkeypatch):
    data = formulas.rotation(FORMULAS["self_forcing"].tiny(), "cpu", 6)
    for name in formulas.Inputs._fields:
        tensors = [getattr(v, name) for v in data if getattr(v, name) is not None]
        assert len({w.data_ptr() for w in tensors}) == len(tensors)
        assert [w.requires_grad for w in tensors] == [name == "student"] * len(tensors)
    assert len({v.student.sum().item() for v in data}) == formulas.DISTINCT == 4
    seen = []
    monkeypatch.setattr(rows, "CASE_SECONDS", 0.0)
    found = rows.cpu_timings(PIXEL, {"a": seen.append}, data[:3], Options("cpu", [], [], rounds=100))
    assert all(v is data[i % 3] for i, v in enumerate(seen))
    assert len(seen) > 10 and found.ceiling.rounds == 12  # those that are made in any case


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_the_streaming_limit_reads_three_and_writes_one(dtype):
    data = formulas.rotation(FASTGEN.tiny(dtype), "cpu", 3)
    stream = rows.Stream(data)
    assert stream.bytes == 4 * data[0].student.nbytes == FASTGEN.minimum_bytes(FASTGEN.tiny(dtype))
    out = [stream(i) for i in range(4)]
    assert len({w.data_ptr() for w in out}) == 3 and out[3] is out[0]
    a, b, c, result = stream.sets[1]
    assert a.data_ptr() == data[1].student.data_ptr() and out[1] is result
    torch.testing.assert_close(result, a + b * c, equal_nan=True)


@pytest.mark.parametrize("name", ["dmd2_pixel", "weight"])
def test_figures_of_a_row(monkeypatch, name):
    """Bytes and limit of a row, from known figures: a time of 10 µs, a limit of 4 GB/s, 3 sets of inputs."""
    formula = FORMULAS[name]
    least, ceiling = formula.minimum_bytes(formula.tiny()), Timing(1e-3, 9e-4, 2e-3, 30, 1)
    times = {"time_us": 10.0, "low_us": 9.0, "high_us": 12.0, "timed_by": "calls"}
    monkeypatch.setattr(rows, "input_sets", lambda *_: 3)
    monkeypatch.setattr(rows, "cpu_timings", lambda formula, steps, data, options: rows.Timed(
        dict.fromkeys(steps, times), ceiling, 4_000_000, {}))  # fmt: skip
    ours, peer = rows.measure(formula, formula.tiny(), Options("cpu", ["reference"], ["eager"])).rows
    for row in (ours, peer):
        assert (row.min_bytes, row.time_us, row.low_us, row.high_us, row.timed_by) == (least, 10.0, 9.0, 12.0, "calls")
        assert (row.input_sets, row.rounds, row.call_us, row.wall_us) == (3, 30, None, None)
        assert row.gb_per_s == pytest.approx(least / 10e-6 / 1e9) and row.ceiling_gb_per_s == pytest.approx(4.0)
        if name == "weight":
            assert row.percent_of_ceiling is None
        else:
            assert row.percent_of_ceiling == pytest.approx(100 * least / 10e-6 / 4e9)
    assert peer.counted_bytes > least and peer.launches > 1 and peer.extra_bytes > 0


@pytest.mark.parametrize(("name", "captured"), [("fastgen", True), ("fastgen", False), ("clip", False)])
def test_times_of_a_gpu(monkeypatch, name, captured):
    """Ours is timed by a graph, a peer that syncs by plain calls. A replay's time covers a call for each set of inputs.
    If ours cannot be captured, that is a fault, unless it writes to its inputs: then it is not tried."""
    formula = FORMULAS[name]

    class Replay:
        def __init__(self, step, data, draws):
            if not captured:
                raise RuntimeError("a replay of the graph leaves results unwritten")
            self.calls = 10 * len(data)

    plain = (Timing(8e-4, 7e-4, 9e-4, 9, 3), Timing(4e-5, 3e-5, 5e-5, 9, 3))
    replaced = {
        "Replay": Replay, "the_copy": lambda size, device: Copy(2**16, "cpu"), "clocks": lambda device: None,
        "input_sets": lambda *_: 2, "rotation": lambda case, device, count: formulas.rotation(case, "cpu", count),
        "variants": lambda f, names, modes, device: variants.variants(f, names, modes, "cpu"),
        "syncs": lambda function: True, "wrong_because": lambda *_: None,
        "device_timings": lambda functions, rounds, device: dict.fromkeys(functions, Timing(1e-3, 9e-4, 2e-3, 9, 1)),
        "time_interleaved": lambda steps, **limits: dict.fromkeys(steps, plain),
    }  # fmt: skip
    for target, fake in replaced.items():
        monkeypatch.setattr(rows, target, fake)
    found = rows.measure(formula, formula.tiny(), Options("cuda", ["reference"], ["eager"], rounds=9))
    ours, peer = found.rows
    assert found.ceiling_bytes == 2 * 2**16 and peer.timed_by == "wall"
    assert ours.timed_by == ("graph" if captured else "wall")
    times = (50.0, 45.0, 100.0) if captured else (800.0, 700.0, 900.0)
    assert (ours.time_us, ours.low_us, ours.high_us) == pytest.approx(times)
    assert (peer.time_us, ours.wall_us, ours.call_us, ours.call_low_us) == pytest.approx((800.0, 800.0, 40.0, 30.0))
    why = "not captured: RuntimeError: a replay of the graph leaves results unwritten"
    faults = [] if captured or formula.in_place else [(why, "failed", True)]
    assert [(each.why, each.kind, each.ours) for each in found.skipped] == faults


def test_counts_of_a_gpu_are_those_of_a_call(monkeypatch):
    """Each row has its own step. A row whose step fails keeps its times, and is reported."""

    def make():
        raise RuntimeError("out of memory")

    def trace(function, device):
        assert len(function()) == rows.TRACED_SETS == 4
        return Trace(8 * [{"name": "k", "us": 3.0}], syncs=2, peak_bytes=0)

    made = [Variant("reference", "reference", None, lambda: lambda v: True), Variant("native", "native", None, make)]
    monkeypatch.setattr(rows, "variants", lambda *_: made)
    monkeypatch.setattr(rows, "trace", trace)
    monkeypatch.setattr(rows, "extra_memory", lambda function: function() and 123)
    monkeypatch.setattr(rows, "make_inputs", lambda case, device, seed: formulas.make_inputs(case, "cpu", seed))
    case = PIXEL.tiny()
    found = made_up.measured(case, made_up.row(case), made_up.row(case, "reference", timed_by="graph"))
    for compiled in (True, False):
        rows.count_later(found, PIXEL, case, Options("cuda", [], []), compiled)
        assert (found.rows[1].extra_bytes is None) == compiled and found.rows[0].extra_bytes is None
    row = found.rows[1]
    assert (row.launches, row.syncs, row.kernel_us, row.extra_bytes) == (2, 0.5, 6.0, 123)
    (skipped,) = found.skipped
    assert skipped.what.endswith("native: launches and memory") and (skipped.kind, skipped.ours) == ("failed", True)
