"""The noise that `add_noise` draws: the same on every backend and in every layout, and standard normal."""

import math

import pytest
import torch
import torch.utils.checkpoint

import fdkernels as fdk
from fdkernels import testing
from fdkernels._op import registry
from fdkernels._op.arguments import Table
from fdkernels.noising import reference
from fdkernels.noising.arguments import NoisingArguments
from tests import device
from tests.cases import same_bits
from tests.layouts import LAYOUTS
from tests.noising import doubled, normals, philox

pytestmark = pytest.mark.contract("random", op="noising")

DTYPES = (torch.bfloat16, torch.float16, torch.float32, torch.float64)


def generator(seed):
    return torch.Generator(device.name()).manual_seed(seed)


def drawn(x0, backend, seed=1, alpha=0.6180339887, sigma=0.7861513778):
    """(x_t, noise, the call's seed) on the CPU."""
    source = generator(seed)
    state = source.get_state()
    x_t, noise = fdk.add_noise(
        device.place(x0), device.place(alpha), device.place(sigma), generator=source, return_noise=True, backend=backend
    )
    again = generator(seed)
    again.set_state(state)
    integer = torch.randint(2**63 - 1, (1,), device=device.name(), generator=again).item()
    return x_t.cpu(), noise.cpu(), integer


@pytest.mark.host_code("the specification")
@pytest.mark.backends("reference")
def test_philox_known_answers(backend):
    """The vectors of Random123, then the specification against plain integers."""
    ones = 0xFFFFFFFF
    assert philox((0, 0, 0, 0), (0, 0)) == [0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8]
    assert philox((ones,) * 4, (ones, ones)) == [0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD]
    pi = (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344), (0xA4093822, 0x299F31D0)
    assert philox(*pi) == [0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1]
    seed, counters = 2**63 - 3, torch.tensor([0, 1, 2**31, 2**32 + 5, 2**60])
    found = torch.stack(reference.philox(torch.tensor(seed), counters), 1).tolist()
    for counter, words in zip(counters.tolist(), found, strict=True):
        assert words == philox((counter & ones, counter >> 32, 0, 0), (seed & ones, seed >> 32))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", ((1, 1), (4, 3, 8, 8), (3, 5, 7), (2, 513), (7, 1030), (5, 2)), ids=str)
def test_the_numbers(backend, shape, dtype):
    """Number i belongs to element i, counted through the batch; x_t is made of the noise that is returned."""
    x0 = torch.randn(shape, generator=torch.Generator().manual_seed(2)).to(dtype)
    x_t, noise, seed = drawn(x0, backend)
    expected = torch.from_numpy(normals(seed, 0, x0.numel())).view(shape)
    if dtype in (torch.bfloat16, torch.float16):
        assert testing.ulp_error(noise, expected).max() <= 0.51  # rounded from float32
    else:
        torch.testing.assert_close(noise.double(), expected, rtol=0, atol=1e-6 if dtype == torch.float32 else 1e-14)
    testing.assert_gradient(x_t, 0.6180339887 * x0.double() + 0.7861513778 * noise.double())


@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts_have_the_same_noise(backend, layout):
    x0 = torch.randn(4, 3, 6, 10, generator=torch.Generator().manual_seed(2))
    alpha, sigma = torch.linspace(0.1, 0.9, 12).view(4, 3), torch.linspace(1, 0.2, 4)
    x_t, noise, seed = drawn(x0, backend, alpha=alpha, sigma=sigma)
    placed = LAYOUTS[layout](x0)
    other_x_t, other_noise, other_seed = drawn(placed, backend, alpha=alpha, sigma=sigma)
    assert seed == other_seed and same_bits(noise, other_noise) and same_bits(x_t, other_x_t)
    testing.assert_gradient(x_t, doubled(alpha, x0) * x0.double() + doubled(sigma, x0) * noise.double())
    if layout in ("channels_last", "transposed"):
        assert other_x_t.stride() == placed.stride() and other_noise.stride() == placed.stride()


def test_a_generator_gives_new_noise_each_time(backend):
    x0, source = device.place(torch.zeros(2, 40)), generator(0)
    first, second = (fdk.add_noise(x0, 1.0, 1.0, generator=source, backend=backend) for _ in range(2))
    assert not torch.equal(first, second)
    again = fdk.add_noise(x0, 1.0, 1.0, generator=generator(0), backend=backend)
    assert torch.equal(first, again)
    torch.manual_seed(5)
    first = fdk.add_noise(x0, 1.0, 1.0, backend=backend)
    second = fdk.add_noise(x0, 1.0, 1.0, backend=backend)
    torch.manual_seed(5)
    assert torch.equal(first, fdk.add_noise(x0, 1.0, 1.0, backend=backend)) and not torch.equal(first, second)


def test_the_caller_gets_given_noise_back(backend):
    x0 = device.place(torch.zeros(2, 5, dtype=torch.bfloat16))
    noise = device.place(torch.linspace(-1, 1, 10).view(2, 5))
    x_t, same = fdk.add_noise(x0, 1.0, 1.0, noise, return_noise=True, backend=backend)
    assert same is noise and torch.equal(x_t, noise.bfloat16())


def sample(backend, count, seed=1, dtype=torch.float32):
    return drawn(torch.zeros(1, count, dtype=dtype), backend, seed)[1].double().view(-1)


def test_the_distribution(backend):
    """Moments, tails, and Kolmogorov's distance to the normal distribution; each within five standard errors."""
    z = sample(backend, 8_192 if device.is_slow(backend) else 1 << 20)
    n = z.numel()
    for power, moment in ((1, 0), (2, 1), (3, 0), (4, 3), (6, 15)):
        variance = math.prod(range(1, 2 * power, 2)) - moment**2
        assert abs(z.pow(power).mean() - moment) < 5 * math.sqrt(variance / n), power
    for bound in (1.0, 2.0, 3.0):
        p = math.erfc(bound / math.sqrt(2))
        assert abs((z.abs() > bound).double().mean() - p) < 5 * math.sqrt(p * (1 - p) / n), bound
    steps = torch.special.ndtr(z.sort().values)
    assert (steps - (torch.arange(n) + 0.5) / n).abs().max() < 2 / math.sqrt(n)
    assert z.abs().max() < 6.8


def test_neighbors_and_streams_are_independent(backend):
    """Correlations of numbers and of their squares, at small distances and between streams of different seeds."""
    n = 4_096 if device.is_slow(backend) else 1 << 18
    z, other = sample(backend, n), sample(backend, n, seed=2)
    pairs = [(z[:-lag], z[lag:]) for lag in (1, 2, 3, 4, 5, 8, 64, 1024)] + [(z, other), (z[:-1], other[1:])]
    for a, b in pairs:
        assert abs((a * b).mean()) < 5 / math.sqrt(n)
        assert abs(((a * a - 1) * (b * b - 1)).mean()) < 10 / math.sqrt(n)


def test_every_bit_of_the_seed_counts(backend):
    """Streams of seeds that differ in one bit: uncorrelated, and no run of four numbers of one is in another."""
    seeds = (0, 1, 1 << 31, 1 << 32, 1 << 62, -1, -(1 << 63))
    n = 2_048 if device.is_slow(backend) else 1 << 16
    streams = torch.stack([raw(backend, seed, n) for seed in seeds])
    correlation = streams @ streams.T / n - torch.eye(len(seeds), dtype=torch.float64)
    assert correlation.abs().max() < 5 * math.sqrt(2 / n)
    runs = streams.view(-1, 4)
    assert len(runs.unique(dim=0)) == len(runs)


def raw(backend, seed, count):
    """The first numbers of a seed's stream."""
    call = NoisingArguments(
        torch.zeros(1, count), None, torch.tensor([seed]), "noisy", "sample", Table(), Table(), 1.0, 1.0, 1.0, True
    )
    call = NoisingArguments(*map(device.place, call))
    return registry.ops["noising"].run(backend, call, ())[1].cpu().double().view(-1)


@pytest.mark.backends("reference", "native")
@pytest.mark.cpu_only("threads")
@pytest.mark.parametrize("shape", ((3, 70_001), (7_000, 3), (1, 262_147)), ids=str)
def test_threads_do_not_matter(backend, shape):
    x0, threads, found = torch.zeros(shape), torch.get_num_threads(), []
    try:
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            found.append(drawn(x0, backend)[1])
    finally:
        torch.set_num_threads(threads)
    assert all(same_bits(found[0], other) for other in found)
    last = torch.from_numpy(normals(drawn(x0, backend)[2], x0.numel() - 9, 9))
    torch.testing.assert_close(found[0].double().view(-1)[-9:], last, rtol=0, atol=1e-6)


def test_activation_checkpointing_draws_the_same_noise(backend):
    x0 = device.place(torch.randn(4, 50, generator=torch.Generator().manual_seed(0))).requires_grad_()

    def step(x0):
        x_t, noise = fdk.add_noise(x0, 0.5, 2.0, return_noise=True, backend=backend)
        return (x_t * noise).square().sum()

    for reentrant in (False, True):
        torch.manual_seed(3)
        (plain,) = torch.autograd.grad(step(x0), x0)
        torch.manual_seed(3)
        checkpointed = torch.utils.checkpoint.checkpoint(step, x0, use_reentrant=reentrant)
        x0.grad = None
        checkpointed.backward()
        assert torch.equal(x0.grad, plain)


@pytest.mark.host_code("what PyTorch compiles")
@pytest.mark.usefixtures("fresh_compiler")
@pytest.mark.parametrize("compiler", ("aot_eager", "inductor"))
def test_a_compiled_step_draws_anew(backend, compiler):
    step = torch.compile(
        lambda x0: fdk.add_noise(x0, 0.5, 2.0, return_noise=True, backend=backend), backend=compiler, fullgraph=True
    )
    x0 = device.place(torch.ones(3, 400))
    (first, noise), (second, _) = step(x0), step(x0)
    assert not torch.equal(first, second)
    torch.testing.assert_close(first, 0.5 + 2 * noise)
    assert abs(noise.mean()) < 0.15 and abs(noise.std() - 1) < 0.1
