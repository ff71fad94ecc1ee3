"""The adversarial losses on a GPU: shapes of discriminators, many blocks, no sync, CUDA graphs. Not yet run on one."""

import pytest
import torch

import fdkernels as fdk
from tests.adversarial import make_discriminator, make_generator, make_penalty
from tests.gpu.calls import KERNELS
from tests.gpu.test_streams import no_host_sync

pytestmark = [pytest.mark.gpu, pytest.mark.backends(*KERNELS)]

DTYPES = (torch.bfloat16, torch.float16, torch.float32, torch.float64)
SHAPES = ((64,), (64, 4), (512, 8), (8, 1, 64, 64), (16, 1, 250, 250))


@pytest.mark.parametrize("reduction", ("mean", "none"))
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_practice(backend, shape, dtype, reduction):
    for kind in ("logistic", "hinge", "relativistic"):
        make_discriminator(shape, dtype, kind=kind, reduction=reduction, clamp=10.0).check(backend)
        make_generator(shape, dtype, kind=kind, reduction=reduction).check(backend)
    make_penalty(shape, dtype, sigma=0.1, reduction=reduction).check(backend)


@pytest.mark.parametrize("reduction", ("mean", "none"))
def test_the_same_bits_every_time(backend, reduction):
    """Many blocks, whose sums are added in their order."""
    case = make_discriminator((8, 1, 1024, 1024), torch.bfloat16, reduction=reduction).on("cuda")
    first = case.run(backend)
    assert all(first.same_bits(case.run(backend)) for _ in range(200))


def test_no_host_sync_and_replay(backend):
    case = make_discriminator((512, 8), torch.bfloat16).on("cuda")
    fake, real = (v.detach().requires_grad_() for v in (case.fake_logits, case.real_logits))

    def step():
        loss = fdk.discriminator_loss(fake, real, backend=backend)
        return loss, *torch.autograd.grad(loss, (fake, real))

    step()
    with no_host_sync():
        step()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        results = step()
    for seed in (1, 2):
        other = make_discriminator((512, 8), torch.bfloat16, seed=seed)
        with torch.no_grad():
            fake.copy_(other.fake_logits)
            real.copy_(other.real_logits)
        graph.replay()
        assert all(map(torch.equal, results, step()))
