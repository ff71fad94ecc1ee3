"""Times by a clock that the test moves, on a CPU and on a made-up GPU: they come out exact."""

from __future__ import annotations

import contextlib
import math
from types import SimpleNamespace

import pytest
import torch

from benchmarks.measure import rows, timing
from benchmarks.measure.gpu_timing import WINDOW, Replay, device_timings, syncs
from benchmarks.measure.timing import Timing, summarize, time_interleaved

TICK = 2.0**-10  # seconds; sums of ticks are exact


@pytest.fixture
def work(monkeypatch):
    """(A function that makes calls, which take ticks(index) each; the log of all calls)."""
    clock, log = SimpleNamespace(now=0.0), []
    monkeypatch.setattr(timing, "time", SimpleNamespace(perf_counter=lambda: clock.now))

    def call(name, ticks):
        def run(i):
            log.append((name, i))
            clock.now += ticks(i) * TICK

        return run

    return call, log


@pytest.mark.parametrize("rounds", [*range(timing.FEWEST_FOR_AN_INTERVAL, 61), 100, 101, 400])
def test_the_interval_holds_the_median_in_95_of_100_runs(rounds):
    """Ranks low to high enclose the median unless too many samples lie on one side of it, each with chance one half."""
    ranks = summarize([float(i) for i in range(rounds)][::-1], 1)
    inside = range(int(ranks.low) + 1, int(ranks.high) + 1)
    chance = sum(math.comb(rounds, below) for below in inside) / 2**rounds
    without_one_more = sum(math.comb(rounds, below) for below in inside[1:-1]) / 2**rounds
    assert without_one_more < 0.95 <= chance and ranks.median == (rounds - 1) / 2
    assert 1 - 2 / 2 ** (timing.FEWEST_FOR_AN_INTERVAL - 1) < 0.95  # fewer rounds hold no interval
    assert ranks.microseconds(2) == (ranks.median * 5e5, ranks.low * 5e5, ranks.high * 5e5)


def test_a_sample_is_a_mean_over_calls_that_fill_the_window(work):
    """Round after round each call takes a tick longer; samples are 1 to 9 ticks."""
    short, long = work[0]("", lambda i: 1 + max(0, i - 4) // 16), work[0]("", lambda i: 4 * max(1, i // 4))
    found = time_interleaved({"short": short, "long": long}, rounds=9, window=16 * TICK)
    assert found["short"] == 2 * (Timing(5 * TICK, 2 * TICK, 8 * TICK, rounds=9, calls=16),)
    assert found["long"] == 2 * (Timing(20 * TICK, 8 * TICK, 32 * TICK, rounds=9, calls=4),)


def test_variants_interleave_and_rotate_their_inputs(work):
    call, log = work
    time_interleaved({name: call(name, lambda i, n=n: n) for name, n in (("a", 1), ("b", 2), ("c", 2))}, rounds=20,
                     window=2 * TICK)  # fmt: skip
    before = timing.WARM_UP + 1  # and one to size the window
    assert [i for _, i in log[: 3 * before]] == 3 * list(range(before))
    timed = log[3 * before :]
    assert [i for name, i in timed if name == "a"] == list(range(before, before + 40))
    assert [i for name, i in timed if name == "b"] == list(range(before, before + 20))
    rounds = [[name for name, _ in timed[4 * r : 4 * r + 4]] for r in range(20)]
    assert all(sorted(order) == ["a", "a", "b", "c"] for order in rounds)
    assert {order[0] for order in rounds} == {order[-1] for order in rounds} == {"a", "b", "c"}


@pytest.mark.parametrize(("rounds", "seconds", "made"), [(100, 0.0, 12), (100, 24.5 * TICK, 25), (5, 0.0, 5)])
def test_rounds_end_early_but_not_before_there_are_enough(work, rounds, seconds, made):
    call = work[0]("", lambda i: 1)
    assert time_interleaved({"a": call}, rounds=rounds, window=0.0, seconds=seconds)["a"][0].rounds == made


GPU_TICK = 2.0**-12  # a window is 8.2 of them


@pytest.fixture
def gpu(monkeypatch):
    """The host's clock, and when the GPU has finished its queue. A graph keeps what is launched while it captures."""
    gpu = SimpleNamespace(now=0.0, free=0.0, captured=None, waits=0, sync_mode=0)

    def launch(work, operation):
        if gpu.captured is not None:
            gpu.captured.append((work, operation))
        else:
            operation()
            gpu.free = max(gpu.free, gpu.now) + work

    def synchronize():
        gpu.waits += 1
        gpu.now = max(gpu.now, gpu.free)

    class Event:
        def __init__(self, enable_timing):
            assert enable_timing

        def record(self):
            self.at = max(gpu.free, gpu.now)

        def elapsed_time(self, later):
            assert gpu.now >= later.at, "read before the device was there"
            return 1e3 * (later.at - self.at)

    class Graph(list):
        def replay(self):
            for each in self:
                launch(*each)

    @contextlib.contextmanager
    def capture(graph):
        gpu.captured = graph
        yield
        gpu.captured = None

    stream = SimpleNamespace(wait_stream=lambda other: None)
    replaced = {
        "synchronize": synchronize, "Event": Event, "CUDAGraph": Graph, "graph": capture, "Stream": lambda: stream,
        "current_stream": lambda: stream, "stream": lambda _: contextlib.nullcontext(),
        "get_sync_debug_mode": lambda: gpu.sync_mode,
        "set_sync_debug_mode": lambda mode: setattr(gpu, "sync_mode", mode),
    }  # fmt: skip
    for name, fake in replaced.items():
        monkeypatch.setattr(torch.cuda, name, fake)
    monkeypatch.setattr(timing, "time", SimpleNamespace(perf_counter=lambda: gpu.now))
    gpu.launch = launch
    return gpu


def double(gpu, ticks=1.0, calls=None):
    """A step that doubles its input, in one tick of the host's time and `ticks` of the device's."""

    def step(v):
        if calls is not None:
            calls.append(v)
        gpu.now += GPU_TICK
        result = torch.zeros(2)
        gpu.launch(ticks * GPU_TICK, lambda: result.copy_(2 * v))
        return result

    return step


def sets(count):
    return [torch.full((2,), float(i + 1)) for i in range(count)]


def test_calls_until_the_device_has_finished_and_until_they_return(gpu):
    """Three calls are issued in 3 ticks; the device begins after the first and is done at 1 + 3 × 3. Each call takes
    the next set of inputs. Short calls fill a window of 8.2 ticks, up to a limit."""
    seen, data = [], sets(5)
    free = lambda v: setattr(gpu, "now", gpu.now + 2**-30)  # noqa: E731
    steps = {"a": double(gpu, 3, seen), "short": double(gpu, 0), "free": free}
    limits = {"window": WINDOW, "fewest": rows.FEWEST_CALLS, "most": rows.MOST_CALLS}
    found = timing.time_interleaved(rows.rotating(steps, data), rounds=7, wait=torch.cuda.synchronize, **limits)
    wall, call = found["a"]
    assert (wall.calls, wall.rounds, call.rounds) == (3, 7, 7)
    assert wall.median == wall.low == wall.high == pytest.approx(10 / 3 * GPU_TICK)
    assert call.median == call.low == call.high == pytest.approx(GPU_TICK)
    assert len(seen) == 3 + 3 + 7 * 3  # warm-up, the calls that size a sample, samples
    assert all(v is data[i % 5] for i, v in enumerate(seen))
    assert (found["short"][0].calls, found["free"][0].calls) == (9, 50)


def test_the_devices_own_time(gpu):
    """Times in seconds, read only when all is done; the host's time does not count."""
    done = []

    def work(name, ticks):
        def run():
            done.append(name)
            gpu.now += 0.25 * GPU_TICK
            gpu.launch(ticks * GPU_TICK, lambda: None)

        return run

    found = device_timings({name: work(name, n) for name, n in (("a", 2), ("b", 4), ("c", 8))}, 20, "cuda")
    assert [found[name].median / GPU_TICK for name in "abc"] == pytest.approx([2, 4, 8]) and found["a"].rounds == 20
    orders = {tuple(done[i : i + 3]) for i in range(0, 60, 3)}
    assert gpu.waits == 2 and len(orders) > 3 and all(sorted(order) == ["a", "b", "c"] for order in orders)


def test_a_replay_is_a_call_for_each_set_of_inputs(gpu):
    data = sets(4)
    replay = Replay(double(gpu, 0.5), data)
    assert [result.tolist() for result in replay.results] == [(2 * v).tolist() for v in data]
    assert len({result.data_ptr() for result in replay.results}) == 4
    assert (replay.repeats, replay.calls) == (5, 20)  # a replay takes 2 ticks, a window 8.2
    assert device_timings({"a": replay}, 6, "cuda")["a"].microseconds(20)[0] == pytest.approx(0.5e6 * GPU_TICK)


@pytest.mark.parametrize("escapes", [1.0, 3.0])
def test_a_replay_that_leaves_a_result_unwritten_is_refused(gpu, escapes):
    """Like work on another thread or stream: it is done while the graph is captured, and never again."""
    captured = double(gpu)
    with pytest.raises(RuntimeError, match="leaves results unwritten"):
        Replay(lambda v: 2 * v if v[0] == escapes else captured(v), sets(3))


def test_a_sync_is_seen(gpu):
    def waits():
        if gpu.sync_mode == "error":
            raise RuntimeError("called a synchronizing CUDA operation")

    assert syncs(waits) and not syncs(lambda: None) and gpu.sync_mode == 0
