"""The counters, on functions whose counts are known."""

from __future__ import annotations

import pytest
import torch

from benchmarks import counting
from benchmarks.formulas import FORMULAS, make_inputs
from benchmarks.shapes import SHAPES
from fdkernels.fdiv import t_range

BYTES = 4 * 64 * 64


def test_peak_memory():
    x = torch.zeros(64, 64)

    def two_at_a_time():
        a = x + 1  # one
        b = a * 2  # two
        del a
        return b + 1  # b and this: two again

    assert counting.trace(two_at_a_time, "cpu").peak_bytes == pytest.approx(2 * BYTES, rel=0.01)
    assert counting.trace(lambda: x.add_(1), "cpu").peak_bytes < 100


def test_peak_memory_of_compiled_code_is_seen():
    compiled = torch.compile(lambda v: (v + 1).cumsum(0), dynamic=False, backend="aot_eager")
    x = torch.zeros(64, 64)
    compiled(x)
    assert counting.trace(lambda: compiled(x), "cpu").peak_bytes >= BYTES


def test_tensor_traffic():
    x = torch.zeros(64, 64)
    assert counting.tensor_traffic(lambda: x + 1) == (1, 2 * BYTES)
    assert counting.tensor_traffic(lambda: x.view(-1)[1:]) == (0, 0)


@pytest.mark.filterwarnings("ignore:normalize_weight over")
def test_our_backward_moves_nothing():
    formula = FORMULAS["dmd2_pixel"]
    case = formula.case("tiny", SHAPES["tiny"].sizes, "fp32")
    step, inputs = formula.our_step("auto", "cpu"), make_inputs(case, "cpu", 0)
    step(inputs)
    ops, moved = counting.tensor_traffic(lambda: step(inputs))
    if ops < 10:  # the native backend
        assert moved == pytest.approx(formula.minimum_bytes(case), abs=64)


@pytest.mark.filterwarnings("ignore:normalize_weight over")
@pytest.mark.parametrize(
    ("name", "dtype", "passes"), [("fastgen", "bf16", 0), ("fastgen_scaled", "bf16", 2), ("fastgen", "fp16", 2)]
)
def test_our_backward_passes_over_what_it_scales(name, dtype, passes, monkeypatch):
    monkeypatch.setattr(t_range, "LOOKS", 0)  # at t, by a normalizer's first calls
    formula = FORMULAS[name]
    case = formula.case("tiny", SHAPES["tiny"].sizes, dtype)
    step, inputs = formula.our_step("native", "cpu"), make_inputs(case, "cpu", 0)
    step(inputs)
    _, moved = counting.tensor_traffic(lambda: step(inputs))
    beside = formula.minimum_bytes(case) + passes * case.elements * case.itemsize
    assert moved == pytest.approx(beside, abs=256)  # logits, t, bins, loss


def event(name, category, ts, **more):
    return {"name": name, "cat": category, "ts": ts, **more}


def test_launches_and_syncs_of_a_trace():
    memory = {"Device Type": 0}
    found = counting.summarized(
        [
            {"name": "process_name", "ph": "M"},
            event(counting.RANGE, "user_annotation", 10, dur=100),
            event("cudaStreamSynchronize", "cuda_runtime", 5, dur=1),  # before
            event("late", "kernel", 130, dur=3.0),  # on the GPU, after the host's range
            event("early", "kernel", 20, dur=2.0),
            event("Memcpy DtoH", "gpu_memcpy", 40, dur=1.0),
            event("cudaLaunchKernel", "cuda_runtime", 15, dur=1),
            event("cudaStreamSynchronize", "cuda_runtime", 30, dur=1),
            event("cudaDeviceSynchronize", "cuda_runtime", 120, dur=1),  # ours, after the call
            event("[memory]", "cpu_instant_event", 20, args={"Bytes": 100, **memory}),
            event("[memory]", "cpu_instant_event", 21, args={"Bytes": 50, **memory}),
            event("[memory]", "cpu_instant_event", 22, args={"Bytes": -100, **memory}),
            event("[memory]", "cpu_instant_event", 23, args={"Bytes": 999, "Device Type": 1}),
        ]
    )
    assert [each["name"] for each in found.work] == ["early", "Memcpy DtoH", "late"]
    assert (found.syncs, found.peak_bytes) == (1, 150)
