"""fdiv_weight is right to 1e-6 wherever the true value is a normal fp32 number, for any dtype and logits to ±80."""

import math

import pytest
import torch

import fdkernels as fdk
from tests import oracle
from tests.cases import WeightCase, make, normalizer
from tests.device import on_device

pytestmark = pytest.mark.contract("exactness", op="fdiv_weight")

NAMES = (*oracle.F, "alpha(0.5)", "alpha(-0.75)", "alpha(1)")


def check(backend, logits, t=None, **options):
    case = WeightCase(logits, t, options)
    expected, weight = case.expected(), case.call(backend)
    assert not weight.requires_grad
    case.hold(case.outcome(weight), expected)
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
    """h spans e^±160: the batch mean must not overflow on the way."""
    logits = torch.tensor([-80.0, -79.0, -3.0, 0.0, 2.0, 78.0, 79.5, 80.0])
    check(backend, logits, divergence=name, ratio_range=None)


@pytest.mark.parametrize("alias", oracle.ALIASES)
def test_aliases(backend, alias):
    logits = torch.linspace(-2, 2, 9)
    check(backend, logits, divergence=alias)


def test_logits_beyond_every_float(backend):
    """Huge logits are clamped. Infinite logits and NaN are non-finite samples, and leave the others alone."""
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


@pytest.mark.contract("state", op="fdiv_weight")
@pytest.mark.parametrize("name", ("js", "kl", "neyman", "alpha(2.5)"))
@pytest.mark.parametrize("training", (True, False))
def test_normalizer(backend, name, training):
    case = make((32, 1), seed=3)
    state = normalizer(5).train(training)
    check(backend, case.logits, case.t, divergence=name, normalizer=state)


def test_large_batches_and_many_heads(backend):
    case = make((3000, 1), heads=17, seed=4)
    check(backend, case.logits, case.t, divergence="js", normalizer=normalizer(10))


@pytest.mark.contract("layouts", op="fdiv_weight")
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
    """The fused op gives the same gradient if fdiv_weight's result is passed as weight=."""
    case = make((8, 3, 8, 8), divergence="kl", scale=None)
    weight = on_device(fdk.fdiv_weight)(case.logits, case.t, divergence="kl", backend=backend)
    given = case.but(logits=None, t=None, weight=weight)
    torch.testing.assert_close(case.run(backend).grad, given.run(backend).grad, rtol=3e-7, atol=0)


NAN = math.nan
# h at r = infinity and at r = 0; NaN where log h is not below infinity (Le Cam's is infinity - infinity there).
LIMITS = {
    "rkl": (1, 1), "kl": (NAN, 0), "js": (1, 0), "softened_rkl": (0, 1), "squared_hellinger": (NAN, 0),
    "jeffreys": (NAN, 1), "neyman": (0, NAN), "pearson": (NAN, 0), "le_cam": (NAN, 0), "alpha(0.5)": (NAN, 0),
    "alpha(-0.75)": (0, NAN), "alpha(1)": (NAN, 0),
}  # fmt: skip


def loaded(*means):
    """A normalizer with a state that no update gives."""
    state = normalizer(len(means)).eval()
    with torch.no_grad():
        state.mean.copy_(torch.tensor(means))
    return state


@pytest.mark.parametrize("normalize", (True, False))
@pytest.mark.parametrize("mean", (0.0, math.inf, NAN, -1.0))
@pytest.mark.parametrize("name", NAMES)
def test_a_weight_that_overflows_drops_its_sample_alone(backend, name, mean, normalize):
    """A bin's mean is 0, infinity or no ratio's: weights that overflow are NaN, the others are as without them."""
    logits, t = torch.tensor([0.5, 1.0, -0.5]), torch.tensor([0.1, 0.9, 0.8])
    options = {"divergence": name, "normalizer": loaded(mean, 2.0), "normalize_weight": normalize}
    weight = on_device(fdk.fdiv_weight)(logits, t, backend=backend, **options)
    limit = {0.0: LIMITS[name][0], math.inf: LIMITS[name][1]}.get(mean, 1 if name == "rkl" else NAN)
    expected = torch.tensor([limit, *oracle.weights(logits[1:], t[1:], **options | {"normalize_weight": False}).raw])
    if normalize:
        expected /= expected.nanmean()
    torch.testing.assert_close(weight, expected.float(), rtol=1e-6, atol=0, equal_nan=True)


def test_weights_of_0_leave_nothing_in_a_large_batch(backend):
    """More samples with h = 0 than a kernel adds up at a time come before all others."""
    batch = 4096
    logits, t = torch.linspace(-1, 1, batch), torch.full((batch,), 0.9)
    t[: batch - 8] = 0.1
    state = loaded(math.inf, 2.0)
    weight = on_device(fdk.fdiv_weight)(logits, t, divergence="kl", normalizer=state, backend=backend)
    rest = logits[-8:].double().exp()
    expected = torch.cat((torch.zeros(batch - 8, dtype=torch.float64), rest * batch / rest.sum()))
    torch.testing.assert_close(weight, expected.float(), rtol=1e-6, atol=0)


@pytest.mark.contract("exactness")
@pytest.mark.parametrize("registered", (False, True))
def test_figures_beside_a_weight_that_overflows(backend, registered):
    """The sample's ratio counts, its weight does not; the normalizer or a registered divergence makes it overflow."""
    logits, t = torch.tensor([9.0, 1.0, -0.5, 2.0]), torch.tensor([-0.5, 0.9, 0.8, math.nan])
    divergence = fdk.Divergence("kl_below_5", lambda L: torch.where(L > 2, torch.inf, L)) if registered else "kl"
    state = loaded(1.0 if registered else 0.0, 1.0)
    case = make((4, 3, 5, 6), divergence=divergence, normalizer=state).but(logits=logits, t=t)
    outcome = case.but(nonfinite="zero").run(backend, stats=True)
    stats = outcome.stats
    h = logits[1:3].double().exp()
    expected = [h.min(), h.mean(), h.max(), h.sum() ** 2 / (4 * (h**2).sum()), (20 + h.sum()) / 3, 1 / 3, 1 / 3]
    torch.testing.assert_close(torch.stack(stats[1:8]), torch.tensor(expected).double(), rtol=1e-6, atol=0)
    used = torch.tensor([NAN, *h / h.mean(), NAN], dtype=torch.float64)
    torch.testing.assert_close(stats.weight, used, rtol=1e-6, atol=0, equal_nan=True)
    assert stats.nonfinite_samples == 2
    assert [bool(g.any()) for g in outcome.grad] == [False, True, True, False]
    assert case.run(backend).grad.isnan().flatten(1).all(1).tolist() == [True, False, False, True]


@pytest.mark.contract("exactness")
@pytest.mark.parametrize("dtype", (torch.float32, torch.bfloat16, torch.float64), ids=str)
@pytest.mark.parametrize("shape", ((4, 1), (4, 1, 1, 1), (4, 1, 1, 1, 1), (1,), (), (1, 1, 1, 1)), ids=str)
def test_weight_of_any_shape_that_is_one_number_a_sample(backend, shape, dtype):
    case = make((4, 3, 5, 6), heads=None, weight=None)
    values = torch.tensor([0.5, 1.0, 2.0, 0.25], dtype=dtype) if shape[:1] == (4,) else torch.tensor(0.75, dtype=dtype)
    expected = case.but(weight=values.expand(4).contiguous()).run(backend)
    found = case.but(weight=values.reshape(shape)).run(backend)
    assert torch.equal(found.grad, expected.grad) and torch.equal(found.loss, expected.loss)


@pytest.mark.contract("exactness")
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
