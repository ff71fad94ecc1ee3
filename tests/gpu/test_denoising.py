"""`denoising_loss` on a GPU: shapes from practice, many blocks, no sync, CUDA graphs. Not yet run on one."""

import pytest
import torch

import fdkernels as fdk
from tests.denoising import make_denoising, weighted
from tests.gpu.calls import KERNELS, PRACTICE
from tests.gpu.test_streams import no_host_sync

pytestmark = [pytest.mark.gpu, pytest.mark.backends(*KERNELS)]

DTYPES = (torch.bfloat16, torch.float16, torch.float32, torch.float64)


@pytest.mark.parametrize("reduction", ("mean", "none"))
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", PRACTICE)
def test_practice(backend, shape, dtype, reduction):
    weighted(PRACTICE[shape], dtype, reduction=reduction).check(backend)


def test_the_same_bits_every_time(backend):
    """Far more blocks than multiprocessors, whose sums are added in their order."""
    case = make_denoising((12_288, 3, 32, 32), torch.bfloat16, prediction="edm").on("cuda")
    first = case.run(backend)
    assert all(first.same_bits(case.run(backend)) for _ in range(200))


def test_no_host_sync_and_replay(backend):
    case = weighted(PRACTICE["SDXL"], torch.bfloat16).on("cuda")
    pred = case.pred.detach().requires_grad_()

    def step():
        loss = fdk.denoising_loss(pred, case.x0, case.noise, backend=backend, **case.options)
        return loss, torch.autograd.grad(loss, pred)[0]

    step()
    with no_host_sync():
        step()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        loss, gradient = step()
    for seed in (1, 2):
        other = weighted(PRACTICE["SDXL"], torch.bfloat16, seed=seed)
        with torch.no_grad():
            pred.copy_(other.pred)
            case.x0.copy_(other.x0)
            case.noise.copy_(other.noise)
        graph.replay()
        eager_loss, eager_gradient = step()
        assert torch.equal(loss, eager_loss) and torch.equal(gradient, eager_gradient)
