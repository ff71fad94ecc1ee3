"""No host sync; CUDA graphs, streams and GPUs other than the current one. Results have the bits of eager calls."""

import contextlib
import itertools
from dataclasses import replace

import pytest
import torch

import fdkernels as fdk
from fdkernels._op import checks
from fdkernels._triton import launch
from fdkernels.fdiv import t_range
from tests.cases import ORDER
from tests.gpu.calls import KERNELS, OPTIONS, PRACTICE, READ_AGAIN, SCHEDULES, batch, hold, in_float64, same

pytestmark = [pytest.mark.gpu, pytest.mark.backends(*KERNELS)]

DTYPES = (torch.bfloat16, torch.float16, torch.float32)
PAIRS = list(itertools.combinations_with_replacement(SCHEDULES, 2))
LATE = 50_000_000  # cycles, some 30 ms: enough for the host to run far ahead


@pytest.fixture(autouse=True)
def _finished():
    """Work that a test left running, or its error, must not reach the next test."""
    yield
    torch.cuda.synchronize()


@contextlib.contextmanager
def no_host_sync():
    """A host sync inside the block raises."""
    torch.cuda.synchronize()
    mode = torch.cuda.get_sync_debug_mode()
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode(mode)


def test_a_sync_would_be_noticed(backend):
    value = torch.ones(1, device="cuda")
    with no_host_sync(), pytest.raises(RuntimeError, match="synchronizing"):
        value.item()
    assert torch.cuda.get_sync_debug_mode() == 0


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("option", OPTIONS)
@pytest.mark.parametrize("schedule", SCHEDULES, ids=str)
def test_no_host_sync(backend, schedule, option, dtype):
    case = schedule.batch(dtype, option)
    for stats in (False, True):
        case.step(backend, stats=stats)  # compiles
        with no_host_sync():
            outcome = case.step(backend, stats=stats)
        assert outcome.loss.isfinite().all() and outcome.grad.any()


def test_no_host_sync_in_fdiv_weight(backend):
    case = batch(PRACTICE["CIFAR"])
    options = {"normalizer": case.options["normalizer"], "backend": backend}
    fdk.fdiv_weight(case.logits, case.t, **options)
    with no_host_sync():
        weight = fdk.fdiv_weight(case.logits, case.t, **options)
    assert weight.isfinite().all()


@pytest.mark.parametrize("value", (1.0, 65536.0))
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_no_host_sync_under_an_upstream(backend, dtype, value):
    """No sync to find out that the factor is 1, nor to scale by another one; the graph kept or not."""
    case = batch(PRACTICE["SDXL"], dtype)
    upstream = torch.full((), value, device="cuda")

    def step():
        student = case.student.detach().requires_grad_()
        loss = case.call(backend, student)
        (kept,) = torch.autograd.grad(loss, student, upstream, retain_graph=True)
        return kept, *torch.autograd.grad(loss, student, upstream)

    step()  # compiles
    with no_host_sync():
        kept, last = step()
    assert torch.equal(kept, last)


def test_looks_at_t_wait_for_nothing(backend, monkeypatch):
    """Timesteps where noise levels are expected: a later call warns. During a capture, t is not looked at."""
    timesteps = torch.linspace(0, 999, 64, device="cuda").round().long()
    case = batch(PRACTICE["CIFAR"]).but(t=timesteps)
    case.but(**case.fresh_options()).call(backend)  # compiles, without a look
    monkeypatch.setattr(t_range, "LOOKS", 4)
    monkeypatch.setattr(checks, "warned", set())
    with no_host_sync():
        case.call(backend)
    watch = case.options["normalizer"].watch
    assert isinstance(watch.pending, t_range.DeviceLevels)
    torch.cuda.synchronize()
    with pytest.warns(UserWarning, match=r"^t: .*t_range \(0\.0, 1\.0\), got 0\.0 to 999\.0"):
        case.call(backend)
    pending, left = watch.pending, watch.left
    assert isinstance(pending, t_range.DeviceLevels) and left == 2
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        loss = case.call(backend)
    assert (watch.pending, watch.left) == (pending, left)
    graph.replay()
    assert loss.isfinite() and pending.arrived() == (0.0, 999.0, 63 / 64)


class Captured:
    """A step, forward and backward, in a CUDA graph with inputs of its own."""

    def __init__(self, schedule, **options):
        case = schedule.batch(**options)
        own = {name: getattr(case, name).clone() for name in ORDER}
        self.case = case.but(**own, **case.fresh_options())
        state = self.case.options["normalizer"].mean
        start = state.clone()
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(3):
                schedule.step(self.case)
        torch.cuda.current_stream().wait_stream(side)
        self.graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self.graph):
            self.outcome = schedule.step(self.case)
        state.copy_(start)

    def replay(self, case):
        """Replay on the tensors of another batch of this shape."""
        for name in ORDER:
            getattr(self.case, name).copy_(getattr(case, name))
        self.graph.replay()


@pytest.mark.backends("triton")
@pytest.mark.parametrize("schedule", SCHEDULES, ids=str)
def test_capture_needs_no_other_kernel(backend, schedule, monkeypatch):
    """The capture launches only what the warm-up compiled: compiling or loading inside a capture can break it."""
    import triton

    compiled = []
    monkeypatch.setattr(triton.knobs.runtime, "jit_cache_hook", lambda *, fn, **_: compiled.append(fn.name))
    begin = torch.cuda.CUDAGraph.capture_begin

    def forget_the_warm_up(*args, **kwargs):
        compiled.clear()
        return begin(*args, **kwargs)

    monkeypatch.setattr(torch.cuda.CUDAGraph, "capture_begin", forget_the_warm_up)
    # A shape of its own: kernels of other tests' captures do not count.
    rows = schedule.shape[2] - 1
    Captured(replace(schedule, shape=(*schedule.shape[:2], rows, rows)))
    assert not compiled


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("schedule", (*SCHEDULES, READ_AGAIN), ids=str)
def test_replays_on_new_data(backend, schedule, dtype):
    """Loss, gradient, figures and the normalizer's running state, over three replays."""
    captured = Captured(schedule, dtype=dtype)
    state = schedule.batch(dtype).options["normalizer"]
    for seed in (1, 2, 3):
        case = schedule.batch(dtype, seed=seed).but(normalizer=state)
        captured.replay(case)
        assert same(captured.outcome, schedule.step(case))


@pytest.mark.parametrize(("schedule", "other"), PAIRS, ids=str)
def test_two_graphs_interleaved(backend, schedule, other):
    """Two graphs are captured one after the other and replayed in turn: neither disturbs the other's data."""
    pair = (schedule, other)
    captured = [Captured(each) for each in pair]
    states = [each.batch().options["normalizer"] for each in pair]
    for seed in range(1, 5):
        cases = [each.batch(seed=10 * seed + i).but(normalizer=states[i]) for i, each in enumerate(pair)]
        for graph, case in zip(captured, cases, strict=True):
            graph.replay(case)
        for graph, each, case in zip(captured, pair, cases, strict=True):
            assert same(graph.outcome, each.step(case))


@pytest.mark.backends("triton")
def test_more_captures_than_the_pool_has_tickets(backend, monkeypatch):
    """The pool outlives its last ticket, which a graph goes on using; a capture beyond it makes its own ticket."""
    monkeypatch.setattr(launch, "TICKETS", 4)
    monkeypatch.setattr(launch, "_devices", {})
    whole = SCHEDULES[0]
    captured = [Captured(whole, seed=seed) for seed in range(4)]
    reused = [torch.full((128,), 7, dtype=torch.int32, device="cuda") for _ in range(1000)]
    for seed, graph in enumerate(captured):
        case = whole.batch(seed=seed)
        graph.replay(case)
        assert same(graph.outcome, whole.step(case))
    assert all((block == 7).all() for block in reused)


@pytest.mark.parametrize("other", SCHEDULES, ids=str)
@pytest.mark.parametrize("schedule", SCHEDULES, ids=str)
def test_a_replay_beside_eager_calls(backend, schedule, other):
    """A graph replays on another stream beside eager calls on this one: launches that overlap share no ticket."""
    rounds = 30
    captured = Captured(schedule)
    case = other.batch(option="plain", seed=2)
    alone = other.step(case)
    repeated = schedule.batch()
    for _ in range(rounds):
        last = schedule.step(repeated)
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        torch.cuda._sleep(LATE)  # both streams then have work queued at the same time
    torch.cuda._sleep(LATE)
    beside = []
    for _ in range(rounds):
        with torch.cuda.stream(side):
            captured.graph.replay()
        beside.append(other.step(case))
    torch.cuda.synchronize()
    assert same(captured.outcome, last)
    assert all(same(alone, outcome) for outcome in beside)


@pytest.mark.parametrize(("schedule", "other"), PAIRS, ids=str)
def test_two_streams_at_once(backend, schedule, other):
    """Eager calls of two schedules, or of one schedule twice, on two streams."""
    pair = (schedule, other)
    cases = [each.batch(option="plain", seed=seed) for seed, each in enumerate(pair, 1)]
    alone = [each.step(case) for each, case in zip(pair, cases, strict=True)]
    torch.cuda.synchronize()
    streams, found = [torch.cuda.Stream() for _ in cases], [[], []]
    for stream in streams:
        with torch.cuda.stream(stream):
            torch.cuda._sleep(LATE)
    for _ in range(30):
        for which, stream in enumerate(streams):
            with torch.cuda.stream(stream):
                found[which].append(pair[which].step(cases[which]))
    torch.cuda.synchronize()
    for which in (0, 1):
        assert all(same(alone[which], outcome) for outcome in found[which])


@pytest.mark.parametrize("schedule", SCHEDULES, ids=str)
def test_inputs_that_a_side_stream_makes(backend, schedule):
    """The inputs arrive late: kernels on any other stream would read what was there before."""
    case = schedule.batch(option="plain")
    alone = schedule.step(case)
    late = case.but(**{name: torch.full_like(getattr(case, name), torch.nan) for name in ORDER})
    torch.cuda.synchronize()
    with torch.cuda.stream(torch.cuda.Stream()):
        torch.cuda._sleep(LATE)
        for name in ORDER:
            getattr(late, name).copy_(getattr(case, name))
        outcome = schedule.step(late)
    torch.cuda.synchronize()
    assert same(outcome, alone)


@pytest.mark.parametrize("schedule", SCHEDULES, ids=str)
def test_a_gpu_that_is_not_current(backend, schedule):
    if torch.cuda.device_count() < 2:
        pytest.skip("needs two GPUs")
    case = schedule.batch().on("cuda:1")
    expected = in_float64(case)
    assert torch.cuda.current_device() == 0
    outcome = schedule.step(case)
    assert torch.cuda.current_device() == 0 and outcome.grad.device == torch.device("cuda:1")
    hold(case, outcome, expected)
