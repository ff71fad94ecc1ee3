"""`score_implicit_loss` on a GPU: shapes from practice, every schedule, no sync, CUDA graphs. Not yet run on one."""

import pytest
import torch

import fdkernels as fdk
from tests.gpu.calls import KERNELS, PRACTICE
from tests.gpu.test_streams import no_host_sync
from tests.implicit import make_implicit, weighted_implicit
from tools.gpu_check.stage import NO_SCHEDULE, PLAN

pytestmark = [pytest.mark.gpu, pytest.mark.backends(*KERNELS)]

DTYPES = (torch.bfloat16, torch.float16, torch.float32, torch.float64)
PLANS = ("cluster:1", "cluster:2", "cluster:4", "cluster:8", "cluster:16", "grid:1", "grid:2", "grid")


@pytest.mark.parametrize("kind", ("sid", "sim"))
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", PRACTICE)
def test_practice(backend, shape, dtype, kind):
    weighted_implicit(PRACTICE[shape], dtype, kind=kind).check(backend)


@pytest.mark.backends("native")
@pytest.mark.parametrize("plan", PLANS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", ((40, 3, 32, 32), (8, 4, 128, 128), (3, 2_100_003)), ids=str)
def test_schedules(backend, shape, dtype, plan, monkeypatch):
    monkeypatch.setenv(PLAN, plan)
    try:
        weighted_implicit(shape, dtype, kind="sim", reduction="none").check(backend)
    except ValueError as error:
        assert NO_SCHEDULE in str(error)
        pytest.skip("this schedule cannot hold the sample")


def test_the_same_bits_every_time(backend):
    """Far more blocks than multiprocessors, whose losses are added in their order."""
    case = make_implicit((12_288, 3, 32, 32), torch.bfloat16).on("cuda")
    first = case.run(backend)
    assert all(first.same_bits(case.run(backend)) for _ in range(200))


def test_no_host_sync_and_replay(backend):
    case = weighted_implicit(PRACTICE["SDXL"], torch.bfloat16, kind="sim").on("cuda")
    inputs = {name: getattr(case, name).detach().requires_grad_() for name in case.ORDER}

    def step():
        loss = fdk.score_implicit_loss(**inputs, backend=backend, **case.options)
        return loss, *torch.autograd.grad(loss, (*inputs.values(),))

    step()
    with no_host_sync():
        step()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        replayed = step()
    for seed in (1, 2):
        other = make_implicit(PRACTICE["SDXL"], torch.bfloat16, seed=seed)
        with torch.no_grad():
            for name, tensor in inputs.items():
                tensor.copy_(getattr(other, name))
        graph.replay()
        assert all(map(torch.equal, replayed, step()))


def test_memory(backend):
    """Beyond its gradients, a call takes little; an input without gradient takes none."""
    case = make_implicit(PRACTICE["SDXL"], torch.bfloat16).on("cuda")
    size = case.student.numel() * 2
    for wanted in (("student", "teacher", "fake"), ("fake",)):
        inputs = {name: getattr(case, name).detach().requires_grad_(name in wanted) for name in case.ORDER}
        fdk.score_implicit_loss(**inputs, backend=backend)
        torch.cuda.synchronize()
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        loss = fdk.score_implicit_loss(**inputs, backend=backend)
        assert torch.cuda.max_memory_allocated() - before <= len(wanted) * size + (1 << 20)
        del loss
