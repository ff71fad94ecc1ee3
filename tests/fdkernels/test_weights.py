"""fdiv_weight: relative 1e-6 wherever the true value is a normal fp32 number, from any dtype, up to logits of ±80."""

import pytest
import torch

import fdkernels as fdk
from fdkernels import testing
from tests import oracle
from tests.cases import make, normalizer
from tests.device import on_device

pytestmark = pytest.mark.contract("weights")

NAMES = (*oracle.F, "alpha(0.5)", "alpha(-0.75)", "alpha(1)")


def check(backend, logits, t=None, **options):
    expected = oracle.weights(logits, t, **options)
    weight = on_device(fdk.fdiv_weight)(logits, t, backend=backend, **options)
    assert weight.dtype == (torch.float64 if logits.dtype == torch.float64 else torch.float32)
    assert weight.shape == (len(logits),) and not weight.requires_grad
    exact = logits.dtype == torch.float64 and options.get("normalizer") is None
    testing.assert_weight(weight, torch.from_numpy(expected.weight), relative=1e-13 if exact else 1e-6)
    return weight, expected


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("dtype", (torch.float32, torch.bfloat16, torch.float16, torch.float64), ids=str)
def test_unbounded_up_to_80(backend, name, dtype):
    logits = torch.tensor([-80, -79.3, -41.7, -20.6, -3.1, -0.02, 0, 0.3, 1.7, 12.9, 36.4, 80, 79.1]).to(dtype)
    check(backend, logits, divergence=name, ratio_range=None, normalize_weight=False)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("normalize", (True, False))
def test_default_range(backend, name, normalize):
    logits = torch.linspace(-6, 6, 24).reshape(12, 2) ** 3 / 20
    check(backend, logits, divergence=name, normalize_weight=normalize)


@pytest.mark.parametrize("name", ("js", "kl", "pearson", "neyman", "le_cam"))
def test_normalize_over_a_batch_of_huge_spread(backend, name):
    """h spans e^±160: the batch mean may not overflow on the way."""
    logits = torch.tensor([-80.0, -79.0, -3.0, 0.0, 2.0, 78.0, 79.5, 80.0])
    check(backend, logits, divergence=name, ratio_range=None)


@pytest.mark.parametrize("alias", oracle.ALIASES)
def test_aliases(backend, alias):
    logits = torch.linspace(-2, 2, 9)
    check(backend, logits, divergence=alias)


def test_logits_beyond_every_float(backend):
    """Huge logits are clamped; infinite ones and NaN are non-finite samples, and leave the others alone."""
    largest = torch.finfo(torch.float32).max
    logits = torch.tensor([largest, -largest, 1e30, 0.5, -0.5, torch.inf, -torch.inf, torch.nan])
    weight, _ = check(backend, logits, divergence="kl")
    assert weight.isnan().tolist() == [False] * 5 + [True] * 3


def test_heads_average_logits_not_ratios(backend):
    logits = torch.tensor([[2.0, -2.0, 3.0], [0.0, 1.0, -1.0], [-70.0, 5.0, 71.0]])
    weight, _ = check(backend, logits, divergence="kl", normalize_weight=False, ratio_range=None)
    torch.testing.assert_close(weight, logits.mean(1).exp(), rtol=1e-5, atol=0)


def test_heads_with_opposite_infinities(backend):
    logits = torch.tensor([[torch.inf, -torch.inf], [1.0, 2.0], [torch.inf, 1.0], [0.0, 0.0]])
    weight, _ = check(backend, logits, divergence="js")
    assert weight.isnan().tolist() == [True, False, True, False]


@pytest.mark.parametrize("name", ("js", "kl", "neyman", "alpha(2.5)"))
@pytest.mark.parametrize("training", (True, False))
def test_normalizer(backend, name, training):
    case = make((32, 1), seed=3)
    state = normalizer(5).train(training)
    _, expected = check(backend, case.logits, case.t, divergence=name, normalizer=state)
    torch.testing.assert_close(state.mean.double(), torch.from_numpy(expected.mean), rtol=1e-6, atol=0)


def test_large_batches_and_many_heads(backend):
    case = make((3000, 1), heads=17, seed=4)
    check(backend, case.logits, case.t, divergence="js", normalizer=normalizer(10))


def test_layout_of_logits(backend):
    logits = torch.randn(24, 8, generator=torch.Generator().manual_seed(0))
    for view in (logits[::3, 1:6], logits.T, logits[:, :1].expand(24, 5), logits[3:, 2], logits[0]):
        check(backend, view, divergence="kl")


def test_ranges_are_symmetric_and_exact(backend):
    logits = torch.tensor([-3.0, -0.5, 0.0, 0.5, 3.0])
    weight, _ = check(backend, logits, divergence="kl", ratio_range=(0.5, 2.0), normalize_weight=False)
    # float64 rounds to the end points themselves.
    assert weight[0] == 0.5 and weight[-1] == 2.0


def test_the_weights_of_the_loss_are_these(backend):
    """The fused op's h, read back from its gradient, is fdiv_weight's."""
    case = make((8, 3, 8, 8), divergence="kl", scale=None)
    weight = on_device(fdk.fdiv_weight)(case.logits, case.t, divergence="kl", backend=backend)
    given = case.but(logits=None, t=None, weight=weight)
    torch.testing.assert_close(case.run(backend).grad, given.run(backend).grad, rtol=3e-7, atol=0)


@pytest.mark.backends("reference", "native")
def test_a_state_without_mass_drops_its_samples_alone(backend):
    """A bin's mean of 0, which no update gives: the weights that overflow are NaN, the others as without them."""
    normalizer = fdk.RatioNormalizer(2).eval()
    with torch.no_grad():
        normalizer.mean.copy_(torch.tensor([0.0, 2.0]))
    logits, t = torch.tensor([0.5, 1.0, -0.5]), torch.tensor([0.1, 0.9, 0.8])
    options = {"divergence": "kl", "backend": backend}
    weight = on_device(fdk.fdiv_weight)(logits, t, normalizer=normalizer, **options)
    expected = on_device(fdk.fdiv_weight)(logits[1:], t[1:], normalizer=normalizer, **options)
    assert weight[0].isnan()
    torch.testing.assert_close(weight[1:], expected, rtol=1e-6, atol=0)


@pytest.mark.parametrize("dtype", (torch.float32, torch.bfloat16, torch.float64), ids=str)
@pytest.mark.parametrize("shape", ((4, 1), (4, 1, 1, 1), (4, 1, 1, 1, 1), (1,), (), (1, 1, 1, 1)), ids=str)
def test_weight_of_any_shape_that_is_one_number_a_sample(backend, shape, dtype):
    case = make((4, 3, 5, 6), heads=None, weight=None)
    values = torch.tensor([0.5, 1.0, 2.0, 0.25], dtype=dtype) if shape[:1] == (4,) else torch.tensor(0.75, dtype=dtype)
    expected = case.but(weight=values.expand(4).contiguous()).run(backend)
    found = case.but(weight=values.reshape(shape)).run(backend)
    assert torch.equal(found.grad, expected.grad) and torch.equal(found.loss, expected.loss)


def test_weight_of_strides_and_of_a_batch_of_one(backend):
    case = make((1, 3, 5, 6), heads=None, weight=torch.tensor([0.5]))
    expected = case.run(backend)
    for shape in ((), (1,), (1, 1), (1, 1, 1, 1)):
        assert torch.equal(case.but(weight=torch.full(shape, 0.5)).run(backend).grad, expected.grad)
    case = make((4, 3, 5, 6), heads=None, weight=torch.tensor([0.5, 1.0, 2.0, 0.25]))
    strided = torch.stack((case.options["weight"], torch.zeros(4)), 1)[:, :1]
    assert strided.stride() == (2, 1)
    assert torch.equal(case.but(weight=strided).run(backend).grad, case.run(backend).grad)
    transposed = case.options["weight"].expand(1, 4).t()
    assert torch.equal(case.but(weight=transposed).run(backend).grad, case.run(backend).grad)
