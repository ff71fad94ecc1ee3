"""What a call costs besides arithmetic: launches, copies, memory, compilations."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch._dynamo.utils import counters
from torch.profiler import ProfilerActivity, profile

import fdkernels as fdk
from tests.cases import make, normalizer
from tests.gpu.calls import KERNELS, PRACTICE, SCHEDULES, batch

pytestmark = [pytest.mark.gpu, pytest.mark.backends(*KERNELS)]

ROOT = Path(__file__).parents[2]


@pytest.fixture
def device_work(tmp_path):
    """A function that calls another and returns the names of the kernels, copies and fills it ran, in their order."""

    def names(function):
        torch.cuda.synchronize()
        with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as trace:
            function()
            torch.cuda.synchronize()
        path = tmp_path / "trace.json"
        trace.export_chrome_trace(str(path))
        events = json.loads(path.read_text())["traceEvents"]
        work = [event for event in events if event.get("cat") in ("kernel", "gpu_memcpy", "gpu_memset")]
        return [event["name"] for event in sorted(work, key=lambda event: event["ts"])]

    x = torch.ones(4, device="cuda")
    if len(names(lambda: x.add_(1))) != 1:
        pytest.skip("torch.profiler records no kernels on this machine")
    return names


MANY = (4096, 3, 16, 16)
WEIGH, WHOLE, SPLIT = ["fdiv_weight_kernel"], ["fdiv_fwd_kernel"], ["fdiv_reduce_kernel", "fdiv_apply_kernel"]
FORWARD = {
    "whole, plain": (SCHEDULES["whole"], "plain", WHOLE),
    "whole, normalizer": (SCHEDULES["whole"], "normalizer", WHOLE),
    "whole, mask per row": (SCHEDULES["whole"], "mask per row", WHOLE),
    "whole, weight": (SCHEDULES["whole"], "weight", WHOLE),
    "whole, none": (SCHEDULES["whole"], "none", WHOLE),
    "whole, a batch weighed first": (MANY, "normalizer", WEIGH + WHOLE),
    "split, plain": (SCHEDULES["split"], "plain", SPLIT),
    "split, normalizer": (SCHEDULES["split"], "normalizer", SPLIT),
    "split, mask per row": (SCHEDULES["split"], "mask per row", SPLIT),
    "a mask of every element": (SCHEDULES["whole"], "mask", SPLIT),
}


@pytest.mark.parametrize(("dtype", "stats"), ((torch.bfloat16, False), (torch.float16, True)), ids=str)
@pytest.mark.parametrize("name", FORWARD)
def test_launches(backend, name, dtype, stats, device_work):
    """Nothing but the kernels themselves: no copy, no fill."""
    shape, option, forward = FORWARD[name]
    case = batch(shape, dtype, option)
    student = case.student.requires_grad_()
    losses = []

    def call():
        result = case.call(backend, student, return_stats=stats)
        losses.append(result[0] if stats else result)

    call()
    one = torch.ones_like(losses[0])
    losses.pop().backward(one)
    student.grad = None
    assert device_work(call) == forward
    # A kept graph's gradient is scaled out of place, a freed one's in place: one launch each.
    (loss,) = losses
    torch.autograd.grad(loss, student, one, retain_graph=True)
    assert device_work(lambda: torch.autograd.grad(loss, student, one, retain_graph=True)) == ["fdiv_bwd_kernel"]
    assert device_work(lambda: loss.backward(one)) == ["fdiv_bwd_kernel"]


@pytest.mark.parametrize("dtype", (torch.bfloat16, torch.float32), ids=str)
@pytest.mark.parametrize("schedule", SCHEDULES)
def test_an_upstream_of_one_moves_nothing(backend, schedule, dtype):
    case = batch(SCHEDULES[schedule], dtype)
    student = case.student.requires_grad_()
    loss = case.call(backend, student)
    saved = [v.data_ptr() for v in loss.grad_fn.saved_tensors if v.shape == student.shape]
    loss.backward()
    assert [student.grad.data_ptr()] == saved


@pytest.mark.parametrize("name", ("CIFAR", "Wan", "pixels"))
def test_extra_memory(backend, name):
    """The gradient, and little that depends on the batch alone."""
    case = make(PRACTICE[name], torch.bfloat16, normalizer=normalizer(4)).on()
    student = case.student.requires_grad_()
    case.call(backend, student).backward()
    student.grad = None
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    case.call(backend, student).backward()
    extra = torch.cuda.max_memory_allocated() - before
    assert extra <= student.numel() * student.element_size() + 2**18


@pytest.fixture
def fresh_compiler():
    torch._dynamo.reset()
    counters.clear()
    yield
    torch._dynamo.reset()


def compiled_step(backend, mode, **options):
    def step(student, teacher, fake, logits, t):
        loss = fdk.fused_fdiv_loss(student * 1.0, teacher, fake, logits, t, backend=backend, **options)
        return loss * 2.0

    return torch.compile(step, fullgraph=True, mode=mode)


@pytest.mark.parametrize("dtype", (torch.bfloat16, torch.float32), ids=str)
@pytest.mark.parametrize("normalized", (False, True))
@pytest.mark.parametrize("mode", (None, "reduce-overhead"))
def test_compiled_with_changing_batch(backend, mode, normalized, dtype, fresh_compiler):
    """Forward and backward as eager, at most one recompilation; each batch often enough for a graph to be replayed."""
    states = [normalizer(4).cuda() for _ in range(2)] if normalized else [None, None]
    step = compiled_step(backend, mode, normalizer=states[0])
    two = torch.full((), 2.0, device="cuda")
    for seed, size in enumerate((16, 12, 12, 12, 9, 9, 9, 12, 16, 16, 16)):
        case = make((size, 3, 16, 16), dtype, seed=seed).on()
        eager = case.but(normalizer=states[1]).step(backend, two)
        student = case.student.clone().requires_grad_()
        torch.compiler.cudagraph_mark_step_begin()
        loss = step(student, case.teacher, case.fake, case.logits, case.t)
        loss.backward()
        torch.testing.assert_close(loss.detach(), 2 * eager.loss, rtol=1e-6, atol=0)
        torch.testing.assert_close(student.grad, eager.grad, rtol=1.6e-2 if dtype == torch.bfloat16 else 1e-6, atol=0)
        if normalized:
            torch.testing.assert_close(states[0].mean, states[1].mean, rtol=1e-6, atol=0)
    assert counters["stats"]["unique_graphs"] <= 2
    if mode and not normalized:
        assert counters["inductor"]["cudagraph_skips"] == 0, "no CUDA graph was made"


FIRST_CALL = """
import sys, torch, fdkernels as fdk

def loss(student, teacher, fake, logits, backend):
    return fdk.fused_fdiv_loss(student, teacher, fake, logits, backend=backend)

shape = tuple(map(int, sys.argv[2].split("x")))
compiled = torch.compile(loss, fullgraph=True, mode="reduce-overhead")
student, teacher, fake = (torch.randn(shape, device="cuda") for _ in range(3))
logits = torch.randn(shape[0], device="cuda")
student.requires_grad_()
found = []
for _ in range(6):
    torch.compiler.cudagraph_mark_step_begin()
    student.grad = None
    value = compiled(student, teacher, fake, logits, sys.argv[1])
    value.backward()
    found.append((value.detach().clone(), student.grad.clone()))
student.grad = None
value = loss(student, teacher, fake, logits, sys.argv[1])
value.backward()
for again, gradient in found:
    torch.testing.assert_close(again, value.detach(), rtol=1e-6, atol=0)
    torch.testing.assert_close(gradient, student.grad, rtol=1e-6, atol=0)
"""


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_a_process_whose_first_call_is_compiled(backend, schedule):
    """Inductor's CUDA graphs watch their memory: what a first call keeps for later ones may not come from it."""
    shape = "x".join(map(str, SCHEDULES[schedule]))
    run = subprocess.run(
        [sys.executable, "-c", FIRST_CALL, backend, shape],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert run.returncode == 0, run.stderr
