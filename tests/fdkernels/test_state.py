"""The normalizer's state: once per call, in training mode only, fp32 whatever the model becomes, saved."""

import copy

import pytest
import torch

import fdkernels as fdk
from tests import oracle
from tests.cases import make, normalizer, same_bits
from tests.device import on_device

pytestmark = pytest.mark.contract("state")


@pytest.fixture
def case():
    return make((16, 3, 4, 4), seed=2)


def test_three_steps(backend, case):
    state = normalizer(6)
    for seed in range(3):
        step = make((16, 3, 4, 4), seed=seed)
        expected = oracle.weights(step.logits, step.t, normalizer=state)
        loss = step.call(backend, step.student.requires_grad_(), normalizer=state)
        after_forward = state.mean.clone()
        loss.backward()
        assert same_bits(after_forward, state.mean), "the backward changed the state"
        torch.testing.assert_close(state.mean.double(), torch.from_numpy(expected.mean), rtol=1e-6, atol=0)


def test_starts_at_one_and_only_visited_bins_move(backend, case):
    state = fdk.RatioNormalizer(8)
    assert torch.equal(state.mean, torch.ones(8))
    case.but(t=torch.full((16,), 0.3)).call(backend, normalizer=state)
    assert ((state.mean != 1) == (torch.arange(8) == 2)).all()


@pytest.mark.parametrize("grad", (True, False))
@pytest.mark.parametrize("training", (True, False))
def test_updates_in_training_mode_only(backend, case, training, grad):
    state = normalizer().train(training)
    before = state.mean.clone()
    with torch.set_grad_enabled(grad):
        case.call(backend, case.student.clone().requires_grad_(), normalizer=state)
    assert same_bits(before, state.mean) != training


def test_eval_uses_what_was_learned(backend, case):
    learned, fresh = normalizer().eval(), fdk.RatioNormalizer(4).eval()
    assert not torch.equal(
        case.but(normalizer=learned).check(backend).grad, case.but(normalizer=fresh).check(backend).grad
    )


def test_fdiv_weight_updates_once_too(backend, case):
    state, other = normalizer(), normalizer()
    on_device(fdk.fdiv_weight)(case.logits, case.t, normalizer=state, backend=backend)
    case.call(backend, normalizer=other)
    torch.testing.assert_close(state.mean, other.mean, rtol=1e-7, atol=0)


@pytest.mark.parametrize("dtype", (torch.bfloat16, torch.float16, torch.float64), ids=str)
def test_stays_fp32(backend, case, dtype):
    model = torch.nn.ModuleDict(
        {"net": torch.nn.Linear(2, 2), "normalizer": normalizer(edges=torch.tensor([0.1, 0.2, 0.6]))}
    )
    before = copy.deepcopy(model["normalizer"])
    model.to(dtype)
    state = model["normalizer"]
    assert model["net"].weight.dtype == dtype and state.mean.dtype == torch.float32
    assert state.edges.dtype == torch.float64 and torch.equal(state.edges, before.edges)
    assert same_bits(state.mean, before.mean)
    case.but(normalizer=state).check(backend)


def test_state_dict(backend, case):
    state = fdk.RatioNormalizer.from_samples(torch.rand(1000, generator=torch.Generator().manual_seed(0)) ** 3, bins=5)
    case.call(backend, normalizer=state)
    other = fdk.RatioNormalizer(5, edges=torch.tensor([0.1, 0.2, 0.3, 0.4]))
    other.load_state_dict(state.state_dict())
    assert same_bits(other.mean, state.mean) and same_bits(other.edges, state.edges)
    assert same_bits(case.but(normalizer=state).run(backend).grad, case.but(normalizer=other).run(backend).grad)


def test_version_counter(backend, case):
    """Autograd learns of the write: a graph that saved the old mean refuses to use the new one."""
    state = normalizer()
    version = state.mean._version
    leaf = torch.ones(4, requires_grad=True)
    saved = (leaf * state.mean).sum()
    case.call(backend, normalizer=state)
    assert state.mean._version > version
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        saved.backward()


def test_eval_leaves_the_version_alone(backend, case):
    state = normalizer().eval()
    version = state.mean._version
    case.call(backend, normalizer=state)
    assert state.mean._version == version


@pytest.mark.parametrize(
    "dtype",
    (torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.int64, torch.int32, torch.uint8),
    ids=str,
)
def test_any_real_t(backend, case, dtype):
    t = (torch.arange(16) * 60).to(dtype)
    case.but(t=t, normalizer=normalizer(7, t_range=(0, 1000))).check(backend)


def test_bin_edges(backend, case):
    """Uniform bins are right-open, decided in float64; outside goes to the end bins."""
    t = torch.tensor(
        [-5.0, 0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0, 7.0, 0.69999, 0.7000001, 0.3], dtype=torch.float64
    )
    case.but(t=t, normalizer=normalizer(10)).check(backend)
    for dtype in (torch.float32, torch.bfloat16):
        case.but(t=t.to(dtype), normalizer=normalizer(10)).check(backend)
    case.but(t=t, normalizer=normalizer(7, t_range=(-0.3, 0.8))).check(backend)


def test_unequal_bins(backend, case):
    edges = torch.tensor([0.05, 0.25, 0.7], dtype=torch.float64)
    t = case.t.double().clone()
    t[:4] = torch.tensor([0.05, 0.25, 0.7, torch.nextafter(edges[2], torch.tensor(0.0).double())])
    case.but(t=t, normalizer=normalizer(4, edges=edges)).check(backend)


def test_nonfinite_t_is_kept_out(backend, case):
    t = case.t.clone()
    t[:3] = torch.tensor([torch.nan, torch.inf, -torch.inf])
    outcome = case.but(t=t, normalizer=normalizer(4), nonfinite="zero").check(backend)
    assert outcome.mean.isfinite().all()


def test_nothing_finite_leaves_the_state(backend, case):
    state = normalizer()
    before = state.mean.clone()
    case.but(logits=torch.full((16,), torch.nan)).call(backend, normalizer=state)
    assert same_bits(before, state.mean)


def test_zero_decay_is_the_batch_alone(backend, case):
    state = normalizer(1, decay=0.0)
    case.call(backend, normalizer=state)
    ratio = (
        case.logits.double().mean(1).clamp(torch.tensor(0.1).double().log(), torch.tensor(20.0).double().log()).exp()
    )
    torch.testing.assert_close(state.mean.double(), ratio.mean().reshape(1), rtol=1e-6, atol=0)


def test_from_samples_has_equal_population():
    samples = torch.exp(
        torch.randn(10_000, generator=torch.Generator().manual_seed(0), dtype=torch.float64) * 1.2 - 0.4
    )
    state = fdk.RatioNormalizer.from_samples(samples, bins=10)
    counts = torch.bincount(torch.bucketize(samples, state.edges, right=True), minlength=10)
    assert counts.tolist() == [1000] * 10
    assert torch.equal(state.mean, torch.ones(10))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"bins": 0}, "^bins: .*got 0"),
        ({"decay": 1.0}, "^decay: .*got 1.0"),
        ({"decay": -0.1}, "^decay: .*got -0.1"),
        ({"decay": float("nan")}, "^decay: .*got nan"),
        ({"t_range": (1.0, 0.0)}, r"^t_range: .*got \(1.0, 0.0\)"),
        ({"t_range": (0.0, float("nan"))}, "^t_range: .*got"),
        ({"bins": 3, "edges": torch.tensor([0.1])}, r"^edges: expected shape \(2,\).*got \(1,\)"),
        ({"bins": 3, "edges": torch.tensor([0.2, 0.1])}, "^edges: expected .*increasing.*got"),
    ],
)
def test_bad_normalizers(arguments, message):
    with pytest.raises(ValueError, match=message):
        fdk.RatioNormalizer(**arguments)


@pytest.mark.parametrize("ratio_range", [(1e-300, 1e300), (1e-40, 2.0), (0.5, 1e36)])
def test_ratios_that_would_poison_the_state_are_refused(backend, ratio_range):
    state = fdk.RatioNormalizer(4)
    with pytest.raises(ValueError, match="ratio_range"):
        on_device(fdk.fdiv_weight)(
            torch.full((8,), 700.0), torch.rand(8), normalizer=state, ratio_range=ratio_range, backend=backend
        )
    assert torch.equal(state.mean, torch.ones(4))


def test_widest_range_keeps_the_state_finite(backend):
    state = fdk.RatioNormalizer(1, decay=0.0)
    for logit in (700.0, -700.0):
        weight = on_device(fdk.fdiv_weight)
        weight(torch.full((8,), logit), torch.rand(8), normalizer=state, ratio_range=None, backend=backend)
        assert torch.isfinite(state.mean).all() and (state.mean > 0).all()


def test_edges_lie_within_the_range():
    with pytest.raises(ValueError, match="t_range"):
        fdk.RatioNormalizer(4, edges=torch.tensor([1.0, 5.0, 20.0]))
