"""Noise levels outside the normalizer's t_range: one warning; on a GPU it comes at a later call, without a sync."""

import copy
import pickle
import warnings

import pytest
import torch
from torch.utils.checkpoint import checkpoint

import fdkernels as fdk
from fdkernels._op import checks
from fdkernels.fdiv import t_range
from tests.device import on_device

pytestmark = [pytest.mark.contract("state"), pytest.mark.cpu_only("the GPU's event and memory have a stand-in here")]

TIMESTEPS = torch.tensor([3, 250, 700, 999, 14, 0, 81, 501])
LEVELS = TIMESTEPS / 1000


@pytest.fixture(autouse=True)
def _nothing_told_yet():
    checks.warned.clear()


def told(normalizer, *batches, backend="auto", **options):
    """The warnings about t in calls with these batches."""
    weight = on_device(fdk.fdiv_weight)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for t in batches:
            weight(torch.zeros(len(t)), t, normalizer=normalizer, backend=backend, **options)
    return [str(w.message) for w in caught if str(w.message).startswith("t:")]


def test_timesteps_with_the_default_range(backend):
    (message,) = told(fdk.RatioNormalizer(), *[TIMESTEPS] * 3, backend=backend)
    for part in ("0.0 to 999.0", "t_range (0.0, 1.0)", "t_range=(0, 999)", "t / 1000"):
        assert part in message


X = torch.zeros(8, 4)
CALLS = {
    "fdiv_weight": lambda state: fdk.fdiv_weight(X[:, 0], TIMESTEPS, normalizer=state),
    "fused_fdiv_loss": lambda state: fdk.fused_fdiv_loss(X, X, X, X[:, 0], TIMESTEPS, normalizer=state),
    "FDivLoss": lambda state: fdk.FDivLoss("js", normalizer=state)(X, X, X, X[:, 0], TIMESTEPS),
    "checkpoint": lambda state: checkpoint(
        lambda: fdk.fdiv_weight(X[:, 0], TIMESTEPS, normalizer=state), use_reentrant=False
    ),
}


@pytest.mark.parametrize("name", CALLS)
def test_the_warning_names_the_caller(name):
    with pytest.warns(UserWarning, match="^t: ") as caught:
        CALLS[name](fdk.RatioNormalizer())
    assert caught[0].filename == __file__


@pytest.mark.parametrize(
    ("normalizer", "t"),
    [
        (fdk.RatioNormalizer(), LEVELS),
        (fdk.RatioNormalizer(t_range=(0, 999)), TIMESTEPS),
        (fdk.RatioNormalizer(t_range=(0, 0.999)), torch.full((8,), 0.999)),  # in float32, above 0.999
        (fdk.RatioNormalizer(t_range=(0, 1)), torch.full((8,), 1.0, dtype=torch.bfloat16)),
        (fdk.RatioNormalizer(), torch.tensor([0.5] * 7 + [torch.inf])),  # not finite: takes part in nothing
        (fdk.RatioNormalizer(), torch.tensor([0.5] * 7 + [torch.nan])),
        (
            fdk.RatioNormalizer.from_samples(torch.linspace(0.01, 0.8, 100)),
            torch.tensor([0.5] * 5 + [130.0] * 3),
        ),  # a tail beyond the samples
    ],
    ids=("levels", "timesteps", "rounded", "end", "inf", "nan", "from samples"),
)
def test_nothing_to_tell(normalizer, t):
    assert not told(normalizer, t)


@pytest.mark.parametrize(
    "t",
    [
        -LEVELS - 0.5,
        torch.tensor([0.5, 1.5]),
        torch.tensor([0.5, 40000], dtype=torch.int32),
        torch.tensor([500.0] * 7 + [torch.nan]),
        torch.tensor([500.0] * 7 + [torch.inf]),
    ],
    ids=("below", "above", "int32", "nan", "inf"),
)
def test_either_side_and_any_dtype(t):
    (message,) = told(fdk.RatioNormalizer(), t)
    finite = t[t.isfinite()].double()
    assert f"got {finite.min().item()} to {finite.max().item()}:" in message


SIGMAS = (1.2 * torch.randn(10_000, generator=torch.Generator().manual_seed(0)) - 1.2).exp()


@pytest.mark.parametrize(
    ("samples", "t"),
    [
        (LEVELS, TIMESTEPS),
        (LEVELS, -TIMESTEPS),
        (LEVELS, torch.tensor([-130.0] * 3 + [0.5] * 3 + [130.0] * 3)),
        (SIGMAS, SIGMAS[:64].log() / 4),  # what EDM's network takes
    ],
    ids=("above", "below", "both", "skewed"),
)
def test_another_unit_than_that_of_the_samples(samples, t):
    (message,) = told(fdk.RatioNormalizer.from_samples(samples, bins=4), t)
    assert message.endswith("draw the samples of from_samples, or take t_range and edges, as t is drawn")


def test_once_for_each_range():
    """A loss built anew every step does not repeat the warning; another range is another mistake."""
    assert len([m for _ in range(3) for m in told(fdk.RatioNormalizer(), TIMESTEPS)]) == 1
    assert len(told(fdk.RatioNormalizer(t_range=(0, 500)), TIMESTEPS)) == 1


def test_only_first_calls_are_looked_at():
    state = fdk.RatioNormalizer()
    assert not told(state, *[LEVELS] * t_range.LOOKS)
    assert not told(state, TIMESTEPS)
    late = fdk.RatioNormalizer()
    assert len(told(late, *[LEVELS] * (t_range.LOOKS - 1), TIMESTEPS)) == 1


def test_not_where_ops_are_faked_or_recorded():
    from torch._subclasses import FakeTensorMode
    from torch.fx.experimental.proxy_tensor import make_fx

    def step(logits, t):
        return fdk.fdiv_weight(logits, t, normalizer=fdk.RatioNormalizer())

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        with FakeTensorMode():
            step(torch.zeros(8), 100 * torch.arange(8))
        make_fx(step, _allow_non_fake_inputs=True)(torch.zeros(8), TIMESTEPS)
        torch.compile(step, backend="eager", fullgraph=True)(torch.zeros(8), TIMESTEPS)
    assert not [w for w in caught if str(w.message).startswith("t:")]


class FakeCopy:
    """Stands in for an event and pinned memory; it arrives when the test says so."""

    started = 0
    has_arrived = False

    def __init__(self, t, low, high):
        type(self).started += 1
        self.levels = t_range.Levels(*t_range._levels(t, low, high).tolist())

    def arrived(self):
        return self.levels if self.has_arrived else None


@pytest.fixture
def gpu(monkeypatch):
    """The watch treats CPU tensors as a GPU's."""

    class Device:
        capturing = False
        copy = type("Copy", (FakeCopy,), {})

    monkeypatch.setattr(t_range, "DeviceLevels", Device.copy)
    monkeypatch.setattr(t_range, "is_readable", lambda t: False)
    monkeypatch.setattr(t_range, "DEVICES_THAT_COPY", ("cpu",))
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: Device.capturing)
    return Device


def test_a_gpu_tells_later(gpu):
    state = fdk.RatioNormalizer()
    assert not told(state, TIMESTEPS, LEVELS, LEVELS), "the copy has not arrived"
    assert gpu.copy.started == 1, "one at a time"
    gpu.copy.has_arrived = True
    assert len(told(state, LEVELS, LEVELS)) == 1


def test_a_gpu_tells_after_the_last_look(gpu):
    state = fdk.RatioNormalizer()
    gpu.copy.has_arrived = True
    assert not told(state, *[LEVELS] * (t_range.LOOKS - 1))
    assert not told(state, TIMESTEPS)
    assert gpu.copy.started == t_range.LOOKS
    assert len(told(state, LEVELS, LEVELS, LEVELS)) == 1
    assert gpu.copy.started == t_range.LOOKS


def test_not_while_a_graph_is_captured(gpu):
    state = fdk.RatioNormalizer()
    gpu.capturing = gpu.copy.has_arrived = True
    assert not told(state, *[TIMESTEPS] * 20) and not gpu.copy.started
    gpu.capturing = False
    told(state, TIMESTEPS)
    gpu.capturing = True
    assert not told(state, LEVELS), "an event is not asked either"
    gpu.capturing = False
    assert len(told(state, LEVELS)) == 1


def test_copies_and_pickles_leave_the_event_behind(gpu):
    state = fdk.RatioNormalizer()
    told(state, TIMESTEPS)
    state.watch.pending.event = (v for v in ())  # neither copied nor pickled
    for other in (copy.deepcopy(state), pickle.loads(pickle.dumps(state))):
        assert other.watch.pending is None and other.watch.left == t_range.LOOKS - 1
        assert torch.equal(other.mean, state.mean)
