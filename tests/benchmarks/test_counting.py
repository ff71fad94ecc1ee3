"""The counters, on functions whose counts are known."""

from __future__ import annotations

import pytest
import torch

from benchmarks.measure import counting

BYTES = 4 * 64 * 64


def two_at_a_time(x):
    a = x + 1  # one
    b = a * 2  # two
    del a
    return b + 1  # b and this: two again


def test_peak_memory():
    x = torch.zeros(64, 64)
    assert counting.trace(lambda: two_at_a_time(x), "cpu").peak_bytes == pytest.approx(2 * BYTES, rel=0.01)
    assert counting.trace(lambda: x.add_(1), "cpu").peak_bytes < 100


@pytest.mark.parametrize(
    ("call", "ops", "elements"),
    [
        (lambda x: x + 1, 1, 2 * 64 * 64),
        (lambda x: x.view(-1)[1:], 0, 0),
        (lambda x: x[:1].expand(64, 64) + 1, 1, 64 + 64 * 64),  # read from memory once
        # mul reads and writes, sum reads, ones_like; backward: mul of an expanded scalar writes.
        (lambda x: (x * 2).sum().backward(), 4, (2 + 1 + 1) * 64 * 64),
    ],
)
def test_tensor_traffic(call, ops, elements):
    x = torch.zeros(64, 64).requires_grad_(ops == 4)
    found = counting.tensor_traffic(lambda: call(x))
    assert found[0] == ops and found[1] == pytest.approx(4 * elements, abs=64)


def test_launches_and_syncs_of_a_trace():
    """GPU work counts even if it ends after the host's range; the host's waits count only within the range."""
    events = [("cudaStreamSynchronize", "cuda_runtime", 5), ("late", "kernel", 130), ("early", "kernel", 20),
              ("Memcpy DtoH", "gpu_memcpy", 40), ("cudaLaunchKernel", "cuda_runtime", 15),
              ("cudaStreamSynchronize", "cuda_runtime", 30),
              ("cudaDeviceSynchronize", "cuda_runtime", 120)]  # fmt: skip
    memory = [(20, 100, 0), (21, 50, 0), (22, -100, 0), (23, 999, 1)]
    found = counting.summarized(
        [{"name": "process_name", "ph": "M"}]
        + [{"name": counting.RANGE, "cat": "user_annotation", "ts": 10, "dur": 100}]
        + [{"name": name, "cat": category, "ts": ts, "dur": 1} for name, category, ts in events]
        + [{"name": "[memory]", "ts": ts, "args": {"Bytes": n, "Device Type": device}} for ts, n, device in memory]
    )
    assert [each["name"] for each in found.work] == ["early", "Memcpy DtoH", "late"]
    assert (found.syncs, found.peak_bytes) == (1, 150)
