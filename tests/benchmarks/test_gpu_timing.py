"""Times of a GPU that is made up: work takes as long as it is told, after the host's call has returned."""

from __future__ import annotations

import contextlib
from types import SimpleNamespace

import pytest
import torch

from benchmarks import gpu_timing
from benchmarks.gpu_timing import Copy, Replay, call_timings, device_timings, syncs

TICK = 2.0**-12  # seconds, of which sums are exact; eight and a bit make a window


class Gpu:
    """Queues work; a graph keeps what is launched while it captures."""

    def __init__(self):
        self.now = 0.0  # the host's clock
        self.free = 0.0  # when the device has finished
        self.captured = None
        self.waits = 0
        self.sync_mode = 0

    def launch(self, work, operation):
        if self.captured is not None:
            self.captured.append((work, operation))
        else:
            operation()
            self.free = max(self.free, self.now) + work

    def synchronize(self):
        self.waits += 1
        self.now = max(self.now, self.free)

    def event(self, enable_timing):
        assert enable_timing
        return Event(self)

    @contextlib.contextmanager
    def graph(self, graph):
        self.captured = graph.operations
        yield
        self.captured = None


class Event:
    def __init__(self, gpu):
        self.gpu = gpu

    def record(self):
        self.at = max(self.gpu.free, self.gpu.now)

    def elapsed_time(self, later):
        assert self.gpu.now >= later.at, "read before the device was there"
        return 1e3 * (later.at - self.at)


@pytest.fixture
def gpu(monkeypatch):
    gpu = Gpu()

    class Graph:
        def __init__(self):
            self.operations = []

        def replay(self):
            for work, operation in self.operations:
                gpu.launch(work, operation)

    stream = SimpleNamespace(wait_stream=lambda other: None)
    replaced = {
        "synchronize": gpu.synchronize, "Event": gpu.event, "CUDAGraph": Graph, "graph": gpu.graph,
        "Stream": lambda: stream, "current_stream": lambda: stream, "stream": lambda _: contextlib.nullcontext(),
        "get_sync_debug_mode": lambda: gpu.sync_mode,
        "set_sync_debug_mode": lambda mode: setattr(gpu, "sync_mode", mode),
    }  # fmt: skip
    for name, fake in replaced.items():
        monkeypatch.setattr(torch.cuda, name, fake)
    monkeypatch.setattr(gpu_timing, "time", SimpleNamespace(perf_counter=lambda: gpu.now))
    return gpu


def double(gpu, ticks=1.0, calls=None):
    """A step: twice its input, one tick of the host's time and `ticks` of the device's."""

    def step(v):
        if calls is not None:
            calls.append(v)
        gpu.now += TICK
        result = torch.zeros(2)
        gpu.launch(ticks * TICK, lambda: result.copy_(2 * v))
        return result

    return step


def sets(count):
    return [torch.full((2,), float(i + 1)) for i in range(count)]


def test_calls_until_the_device_has_finished_and_until_they_return(gpu):
    """Three calls: issued in 3 ticks; the device begins after the first and is done at 1 + 3 × 3."""
    found = call_timings({"a": double(gpu, ticks=3)}, sets(5), rounds=7, device="cuda")
    wall, call = found["a"]
    assert (wall.calls, wall.rounds, call.rounds) == (3, 7, 7)
    assert wall.median == wall.low == wall.high == pytest.approx(10 / 3 * TICK)
    assert call.median == call.low == call.high == pytest.approx(TICK)


def test_short_calls_fill_a_window_up_to_a_limit(gpu):
    found = call_timings({"short": double(gpu, ticks=0.0), "long": double(gpu, ticks=50)}, sets(1), 3, "cuda")
    assert found["short"][0].calls == 9 and found["long"][0].calls == 3  # 2 ms are 8.2 ticks
    free = call_timings({"free": lambda v: setattr(gpu, "now", gpu.now + 1e-9)}, sets(1), 3, "cuda")
    assert free["free"][0].calls == 50


def test_calls_go_on_with_the_next_set_of_inputs(gpu):
    seen, others = [], []
    data = sets(5)
    steps = {"a": double(gpu, 3, seen), "b": double(gpu, 3, others)}
    call_timings(steps, data, rounds=4, device="cuda")
    assert len(seen) == 3 + 3 + 4 * 3  # first calls, those that size a sample, samples
    for calls in (seen, others):
        assert all(v is data[i % 5] for i, v in enumerate(calls))


def test_the_devices_own_time(gpu):
    """In seconds, read only when all is done; the host's time does not count."""
    done = []

    def work(name, ticks):
        def run():
            done.append(name)
            gpu.now += 0.25 * TICK
            gpu.launch(ticks * TICK, lambda: None)

        return run

    found = device_timings({"a": work("a", 2), "b": work("b", 4), "c": work("c", 8)}, rounds=20, device="cuda")
    assert found["a"].median == pytest.approx(2 * TICK) and found["a"].rounds == 20 and found["a"].calls == 1
    assert found["b"].median == pytest.approx(4 * TICK) and found["c"].high == pytest.approx(8 * TICK)
    assert gpu.waits == 2
    orders = {tuple(done[i : i + 3]) for i in range(0, 60, 3)}
    assert len(orders) > 3 and all(sorted(order) == ["a", "b", "c"] for order in orders)


def test_a_replay_is_a_call_for_each_set_of_inputs(gpu):
    data = sets(4)
    replay = Replay(double(gpu, 0.5), data)
    assert [result.tolist() for result in replay.results] == [(2 * v).tolist() for v in data]
    assert len({result.data_ptr() for result in replay.results}) == 4
    # A replay takes 2 ticks, 2 ms are 8.2: 5 replays.
    assert (replay.repeats, replay.calls) == (5, 20)
    begun = max(gpu.free, gpu.now)
    replay()
    assert gpu.free - begun == pytest.approx(20 * 0.5 * TICK)
    found = device_timings({"a": replay}, 6, "cuda")["a"]
    assert found.microseconds(replay.calls)[0] == pytest.approx(0.5e6 * TICK)


@pytest.mark.parametrize("escapes", [1.0, 3.0])
def test_a_replay_that_leaves_a_result_unwritten_is_refused(gpu, escapes):
    """As work on a thread or stream of its own would: done while the graph is captured, then never again."""
    captured = double(gpu)

    def step(v):
        return 2 * v if v[0] == escapes else captured(v)

    with pytest.raises(RuntimeError, match="leaves results unwritten"):
        Replay(step, sets(3))


def test_a_copy_moves_its_bytes_twice():
    copy = Copy(4096, "cpu")
    copy()
    assert copy.bytes == 2 * copy.source.nbytes == 2 * 4096
    assert torch.equal(copy.source, copy.target) and copy.source.std() > 0.5


def test_syncs(gpu):
    def waits():
        if gpu.sync_mode == "error":
            raise RuntimeError("called a synchronizing CUDA operation")

    assert syncs(waits) and not syncs(lambda: None)
    assert gpu.sync_mode == 0
