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
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from benchmarks.counting import extra_memory, tensor_traffic, trace
from benchmarks.formulas import FORMULAS, Formula, Inputs, Step, make_inputs, rotation
from benchmarks.gpu_timing import Copy, Replay, call_timings, device_timings, syncs
from benchmarks.predicted import predicted_bytes
from benchmarks.setting import OtherWork, clocks, last_level_cache
from benchmarks.shapes import Case
from benchmarks.timing import WARM_UP, Timing, time_interleaved
from benchmarks.variants import Variant, graphs_compiled, relative_error, variants, wrong_because
from fdkernels.fdiv.t_range import LOOKS

CEILING = {"cpu": "streaming limit (3 reads, 1 write)", "cuda": "device copy"}
# Rotating sets of inputs together exceed the last cache by this factor, within the limits below; on a CPU, a set of
# fewer bytes than RESIDENT_BYTES is timed alone, in cache.
BEYOND_CACHE = {"cpu": 2, "cuda": 4}
LEAST_ROTATED, RESIDENT_BYTES = 256 << 20, 8 << 20
MOST_ROTATED, MOST_SETS = 2 << 30, 512
TRACED_SETS = 4
# torch.compile gives up on a function, and runs it as it is, after 8 versions of it; FastGen's weight has one for each
# number of occupied bins, in each mode.
RECOMPILE_LIMIT = 64
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
    percent_of_ceiling: float | None
    """None of fdiv_weight, which has no N-sized data."""
    ceiling_gb_per_s: float
    """The ceiling as measured in this very run, on a CPU on tensors of this size."""
    gradient_error: float
    """Relative L2 error against float64, of the weight where there is no gradient."""
    input_sets: int
    rounds: int
    timed_by: str
    """calls (CPU), graph, or wall (GPU: plain calls until it has finished)."""
    call_low_us: float | None = None
    call_high_us: float | None = None
    wall_us: float | None = None
    wall_low_us: float | None = None
    wall_high_us: float | None = None
    graphs: int | None = None
    """Of compiled code: how many graphs torch.compile made of it for all sets of inputs, forward alone."""
    counted_bytes: int | None = None
    """Tensor bytes that dispatched ops read and write; unknown of compiled code."""
    extra_bytes: int | None = None
    """Peak memory beside the inputs, the result included."""
    launches: int | None = None
    """GPU: kernels, copies and fills of a call. CPU: dispatched ops that touch memory; unknown of compiled code."""
    syncs: float | None = None
    """GPU: times that a call waits for it."""
    kernel_us: float | None = None
    """GPU: sum of the kernels' times under the profiler."""
    predicted_us: float | None = None
    """Predicted bytes over ceiling_gb_per_s."""


Kind = Literal["failed", "unavailable", "no time", "stopped"]


class Skipped(NamedTuple):
    what: str
    why: str
    kind: Kind
    ours: bool = True
    """Whether a row of fdkernels is missing for it, or something of one."""


@dataclass
class Measured:
    rows: list[Row]
    skipped: list[Skipped]
    ceiling: Timing
    ceiling_bytes: int
    clocks: str | None
    """Right after the timing."""
    busy: float | None = None
    """Percent of all cores that other work took during it."""


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


def method(device: str) -> list[str]:
    """How all of this is measured, in words, for a report."""
    beyond = f"sets of inputs take turns, together {BEYOND_CACHE[device]} times the last cache or more"
    timed = {
        "cpu": [
            "A time is that of plain calls.",
            f"Beyond {RESIDENT_BYTES >> 20} MiB {beyond} (at most {MOST_ROTATED >> 30} GiB); less is timed in cache.",
        ],
        "cuda": [
            "A time is the GPU's own, from replays of a CUDA graph that holds a call for each set of inputs; what syncs"
            " cannot be captured: it is timed by plain calls, and compared with plain calls.",
            f"{beyond.capitalize()} (at most {MOST_SETS} sets).",
        ],
    }
    return [
        "Every round times each variant once, in a random order; a figure is the median over rounds, with the 95 %"
        " interval of that median.",
        *timed[device],
        f"Before: {WARM_UP} calls or more of each variant, and every set of inputs once through compiled code.",
        f"The ceiling ({CEILING[device]}) is measured among them, on a CPU for each size.",
        "A variant is compared with the exact result in float64 first; a wrong one is not compared for speed.",
        "A difference is claimed where the intervals do not overlap; a ratio's interval is that of the extremes.",
    ]


def input_sets(formula: Formula, case: Case, device: str) -> int:
    one = formula.input_bytes(case)
    if device == "cpu":
        if one < RESIDENT_BYTES:
            return 1
        rotated = min(MOST_ROTATED, max(LEAST_ROTATED, BEYOND_CACHE[device] * last_level_cache()))
        return max(2, math.ceil(rotated / one))
    rotated = BEYOND_CACHE[device] * torch.cuda.get_device_properties().L2_cache_size
    return min(MOST_SETS, max(2, math.ceil(rotated / one)))


def measure(formula: Formula, case: Case, options: Options) -> Measured:
    torch._dynamo.reset()
    torch._dynamo.config.recompile_limit = RECOMPILE_LIMIT
    device = options.device
    data = rotation(case, device, input_sets(formula, case, device))
    exact = formula.exact_result(data[0])
    found: dict[str, Checked] = {}
    skipped = []
    for variant in variants(formula, options.backends, options.modes, device):
        try:
            found[variant.name] = checked(variant, data, exact)
        except Exception as failure:
            skipped.append(Skipped(f"{case} {variant.name}", described(failure), "failed", variant.ours))
    eager = next((each.error for each in found.values() if each.variant.mode == "eager"), None)
    if eager is None and any(each.variant.compiled for each in found.values()):
        eager = eager_error(formula, data[0], exact, device)
    del exact
    timings = cpu_timings if device == "cpu" else gpu_timings
    before, other = graphs_compiled(), OtherWork()
    timed = timings(formula, case, {name: each.step for name, each in found.items()}, data, options)
    busy = other.percent()
    if graphs_compiled() > before:
        why = "compiled again while they were timed: their times are too long"
        skipped.append(Skipped(f"{case} {', '.join(options.modes)}", why, "failed", ours=False))
    skipped += [Skipped(f"{case} {name}", f"not captured: {why}", "failed") for name, why in timed.uncaptured.items()]
    rows = []
    for each in found.values():
        because = wrong_because(each.variant, formula, case.dtype, each.error, device, eager)
        row = timed_row(case, formula, each, timed, because, len(data))
        rows.append(counted(row, each.step, data[:1], formula, case, device) if device == "cpu" else row)
    return Measured(rows, skipped, timed.ceiling, timed.ceiling_bytes, clocks(device), busy)


def eager_error(formula: Formula, v: Inputs, exact: Tensor, device: str) -> float | None:
    """What compiled variants are held to where eager itself is not timed; None where it fails."""
    try:
        return relative_error(formula.peer_step(formula.chain, device)(v), exact)
    except Exception:
        return None


class Checked(NamedTuple):
    variant: Variant
    step: Step
    error: float
    graphs: int | None


def checked(variant: Variant, data: list[Inputs], exact: Tensor) -> Checked:
    """A variant with its error. Its state has moved then; the times do not depend on it."""
    before = graphs_compiled()
    step = variant.make()
    error = relative_error(step(data[0]), exact)
    if not variant.compiled:
        return Checked(variant, step, error, None)
    for v in data[1:]:
        step(v)
    return Checked(variant, step, error, graphs_compiled() - before)


def timed_row(case: Case, formula: Formula, each: Checked, timed: Timed, because: str | None, sets: int) -> Row:
    variant, name = each.variant, each.variant.name
    nothing: tuple[None, None, None] = (None, None, None)
    (time_us, low, high), wall, call = timed.times[name], timed.walls.get(name, nothing), timed.calls.get(name, nothing)
    least, ceiling = formula.minimum_bytes(case), timed.ceiling_bytes / timed.ceiling.median / 1e9
    gb_per_s = least / time_us / 1e3
    row = Row(
        case.op, case.shape_name, case.shape, case.dtype, case.formula, name, variant.ours, variant.backend,
        variant.mode, because is not None, because, time_us, low, high, call[0], least, gb_per_s,
        100 * gb_per_s / ceiling if formula.images else None, ceiling, each.error, sets, timed.ceiling.rounds,
        timed.kinds[name], call_low_us=call[1], call_high_us=call[2], wall_us=wall[0], wall_low_us=wall[1],
        wall_high_us=wall[2], graphs=each.graphs,
    )  # fmt: skip
    return predicted(row, formula, case)


def predicted(row: Row, formula: Formula, case: Case) -> Row:
    device = "cpu" if row.timed_by == "calls" else "cuda"
    moved = predicted_bytes(formula, case, row.backend, row.counted_bytes, device)
    return replace(row, predicted_us=None if moved is None else moved / row.ceiling_gb_per_s / 1e3)


class Timed(NamedTuple):
    times: dict[str, Interval]
    kinds: dict[str, str]
    ceiling: Timing
    ceiling_bytes: int
    calls: dict[str, Interval]
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
    """Three reads and one write of the bytes of N elements, by one op of PyTorch's.

    All as float32: half-precision arithmetic would be the limit, not memory.
    """

    def __init__(self, data: list[Inputs]) -> None:
        sets = [[as_float32(w.detach()) for w in (v.student, v.teacher, v.fake)] for v in data]
        self.sets = [(*each, torch.empty_like(each[0])) for each in sets]
        self.bytes = 4 * self.sets[0][0].nbytes

    def __call__(self, i: int) -> Tensor:
        a, b, c, out = self.sets[i % len(self.sets)]
        return torch.addcmul(a, b, c, out=out)


def as_float32(tensor: Tensor) -> Tensor:
    """The same memory; where its bytes are odd, less the last element."""
    flat = tensor.reshape(-1)
    each = 4 // flat.element_size()
    return flat[: flat.numel() // each * each].view(torch.float32)


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
        {name: cpu.microseconds() for name, (_, cpu) in calls.items()}, walls, uncaptured,
    )  # fmt: skip


def counted(row: Row, step: Step, data: list[Inputs], formula: Formula, case: Case, device: str) -> Row:
    """The row with what profiler, allocator and dispatcher see of its calls, and the prediction from that."""
    compiled = row.mode is not None and row.mode != "eager"
    # A normalizer looks at t in its first calls: what every later call does is what counts.
    for i in range(max(len(data), LOOKS)):
        step(data[i % len(data)])
    ops, moved = (None, None) if compiled else tensor_traffic(lambda: step(data[0]))
    n = len(data)
    if device == "cuda":
        extra = extra_memory(lambda: step(data[0]))
        seen = trace(lambda: [step(v) for v in data], device)
        if seen.work:  # on some machines the profiler records nothing
            kernel_us = sum(event["us"] for event in seen.work) / n
            row = replace(row, launches=round(len(seen.work) / n), syncs=seen.syncs / n, kernel_us=kernel_us)
    else:
        extra = trace(lambda: step(data[0]), device).peak_bytes
        row = replace(row, launches=ops)
    return predicted(replace(row, counted_bytes=moved, extra_bytes=extra), formula, case)


def count_later(found: Measured, formula: Formula, case: Case, options: Options, compiled: bool) -> None:
    """Give the compiled or the other rows of a case their counts. On a GPU after all timing: the profiler slows later
    launches."""
    torch._dynamo.reset()
    data = [make_inputs(case, options.device, seed) for seed in range(TRACED_SETS)]
    made = {variant.name: variant for variant in variants(formula, options.backends, options.modes, options.device)}
    for i, row in enumerate(found.rows):
        if made[row.variant].compiled != compiled:
            continue
        try:
            found.rows[i] = counted(row, made[row.variant].make(), data, formula, case, options.device)
        except Exception as error:
            what = f"{case} {row.variant}: launches and memory"
            found.skipped.append(Skipped(what, described(error), "failed", row.ours))
