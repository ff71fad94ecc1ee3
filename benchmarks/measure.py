"""Rows: every variant of one case, right first, then timed in one interleaved run, then counted.

On a CPU a row's time is that of a call. On a GPU it is the GPU's own, from replays of a CUDA graph that holds a call
for each set of inputs; a variant that syncs cannot be captured, and has the time of plain calls until the GPU has
finished, which every row has as `wall_us`. Sets of inputs take turns, so that none is found in a cache from its last
turn; where one set is small against a CPU's caches it is timed there, where training at that size finds it too.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import NamedTuple

import torch
from torch import Tensor

from benchmarks.counting import extra_memory, tensor_traffic, trace
from benchmarks.formulas import FORMULAS, Formula, Inputs, Step, make_inputs
from benchmarks.gpu_timing import Copy, Replay, call_timings, device_timings, syncs
from benchmarks.predicted import predicted_bytes
from benchmarks.shapes import Case
from benchmarks.timing import Timing, time_interleaved
from benchmarks.variants import Variant, relative_error, variants, wrong_because

CEILING = {"cpu": "streaming limit (3 reads, 1 write)", "cuda": "device copy"}
# On a CPU: rotating sets together exceed the first, four times the last-level cache of a large desktop part; a set
# below the second is timed alone, in cache. On a GPU rotating sets exceed four times its L2.
ROTATION_BYTES, RESIDENT_BYTES = 256 << 20, 8 << 20
MOST_SETS = 512
TRACED_SETS = 4
COPIED_BYTES = 1 << 30
# What the streaming limit is measured on where a case has no N-sized tensors.
STREAMED = FORMULAS["fastgen"].case("pixels512", (8, 3, 512, 512), "fp32")

Interval = tuple[float, float, float]


@dataclass(frozen=True)
class Row:
    """One variant at one case. Times in microseconds: a median, with the 95 % interval of that median."""

    op: str
    shape_name: str
    shape: tuple[int, ...]
    dtype: str
    formula: str
    variant: str
    ours: bool
    backend: str | None
    mode: str | None
    wrong: bool
    wrong_because: str | None
    time_us: float
    low_us: float
    high_us: float
    call_us: float | None
    """GPU: until a plain call has returned, the GPU still at work."""
    min_bytes: int
    gb_per_s: float
    """min_bytes over time_us."""
    percent_of_ceiling: float
    ceiling_gb_per_s: float
    """The ceiling as measured in this very run, on a CPU on tensors of this case's size and dtype."""
    gradient_error: float
    """Relative L2 error against float64, of the weight where there is no gradient."""
    input_sets: int
    rounds: int
    timed_by: str
    """calls (CPU), graph, or wall (GPU: plain calls until it has finished)."""
    wall_us: float | None = None
    wall_low_us: float | None = None
    wall_high_us: float | None = None
    counted_bytes: int | None = None
    """Tensor bytes that dispatched ops read and write; unknown of compiled code."""
    extra_bytes: int | None = None
    """Peak memory beside the inputs, the result included."""
    launches: int | None = None
    """GPU: kernels, copies and fills of a call. CPU: dispatched ops that touch memory; unknown of compiled code."""
    syncs: int | None = None
    """GPU: times that a call waits for it."""
    kernel_us: float | None = None
    """GPU: sum of the kernels' times under the profiler."""
    predicted_us: float | None = None
    """Predicted bytes over ceiling_gb_per_s."""


class Skipped(NamedTuple):
    what: str
    why: str


@dataclass
class Measured:
    rows: list[Row]
    skipped: list[Skipped]
    ceiling: Timing
    ceiling_bytes: int


@dataclass(frozen=True)
class Options:
    device: str
    backends: Sequence[str]
    modes: Sequence[str]
    rounds: int = 40
    seconds: float = math.inf
    """Of one case's timing, after which its rounds end."""
    copied: int = COPIED_BYTES
    copy: list[Copy] = field(default_factory=list)
    """Made by the first case on a GPU."""


def described(error: Exception) -> str:
    lines = str(error).strip().splitlines() or [""]
    return f"{type(error).__name__}: {lines[0]}"[:300]


def input_sets(formula: Formula, case: Case, device: str) -> int:
    one = formula.minimum_bytes(case)
    if device == "cpu":
        return 1 if one < RESIDENT_BYTES else max(2, math.ceil(ROTATION_BYTES / one))
    return min(MOST_SETS, max(2, math.ceil(4 * torch.cuda.get_device_properties().L2_cache_size / one)))


def measure(formula: Formula, case: Case, options: Options) -> Measured:
    torch._dynamo.reset()
    device = options.device
    data = [make_inputs(case, device, seed) for seed in range(input_sets(formula, case, device))]
    exact = formula.exact(data[0])
    found: dict[str, tuple[Variant, Step, float]] = {}
    skipped = []
    for variant in variants(formula, options.backends, options.modes, device):
        try:
            step = variant.make()
            error = relative_error(step(data[0]), exact)
        except Exception as failure:
            skipped.append(Skipped(f"{case} {variant.name}", described(failure)))
            continue
        # The check has moved the state; the times do not depend on it.
        found[variant.name] = (variant, step, error)
    del exact
    steps = {name: step for name, (_, step, _) in found.items()}
    timings = cpu_timings if device == "cpu" else gpu_timings
    timed = timings(formula, case, steps, data, options)
    skipped += [Skipped(f"{case} {name}", f"not captured: {why}") for name, why in timed.uncaptured.items()]
    ceiling = timed.ceiling_bytes / timed.ceiling.median / 1e9
    least = formula.minimum_bytes(case)
    rows = []
    for name, (variant, _, error) in found.items():
        (time_us, low, high), wall = timed.times[name], timed.walls.get(name, (None, None, None))
        because = wrong_because(variant, formula, case.dtype, error, device)
        gb_per_s = least / time_us / 1e3
        rows.append(
            Row(
                case.op, case.shape_name, case.shape, case.dtype, case.formula, name, variant.ours, variant.backend,
                variant.mode, because is not None, because, time_us, low, high, timed.calls_us.get(name), least,
                gb_per_s, 100 * gb_per_s / ceiling, ceiling, error, len(data), timed.ceiling.rounds,
                timed.kinds[name], *wall,
            )
        )  # fmt: skip
    if device == "cpu":
        rows = [counted(row, found[row.variant][1], data[:1], formula, case, device) for row in rows]
    return Measured(rows, skipped, timed.ceiling, timed.ceiling_bytes)


class Timed(NamedTuple):
    times: dict[str, Interval]
    kinds: dict[str, str]
    ceiling: Timing
    ceiling_bytes: int
    calls_us: dict[str, float]
    walls: dict[str, Interval]
    uncaptured: dict[str, str]
    """Of our own, and why: a fault, where a peer's is what is known of it."""


def cpu_timings(formula: Formula, case: Case, steps: dict[str, Step], data: list[Inputs], options: Options) -> Timed:
    def on_rotating(step: Step) -> Callable[[int], object]:
        return lambda i: step(data[i % len(data)])

    stream = Stream(data) if formula.images else Stream([make_inputs(STREAMED, "cpu", seed) for seed in range(3)])
    variants_ = {name: on_rotating(step) for name, step in steps.items()}
    timings = time_interleaved({**variants_, "ceiling": stream}, rounds=options.rounds, seconds=options.seconds)
    ceiling = timings.pop("ceiling")
    times = {name: timing.microseconds() for name, timing in timings.items()}
    return Timed(times, dict.fromkeys(times, "calls"), ceiling, stream.bytes, {}, {}, {})


class Stream:
    """Three reads and one write of N elements, by one op of PyTorch's."""

    def __init__(self, data: list[Inputs]) -> None:
        self.sets = [(v.student.detach(), v.teacher, v.fake, torch.empty_like(v.teacher)) for v in data]
        self.bytes = 4 * data[0].student.numel() * data[0].student.element_size()

    def __call__(self, i: int) -> Tensor:
        a, b, c, out = self.sets[i % len(self.sets)]
        return torch.addcmul(a, b, c, out=out)


def gpu_timings(formula: Formula, case: Case, steps: dict[str, Step], data: list[Inputs], options: Options) -> Timed:
    if not options.copy:
        options.copy.append(Copy(options.copied, options.device))
    copy = options.copy[0]
    calls = call_timings(steps, data, options.rounds, options.device)
    replays, uncaptured = {}, {}
    for name, step in steps.items():
        if name not in options.backends and syncs(lambda: step(data[0])):  # noqa: B023
            continue  # a capture that fails may leave the allocator in disorder
        try:
            replays[name] = Replay(step, data)
        except Exception as error:
            if name in options.backends:
                uncaptured[name] = described(error)
    on_device = device_timings({"ceiling": copy, **replays}, options.rounds, options.device)
    walls = {name: wall.microseconds() for name, (wall, _) in calls.items()}
    times = {**walls, **{name: on_device[name].microseconds(replay.calls) for name, replay in replays.items()}}
    return Timed(
        times, {name: "graph" if name in replays else "wall" for name in steps}, on_device["ceiling"], copy.bytes,
        {name: cpu.microseconds()[0] for name, (_, cpu) in calls.items()}, walls, uncaptured,
    )  # fmt: skip


def counted(row: Row, step: Step, data: list[Inputs], formula: Formula, case: Case, device: str) -> Row:
    """The row with what profiler, allocator and dispatcher see of its calls, and the prediction from that."""
    compiled = row.mode is not None and row.mode != "eager"
    for v in data:
        step(v)
    ops, moved = (None, None) if compiled else tensor_traffic(lambda: step(data[0]))
    n = len(data)
    if device == "cuda":
        extra = extra_memory(lambda: step(data[0]))
        seen = trace(lambda: [step(v) for v in data], device)
        if seen.work:  # on some machines the profiler records nothing
            kernel_us = sum(event["us"] for event in seen.work) / n
            row = replace(row, launches=round(len(seen.work) / n), syncs=round(seen.syncs / n), kernel_us=kernel_us)
    else:
        extra = trace(lambda: step(data[0]), device).peak_bytes
        row = replace(row, launches=ops)
    predicted = predicted_bytes(formula, case, row.backend, moved, device)
    return replace(
        row, counted_bytes=moved, extra_bytes=extra,
        predicted_us=None if predicted is None else predicted / row.ceiling_gb_per_s / 1e3,
    )  # fmt: skip


def counted_later(rows: list[Row], formula: Formula, case: Case, options: Options) -> list[Row]:
    """The rows of a case with counts. On a GPU after all timing: the profiler slows later launches."""
    torch._dynamo.reset()
    data = [make_inputs(case, options.device, seed) for seed in range(TRACED_SETS)]
    made = {variant.name: variant for variant in variants(formula, options.backends, options.modes, options.device)}
    return [counted(row, made[row.variant].make(), data, formula, case, options.device) for row in rows]
