"""`add_noise` on a GPU: shapes from practice, offsets beyond 32 bits, no sync, replays that draw anew, launches."""

import pytest
import torch

import fdkernels as fdk
from fdkernels import backends, testing
from fdkernels._op import registry
from fdkernels._op.arguments import Table
from fdkernels.noising.arguments import NOISING, NoisingArguments
from tests.cases import same_bits
from tests.gpu.calls import KERNELS, PRACTICE
from tests.gpu.test_streams import no_host_sync
from tests.noising import make_noising

pytestmark = [pytest.mark.gpu, pytest.mark.backends(*KERNELS)]

DTYPES = (torch.bfloat16, torch.float16, torch.float32, torch.float64)


@pytest.mark.parametrize("levels", ("per sample", "per row", "per element", "flow"))
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", PRACTICE)
def test_practice(backend, shape, dtype, levels):
    make_noising(PRACTICE[shape], dtype, levels=levels).check(backend)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", ((64, 3, 32, 32), (8, 4, 128, 128), (3, 1001), (5, 3, 7, 11)), ids=str)
def test_the_numbers_are_the_cpus(backend, shape, dtype):
    found = []
    for device, serving in (("cuda", backend), ("cpu", "native")):
        call = NoisingArguments(
            torch.zeros(shape, dtype=dtype, device=device), None, torch.tensor([2**62 + 12345], device=device), "noisy",
            "sample", Table(), Table(), 1.0, 1.0, 1.0, True,
        )  # fmt: skip
        assert backends.choose(serving, device) == serving  # loads it
        found.append(registry.kernels[f"noising_{serving}"](*NOISING.operands(call))[1].cpu())
    if dtype in (torch.bfloat16, torch.float16):
        assert testing.ulp_error(found[0], found[1].double()).max() <= 1
    else:
        torch.testing.assert_close(found[0], found[1], rtol=0, atol=2e-6 if dtype == torch.float32 else 2e-14)


def test_offsets_beyond_32_bits(backend):
    x0 = torch.zeros(3, 1 << 15, 22_000, dtype=torch.bfloat16, device="cuda")  # 2.16e9 elements
    x0[2, -1, -9:] = 3.0
    x_t = fdk.add_noise(x0, torch.tensor([1.0, 1.0, 2.0], device="cuda"), 1.0, x0, backend=backend)
    assert x_t[2, -1, -12:].tolist() == [0.0] * 3 + [9.0] * 9
    x_t = fdk.add_noise(x0, 0.0, 1.0, backend=backend)
    for part in (x_t[0, 0], x_t[1, 1 << 14], x_t[2, -1]):
        assert abs(part.float().mean()) < 0.04 and abs(part.float().std() - 1) < 0.03
    assert not torch.equal(x_t[2, -1], x_t[0, 0])


def test_no_host_sync(backend):
    case = make_noising(PRACTICE["SDXL"], torch.bfloat16).on("cuda")

    def step():
        x0 = case.x0.detach().requires_grad_()
        given = fdk.add_noise(x0, case.alpha, case.sigma, case.noise, backend=backend)
        drawn, noise = fdk.add_noise(x0, case.alpha, case.sigma, return_noise=True, backend=backend)
        (given + drawn).backward(noise)
        return x0.grad

    step()
    with no_host_sync():
        assert step().shape == case.x0.shape


def test_a_replay_draws_anew(backend):
    x0 = torch.randn(PRACTICE["SDXL"], device="cuda").bfloat16()
    side = torch.cuda.Stream()
    with torch.cuda.stream(side):
        fdk.add_noise(x0, 0.5, 0.5, return_noise=True, backend=backend)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        x_t, noise = fdk.add_noise(x0, 0.61803, 0.78615, return_noise=True, backend=backend)
    found = []
    for _ in range(3):
        graph.replay()
        testing.assert_gradient(x_t.cpu(), 0.61803 * x0.double().cpu() + 0.78615 * noise.double().cpu())
        assert abs(noise.float().mean()) < 0.01 and abs(noise.float().std() - 1) < 0.01
        found.append(noise.clone())
    assert not any(torch.equal(found[i], found[j]) for i, j in ((0, 1), (0, 2), (1, 2)))


def test_the_same_bits_every_time(backend):
    case = make_noising(PRACTICE["Wan"], torch.bfloat16, levels="per row")
    first = case.on("cuda").run(backend)
    assert all(first.same_bits(case.on("cuda").run(backend)) for _ in range(20))
    x0, generator = case.x0.cuda(), torch.Generator("cuda")
    one = fdk.add_noise(x0, 1.0, 1.0, generator=generator.manual_seed(3), backend=backend)
    assert same_bits(one, fdk.add_noise(x0, 1.0, 1.0, generator=generator.manual_seed(3), backend=backend))
