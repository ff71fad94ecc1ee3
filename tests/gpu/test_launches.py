"""What a call costs besides arithmetic: launches, copies, memory, compilations."""

import pytest
import torch
from torch._dynamo.utils import counters

import fdkernels as fdk
from tests.cases import make, normalizer
from tests.gpu.calls import (
    CLUSTER,
    GRID,
    KERNELS,
    PRACTICE,
    READ_AGAIN,
    SCALE,
    SCHEDULES,
    SPLIT,
    WEIGH,
    WEIGH_ONE,
    WHOLE,
    Schedule,
)
from tests.implicit import make_implicit

pytestmark = [pytest.mark.gpu, pytest.mark.backends(*KERNELS)]

MANY, SOME = (4096, 3, 16, 16), PRACTICE["CIFAR"]
COUNT = ("fdiv_count_kernel",)
# Schedules with another number of launches, and the option that causes it.
MORE = (
    (Schedule("triton", "whole, weighed first", MANY, WEIGH_ONE + WHOLE), "normalizer"),
    (Schedule("triton", "whole but for its mask", SOME, SPLIT), "mask"),
    (Schedule("native", "blocks, weighed first", MANY, WEIGH + CLUSTER, "cluster:1"), "normalizer"),
    (Schedule("native", "blocks, counted first", SOME, COUNT + CLUSTER, "cluster:1"), "mask"),
    (Schedule("native", "blocks, weighed and counted first", MANY, WEIGH + COUNT + CLUSTER, "cluster:1"), "mask"),
    (Schedule("native", "the grid, weighed and counted first", MANY, WEIGH + COUNT + GRID, "grid"), "mask"),
    # With a count from the caller nothing is counted, and a mask of any size leaves a sample whole.
    (Schedule("triton", "whole, its count given", SOME, WHOLE), "count"),
    (Schedule("triton", "whole, weighed first, its count given", MANY, WEIGH_ONE + WHOLE), "count"),
    (Schedule("native", "blocks, weighed first, their count given", MANY, WEIGH + CLUSTER, "cluster:1"), "count"),
    (Schedule("native", "the grid, weighed first, its count given", MANY, WEIGH + GRID, "grid"), "count"),
    (READ_AGAIN, "normalizer"),
)
FORWARD = [
    *((s, option) for s in SCHEDULES for option in ("plain", "normalizer", "mask per row", "weight", "none")),
    *MORE,
]


@pytest.mark.parametrize(("dtype", "stats"), ((torch.bfloat16, False), (torch.float16, True)), ids=str)
@pytest.mark.parametrize(("schedule", "option"), FORWARD, ids=str)
def test_launches(backend, schedule, option, dtype, stats, device_work):
    """A call runs its kernels and nothing else: no copy, no fill."""
    case = schedule.batch(dtype, option)
    student = case.student.requires_grad_()
    losses = []

    def call():
        result = case.call(backend, student, return_stats=stats)
        losses.append(result[0] if stats else result)

    def names(function):
        return [work.name for work in device_work(function)]

    call()
    one = torch.ones_like(losses[0])
    losses.pop().backward(one)
    student.grad = None
    assert names(call) == list(schedule.kernels)
    # The gradient of a kept graph is scaled out of place, that of a freed graph in place: one launch each.
    (loss,) = losses
    torch.autograd.grad(loss, student, one, retain_graph=True)
    assert names(lambda: torch.autograd.grad(loss, student, one, retain_graph=True)) == [SCALE[backend]]
    assert names(lambda: loss.backward(one)) == [SCALE[backend]]


def test_all_gradients_of_a_loss_are_scaled_in_one_launch(backend, device_work):
    case = make_implicit(PRACTICE["CIFAR"], torch.float32, predictions=torch.bfloat16).on()
    leaves = [v.requires_grad_() for v in (case.student, case.teacher, case.fake)]
    loss = fdk.score_implicit_loss(*leaves, backend=backend)
    three = torch.full_like(loss, 3.0)
    ones = torch.autograd.grad(loss, leaves, retain_graph=True)
    work = [each.name for each in device_work(lambda: torch.autograd.grad(loss, leaves, three, retain_graph=True))]
    assert work == [SCALE[backend]]
    for scaled, one in zip(torch.autograd.grad(loss, leaves, three), ones, strict=True):
        torch.testing.assert_close(scaled, 3 * one, rtol=2**-7, atol=0)


@pytest.mark.parametrize("dtype", (torch.bfloat16, torch.float32), ids=str)
@pytest.mark.parametrize("schedule", SCHEDULES, ids=str)
def test_an_upstream_of_one_moves_nothing(backend, schedule, dtype):
    case = schedule.batch(dtype)
    student = case.student.requires_grad_()
    loss = case.call(backend, student)
    saved = [v.data_ptr() for v in loss.grad_fn.saved_tensors if v.shape == student.shape]
    loss.backward()
    assert [student.grad.data_ptr()] == saved


@pytest.mark.parametrize("name", ("CIFAR", "Wan", "pixels"))
def test_extra_memory(backend, name):
    """A call allocates the gradient, and little that depends on the batch alone."""
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


def compiled_step(backend, mode, **options):
    def step(student, teacher, fake, logits, t):
        loss = fdk.fused_fdiv_loss(student * 1.0, teacher, fake, logits, t, backend=backend, **options)
        return loss * 2.0

    return torch.compile(step, fullgraph=True, mode=mode)


@pytest.mark.parametrize("dtype", (torch.bfloat16, torch.float32), ids=str)
@pytest.mark.parametrize("normalized", (False, True))
@pytest.mark.parametrize("mode", (None, "reduce-overhead"))
def test_compiled_with_changing_batch(backend, mode, normalized, dtype, fresh_compiler):
    """Forward and backward equal eager's, with at most one recompilation; batches repeat until graphs are replayed."""
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
