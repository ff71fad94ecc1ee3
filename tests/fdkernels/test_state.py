"""The normalizer's state: updated once per call, in training mode only; fp32 whatever the model becomes; saved."""

import copy

import pytest
import torch

import fdkernels as fdk
from tests import oracle
from tests.cases import make, normalizer, same_bits
from tests.device import on_device, place

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
    """Autograd sees the write: a graph that saved the old mean refuses to use the new one."""
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
    """Uniform bins are right-open and decided in float64; values outside go to the end bins."""
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


@pytest.mark.host_code("refused before any launch")
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


EDGES = (0.1, 0.2, 0.6)


@pytest.mark.parametrize("assign", (True, False))
@pytest.mark.parametrize("dtype", (torch.bfloat16, torch.float16, torch.float64), ids=str)
def test_loads_a_checkpoint_of_another_dtype(backend, case, dtype, assign):
    """load_state_dict(assign=True) takes a checkpoint's tensors as they are, in their dtype and strides."""
    model = torch.nn.ModuleDict({"normalizer": fdk.RatioNormalizer(4, edges=EDGES)})
    mean = torch.tensor([0.5, 1.0, 1.5, 2.0], dtype=dtype)
    strided = torch.stack((mean, mean), 1)[:, 0]
    checkpoint = {"normalizer.mean": strided, "normalizer.edges": torch.tensor([0.125, 0.25, 0.5], dtype=dtype)}
    model.load_state_dict(checkpoint, assign=assign)
    state = model["normalizer"]
    assert state.mean.dtype == torch.float32 and state.edges.dtype == torch.float64
    assert state.mean.tolist() == mean.tolist() and state.edges.tolist() == [0.125, 0.25, 0.5]
    case.but(normalizer=state).check(backend)


@pytest.mark.parametrize("assign", (True, False))
def test_checkpoints_of_another_shape(assign):
    state = fdk.RatioNormalizer(4, edges=EDGES)
    with pytest.raises(RuntimeError, match=r"size mismatch for mean.*torch.Size\(\[5\]\)"):
        state.load_state_dict({"mean": torch.ones(5), "edges": torch.tensor(EDGES)}, assign=assign)
    with pytest.raises(RuntimeError, match=r"size mismatch for edges"):
        state.load_state_dict({"mean": torch.ones(4), "edges": torch.ones(4)}, assign=assign)
    with pytest.raises(RuntimeError, match="Unexpected key.*edges"):
        fdk.RatioNormalizer(4).load_state_dict(state.state_dict(), assign=assign)


def fsdp_casts(state, dtype):
    """What FSDP1 does to buffers if `buffer_dtype` is given."""
    state.mean.data = state.mean.data.to(dtype)


def assign_mean(state, dtype):
    state.mean = state.mean.to(dtype)


def assign_edges(state, dtype):
    state.edges = state.edges.to(dtype)


SPOILT = {
    "FSDP1's buffer_dtype": (
        lambda s: fsdp_casts(s, torch.bfloat16),
        r"mean: expected torch.float32, got torch.bfloat16",
    ),
    "float64 mean": (lambda s: assign_mean(s, torch.float64), r"mean: expected torch.float32, got torch.float64"),
    "float32 edges": (lambda s: assign_edges(s, torch.float32), r"edges: expected torch.float64, got torch.float32"),
    "longer mean": (lambda s: setattr(s, "mean", s.mean.new_ones(7)), r"mean: expected shape \(4,\), got \(7,\)"),
    "shorter edges": (lambda s: setattr(s, "edges", s.edges[:2]), r"edges: expected shape \(3,\), got \(2,\)"),
    "strided mean": (
        lambda s: setattr(s, "mean", s.mean.new_ones(8)[::2]),
        r"mean: expected a contiguous.*strides \(2,\)",
    ),
    "no mean": (lambda s: setattr(s, "mean", None), r"mean: expected a tensor, got NoneType"),
    "edges elsewhere": (lambda s: setattr(s, "edges", s.edges.to("meta")), r": expected device \S+, got meta"),
}


@pytest.mark.host_code("refused before any launch")
@pytest.mark.parametrize("what", SPOILT)
@pytest.mark.parametrize("weight_alone", (True, False))
def test_spoilt_state_is_refused_by_name(backend, case, what, weight_alone):
    """Every backend refuses the call before anything runs."""
    spoil, message = SPOILT[what]
    state = place(fdk.RatioNormalizer(4, edges=EDGES))
    spoil(state)
    before = None if state.mean is None else state.mean.clone()
    placed = case.on()
    with pytest.raises((ValueError, TypeError), match=rf"^normalizer(\.|){message}"):
        if weight_alone:
            fdk.fdiv_weight(placed.logits, placed.t, normalizer=state, backend=backend)
        else:
            placed.but(normalizer=state).call(backend)
    assert before is None or torch.equal(before, state.mean)


def test_functional_call_with_another_dtype(backend, case):
    placed = case.on()
    loss = fdk.FDivLoss(bins=4, backend=backend).to(placed.student.device)
    arguments = (placed.student, placed.teacher, placed.fake, placed.logits, placed.t)
    mean = place(torch.full((4,), 0.5, dtype=torch.bfloat16))
    with pytest.raises(ValueError, match=r"^normalizer.mean: expected torch.float32, got torch.bfloat16"):
        torch.func.functional_call(loss, {"normalizer.mean": mean}, arguments)
    torch.func.functional_call(loss, {"normalizer.mean": mean.float()}, arguments)


SAMPLES = torch.rand(1000, generator=torch.Generator().manual_seed(0))


BUILT = {
    "uniform": lambda: fdk.RatioNormalizer(4),
    "edges": lambda: fdk.RatioNormalizer(4, edges=EDGES),
    "from samples": lambda: fdk.RatioNormalizer.from_samples(SAMPLES, bins=4),
}


@pytest.mark.parametrize("how", BUILT)
def test_meta_construction(backend, case, how):
    """FSDP and torchtitan build models this way: on the meta device, then to_empty, then reset_parameters."""
    expected = BUILT[how]()
    with torch.device("meta"):
        model = torch.nn.ModuleDict({"normalizer": BUILT[how]()})
    assert model["normalizer"].mean.is_meta and model["normalizer"].t_range == expected.t_range
    empty = torch.empty_like

    def garbage(*args, **kwargs):
        return empty(*args, **kwargs).fill_(1e30)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch, "empty_like", garbage)
        model.to_empty(device="cpu")
    state = model["normalizer"]
    for reset in (lambda: None, state.reset_parameters):
        reset()
        assert same_bits(state.mean, torch.ones(4))
        assert expected.edges is None or same_bits(state.edges, expected.edges)
        case.but(normalizer=state).check(backend)
        case.call(backend, normalizer=state)
        assert not torch.equal(state.mean, torch.ones(4))


def test_meta_edges_without_values(backend, case):
    """`edges=torch.tensor(...)` loses its values on the meta device: the module needs a checkpoint, and says so."""
    with torch.device("meta"):
        state = fdk.RatioNormalizer(4, edges=torch.tensor(EDGES))
        with pytest.raises(ValueError, match="^t: expected samples, got a meta tensor"):
            fdk.RatioNormalizer.from_samples(torch.rand(100))
    state.to_empty(device="cpu")
    for _ in range(2):
        with pytest.raises(ValueError, match=r"^normalizer.edges: expected values.*state_dict"):
            case.call(backend, normalizer=state)
    state.load_state_dict(fdk.RatioNormalizer(4, edges=EDGES).state_dict())
    case.but(normalizer=state).check(backend)


def test_loaded_into_meta(backend, case):
    """Buffers that a checkpoint filled stay; buffers that it lacks start afresh."""
    with torch.device("meta"):
        state = fdk.RatioNormalizer(4, edges=EDGES)
    state.load_state_dict({"mean": torch.tensor([0.5, 1.0, 1.5, 2.0])}, assign=True, strict=False)
    state.to(torch.bfloat16)
    state._apply(lambda v: v if not v.is_meta else torch.full_like(v, 1e30, device="cpu"))
    assert state.mean.tolist() == [0.5, 1.0, 1.5, 2.0] and state.edges.tolist() == list(EDGES)
    case.but(normalizer=state).check(backend)
