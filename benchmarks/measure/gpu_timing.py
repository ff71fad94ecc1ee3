"""How calls are timed on a GPU; on a CPU the same functions read the host's clock."""

from __future__ import annotations

import gc
import math
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from benchmarks.measure.timing import Timing, orders, summarize

WINDOW = 2e-3  # seconds that a sample lasts, at least
NEAR = 0.25  # relative difference that a replay may have from a plain call


def wait_for(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


def device_timings(functions: dict[str, Callable[[], object]], rounds: int, device: str) -> dict[str, Timing]:
    """Seconds of the device's own time, interleaved.

    On a GPU everything is queued before anything is read, so that the GPU never waits for the host in between.
    """
    marks: dict[str, list[tuple[Any, Any]]] = {name: [] for name in functions}
    wait_for(device)
    for order in orders(functions, rounds):
        for name in order:
            start = _mark(device)
            functions[name]()
            marks[name].append((start, _mark(device)))
    wait_for(device)
    return {name: summarize([_between(*pair) for pair in found], calls=1) for name, found in marks.items()}


def _mark(device: str) -> Any:
    if device == "cpu":
        return time.perf_counter()
    event = torch.cuda.Event(enable_timing=True)
    event.record()
    return event


def _between(start: Any, stop: Any) -> float:
    return stop - start if isinstance(start, float) else start.elapsed_time(stop) / 1e3


class Copy:
    """A large copy within the device's memory."""

    def __init__(self, size: int, device: str) -> None:
        self.bytes = 2 * size  # read and written
        self.source = torch.empty(size // 4, device=device).normal_()
        self.target = torch.empty_like(self.source)

    def __call__(self) -> None:
        self.target.copy_(self.source)


class Replay:
    """One CUDA graph with a call for each set of inputs. Results are kept, so that each has its own memory.

    Raises RuntimeError if a replay leaves a result unwritten, or far from that of a plain call: work that escaped the
    capture would look fast. draws: each call draws its noise, so that only the size of a result stays the same.
    """

    def __init__(self, step: Callable[[Any], Tensor], data: Sequence[Any], *, draws: bool = False) -> None:
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(3):
                plain = step(data[0])
        torch.cuda.current_stream().wait_stream(side)
        self.graph = torch.cuda.CUDAGraph()
        # Garbage of earlier cases is collected now: a module that is unloaded during a capture breaks it.
        gc.collect()
        gc.disable()
        try:
            with torch.cuda.graph(self.graph):
                self.results = [step(v) for v in data]
        finally:
            gc.enable()
        for result in self.results:
            result.fill_(torch.nan)
        self.graph.replay()
        if not all(bool(torch.isfinite(result).all()) for result in self.results):
            raise RuntimeError("a replay of the graph leaves results unwritten")
        # Only near, not the same bits: a normalizer's state has moved on.
        apart = self.results[0].norm() - plain.norm() if draws else (self.results[0] - plain).norm()
        if not apart.abs() <= NEAR * plain.norm():
            raise RuntimeError("a replay of the graph gives another result than a plain call")
        once = device_timings({"": self.graph.replay}, 3, "cuda")[""].median
        self.repeats = math.ceil(WINDOW / once)
        self.calls = self.repeats * len(data)

    def __call__(self) -> None:
        for _ in range(self.repeats):
            self.graph.replay()


def syncs(function: Callable[[], object]) -> bool:
    """Whether a function makes the host wait for the GPU (or fails). It must have been called before."""
    before = torch.cuda.get_sync_debug_mode()
    torch.cuda.set_sync_debug_mode("error")
    try:
        function()
    except RuntimeError:
        return True
    finally:
        torch.cuda.set_sync_debug_mode(before)
    return False
