"""Tests that need a process of their own: first calls in unusual places, and more captured calls than tickets."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from torch.cuda.green_contexts import GreenContext

from tests.gpu.calls import KERNELS, PLAN, SCHEDULES

pytestmark = [pytest.mark.gpu, pytest.mark.backends(*KERNELS)]

ROOT = Path(__file__).parents[2]


def run(script, *arguments, plan=""):
    child = subprocess.run(
        [sys.executable, "-c", script, *arguments],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT), PLAN: plan},
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert child.returncode == 0, child.stdout + child.stderr
    return child.stderr


def written(shape):
    return "x".join(map(str, shape))


COMPILED = """
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


@pytest.mark.parametrize("schedule", SCHEDULES, ids=str)
def test_a_first_call_that_is_compiled(backend, schedule):
    """Inductor's CUDA graphs watch their memory: what a first call keeps for later ones must not come from it."""
    run(COMPILED, backend, written(schedule.shape), plan=schedule.plan)


CAPTURED = """
import sys, torch, fdkernels as fdk

backend, shape = sys.argv[1], tuple(map(int, sys.argv[2].split("x")))
student, teacher, fake = (torch.randn(shape, device="cuda") for _ in range(3))
logits, one = torch.randn(shape[0], device="cuda"), torch.ones((), device="cuda")
student.requires_grad_()

def step():
    value = fdk.fused_fdiv_loss(student, teacher, fake, logits, backend=backend)
    return value.detach(), *torch.autograd.grad(value, student, one)

torch.cuda.synchronize()
graph = torch.cuda.CUDAGraph()
with torch.cuda.graph(graph):
    found = step()
for _ in range(3):
    for v in found:
        v.fill_(torch.nan)
    graph.replay()
    for again, expected in zip(found, step(), strict=True):
        assert torch.equal(again, expected), (again, expected)
"""


@pytest.mark.backends("native")  # Triton compiles in its first call, which a capture may not survive
@pytest.mark.parametrize("schedule", SCHEDULES, ids=str)
def test_a_first_call_that_is_captured(backend, schedule):
    """A first call asks the device for its limits, loads kernels and takes tickets: none of this breaks a capture."""
    run(CAPTURED, backend, written(schedule.shape), plan=schedule.plan)


MANY_CAPTURED = """
import os, sys, torch, fdkernels as fdk

backend, name, *plans = sys.argv[1:]
TICKETS = 4096
student, teacher, fake = (torch.randn(3, 64, device="cuda") for _ in range(3))
logits = torch.randn(3, device="cuda")

def loss(n):
    os.environ[name] = plans[n % len(plans)]
    return fdk.fused_fdiv_loss(student, teacher, fake, logits, backend=backend)

def check(found):
    for k, plan in enumerate(plans):
        values = torch.stack(found[k :: len(plans)])
        assert (values == expected[k]).all(), (plan, (values != expected[k]).nonzero().flatten()[:9])

expected = [loss(k).clone() for k in range(len(plans))]
side = torch.cuda.Stream()
side.wait_stream(torch.cuda.current_stream())
graph = torch.cuda.CUDAGraph()
with torch.cuda.graph(graph):
    found = [loss(n) for n in range(TICKETS + 40)]
for _ in range(3):
    for v in found:
        v.fill_(torch.nan)
    graph.replay()
    check(found)
# A stream that comes too late for a ticket of its own, beside a replay.
graph.replay()
with torch.cuda.stream(side):
    late = [loss(n) for n in range(40)]
torch.cuda.synchronize()
check(late)
check(found)
"""


def test_more_captured_calls_than_tickets(backend):
    """Beyond the pool, each captured call zeroes its own ticket; the call with the pool's last one goes on using it."""
    run(MANY_CAPTURED, backend, PLAN, *(("cluster:1", "grid:2") if backend == "native" else ("",)))


PART_OF_A_DEVICE = """
import sys, torch, fdkernels as fdk
from torch.cuda.green_contexts import GreenContext

shape = (2, 16, 21, 60, 104)
student, teacher, fake = (torch.randn(shape, device="cuda") for _ in range(3))
logits = torch.randn(shape[0], device="cuda")
student.requires_grad_()

def step():
    student.grad = None
    value = fdk.fused_fdiv_loss(student, teacher, fake, logits, backend=sys.argv[1])
    value.backward()
    return value.detach(), student.grad

wanted = step()
torch.cuda.synchronize()
part = GreenContext.create(num_sms=16, device_id=0)  # kept: it is destroyed with its last reference
with torch.cuda.stream(part.Stream()):
    found = [step() for _ in range(3)]
torch.cuda.synchronize()
for value, gradient in found:
    torch.testing.assert_close(value, wanted[0], rtol=1e-6, atol=0)
    torch.testing.assert_close(gradient, wanted[1], rtol=1e-6, atol=0)
"""


@pytest.mark.skipif(not hasattr(GreenContext, "Stream"), reason="this torch has no streams of green contexts")
def test_a_context_that_has_a_part_of_the_device(backend):
    """A grid of all multiprocessors is refused there: calls take smaller ones, and one message says so."""
    assert run(PART_OF_A_DEVICE, backend).count("was refused") == (backend == "native")
