"""The counters, on functions whose counts are known."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

import fdkernels as fdk
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


def moved_of(call):
    found = counting.tensor_traffic(call)
    return found.bytes // BYTES, found.ops


def test_what_ops_in_place_move():
    """They read and write their first operand, and one that returns nothing does too. Copies do not read it."""
    x, y = torch.zeros(64, 64), torch.ones(64, 64)
    assert moved_of(lambda: x.add_(y)) == (3, 1) and moved_of(lambda: x.copy_(y)) == (2, 1)
    assert moved_of(lambda: torch._foreach_mul_([x, y], 2.0)) == (4, 1)


def test_our_backward_moves_a_gradient_only_if_it_has_to():
    student, teacher, fake = (torch.randn(4, 4096) for _ in range(3))
    student.requires_grad_()
    for factor, elements in ((1.0, 0), (0.5, 2)):
        upstream = torch.tensor(factor)
        loss = fdk.fused_fdiv_loss(student, teacher, fake, divergence="rkl", backend="native")
        found = counting.tensor_traffic(lambda: torch.autograd.grad(loss, student, upstream))  # noqa: B023
        assert found.ops == 1 and found.bytes == pytest.approx(4 * elements * student.numel(), abs=64)


def test_ops_for_which_a_host_waits():
    x, kept = torch.arange(4.0), torch.tensor([True, False, True, True])
    for call in (
        lambda: x.sum().item(), lambda: x[kept], lambda: x.__setitem__(kept, x[:3].clone()), lambda: x.nonzero(),
        lambda: torch.bincount(x.long()), lambda: bool((x > 0).all()),
    ):  # fmt: skip
        assert counting.tensor_traffic(call).syncs == 1
    assert counting.tensor_traffic(lambda: (x[kept.long()], torch.where(kept, x, 0), x.sum())).syncs == 0


def test_what_makes_new_numbers_reads_none():
    x = torch.ones(1000)
    for call in (lambda: torch.randn_like(x), lambda: torch.zeros_like(x), lambda: x.normal_(), lambda: x.fill_(1)):
        assert counting.tensor_traffic(call)[:2] == (1, 4000)


def test_levels_that_no_check_reads():
    x, level = torch.ones(3, 5), torch.rand(3)
    v = counting.unread(SimpleNamespace(t=level, _replace=lambda **changed: SimpleNamespace(**changed)))
    read = counting.tensor_traffic(lambda: fdk.add_noise(x, 1.0, level, x, backend="native"))
    unread = counting.tensor_traffic(lambda: fdk.add_noise(x, 1.0, v.t, x, backend="native"))
    assert read.syncs > 0 and unread[::2] == (1, 0)


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
