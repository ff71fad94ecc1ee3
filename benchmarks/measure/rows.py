"""Rows: every variant of one case is checked, then timed in one interleaved run, then counted.

On a CPU a row's time is that of a call. On a GPU it is the GPU's own, from replays of a CUDA graph that holds a call
for each set of inputs. A variant that syncs cannot be captured; its time is that of plain calls until the GPU has
finished, which every row has as `wall_us`. Sets of inputs take turns, so that none is in a cache from its last turn.
A set that is small against a CPU's caches is timed in cache, where training at that size finds it too.
"""

from __future__ import annotations

import contextlib
import functools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from benchmarks.cases.formula import Formula, Inputs, Step
from benchmarks.cases.formulas import FORMULAS, copy_of, make_inputs, rotation
from benchmarks.cases.setting import clocks, last_level_cache
from benchmarks.cases.shapes import STEP, Case
from benchmarks.cases.variants import Variant, graphs_compiled, relative_error, variants, wrong_because
from benchmarks.measure.counting import extra_memory, tensor_traffic, trace, unread
from benchmarks.measure.gpu_timing import WINDOW, Copy, Replay, device_timings, syncs, wait_for
from benchmarks.measure.timing import Timing, time_interleaved
from fdkernels.fdiv.t_range import LOOKS

CEILING = {"cpu": "streaming limit (3 reads, 1 write)", "cuda": "device copy"}
# Rotating sets of inputs together exceed the last cache by this factor, within the limits below; on a CPU, a set of
# fewer bytes than RESIDENT_BYTES is timed alone, in cache.
BEYOND_CACHE = {"cpu": 2, "cuda": 4}
LEAST_ROTATED, RESIDENT_BYTES = 256 << 20, 8 << 20
MOST_ROTATED, MOST_SETS = 2 << 30, 512
TRACED_SETS = 4
# By default torch.compile gives up after 8 versions of a function, and runs it uncompiled. FastGen's weight has a
# version for each number of occupied bins, in each mode.
RECOMPILE_LIMIT = 64
COPIED_BYTES = 1 << 30
FEWEST_CALLS, MOST_CALLS = 3, 50  # in a sample of plain calls on a GPU
CASE_SECONDS = 6.0  # for a case's timing on a CPU; after that no further round begins
# The streaming limit is measured on this case if a case has no N-sized tensors.
STREAMED = FORMULAS["fastgen"].case("pixels512", (8, 3, 512, 512), "fp32")


@dataclass(frozen=True, kw_only=True)
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
    call_us: float | None = None  # GPU: until a plain call returns, while the GPU still works
    min_bytes: int
    gb_per_s: float  # min_bytes over time_us
    percent_of_ceiling: float | None  # None for fdiv_weight, which has no N-sized data
    ceiling_gb_per_s: float  # the ceiling, measured in the same run; on a CPU on tensors of this size
    gradient_error: float  # relative L2 error against float64; of the weight if there is no gradient
    input_sets: int
    rounds: int
    timed_by: str  # calls (CPU), graph, or wall (GPU: plain calls until it has finished)
    call_low_us: float | None = None
    call_high_us: float | None = None
    wall_us: float | None = None
    wall_low_us: float | None = None
    wall_high_us: float | None = None
    counted_bytes: int | None = None  # eager peers and steps: tensor bytes that dispatched ops read and write
    extra_bytes: int | None = None  # peak memory beside the inputs, the result included
    launches: int | None = None  # GPU: kernels, copies, fills. CPU: ops that touch memory; unknown for compiled code
    syncs: float | None = None  # times that the host waits for the GPU in a call, or on a CPU that it would wait
    kernel_us: float | None = None  # GPU: sum of the kernels' times under the profiler


class Skipped(NamedTuple):
    what: str
    why: str
    kind: str  # failed, unavailable, or no time
    ours: bool = True  # whether a row of fdkernels, or a part of one, is missing for it


@dataclass
class Measured:
    rows: list[Row]
    skipped: list[Skipped]
    ceiling: Timing
    ceiling_bytes: int
    clocks: str | None  # right after the timing


@dataclass(frozen=True)
class Options:
    device: str
    backends: Sequence[str]
    modes: Sequence[str]
    rounds: int = 40


def described(error: Exception) -> str:
    lines = str(error).strip().splitlines() or [""]
    return f"{type(error).__name__}: {lines[0]}"[:300]


def method(device: str) -> list[str]:
    """The method in words, for a report."""
    beyond = f"Sets of inputs take turns, together {BEYOND_CACHE[device]} times the last cache or more"
    timed = {
        "cpu": f"A time is that of plain calls. {beyond}; less than {RESIDENT_BYTES >> 20} MiB is timed in cache.",
        "cuda": "A time is the GPU's own, from replays of a CUDA graph that holds a call for each set of inputs; what"
        f" syncs is timed by plain calls, and compared with plain calls. {beyond}.",
    }
    return [
        "Every round times each variant once, in a random order; a figure is the median over rounds, with the 95 %"
        " interval of that median. Where two intervals overlap, no difference is claimed.",
        timed[device],
        f"The ceiling ({CEILING[device]}) is measured among them, on a CPU for each size.",
        "A variant is compared with the exact result in float64 first; a wrong one is not compared for speed.",
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
    timed_data = [formula.timed(v) for v in data]
    exact = formula.exact_result(data[0])
    found: dict[str, Checked] = {}
    skipped = []
    for variant in variants(formula, options.backends, options.modes, device):
        try:
            found[variant.name] = checked(variant, copy_of(data[0]), timed_data, exact)
        except Exception as failure:
            skipped.append(Skipped(f"{case} {variant.name}", described(failure), "failed", variant.ours))
    eager = next((each.error for each in found.values() if each.variant.mode == "eager"), None)
    if eager is None and any(each.variant.compiled for each in found.values()):
        with contextlib.suppress(Exception):  # compiled variants are compared with eager even if it is not timed
            eager = relative_error(formula.peer_step(formula.chain, device)(copy_of(data[0])), exact)
    del exact
    timings = cpu_timings if device == "cpu" else gpu_timings
    before = graphs_compiled()
    timed = timings(formula, {name: each.step for name, each in found.items()}, timed_data, options)
    if graphs_compiled() > before:
        why = "compiled again while they were timed: their times are too long"
        skipped.append(Skipped(f"{case} {', '.join(options.modes)}", why, "failed", ours=False))
    skipped += [Skipped(f"{case} {name}", f"not captured: {why}", "failed") for name, why in timed.uncaptured.items()]
    rows = []
    for each in found.values():
        because = wrong_because(each.variant, formula, case.dtype, each.error, device, eager)
        row = timed_row(case, formula, each, timed, because, len(data))
        rows.append(counted(row, each.step, timed_data[:1], device) if device == "cpu" else row)
    return Measured(rows, skipped, timed.ceiling, timed.ceiling_bytes, clocks(device))


class Checked(NamedTuple):
    variant: Variant
    step: Step
    error: float


def checked(variant: Variant, given: Any, timed_data: list[Any], exact: Tensor) -> Checked:
    """Run a variant and take its error. This moves its state; times do not depend on the state."""
    step = variant.make()
    error = relative_error(step(given), exact)
    for v in timed_data if variant.compiled else ():
        step(v)
    return Checked(variant, step, error)


def timed_row(case: Case, formula: Formula, each: Checked, timed: Timed, because: str | None, sets: int) -> Row:
    variant, times = each.variant, timed.times[each.variant.name]
    least, ceiling = formula.minimum_bytes(case), timed.ceiling_bytes / timed.ceiling.median / 1e9
    gb_per_s = least / times["time_us"] / 1e3
    return Row(
        **case._asdict(), variant=variant.name, ours=variant.ours, backend=variant.backend, mode=variant.mode,
        wrong=because is not None, wrong_because=because, min_bytes=least, gb_per_s=gb_per_s,
        percent_of_ceiling=100 * gb_per_s / ceiling if formula.images else None, ceiling_gb_per_s=ceiling,
        gradient_error=each.error, input_sets=sets, rounds=timed.ceiling.rounds, **times,
    )  # fmt: skip


class Timed(NamedTuple):
    times: dict[str, dict[str, Any]]  # by variant; the keys are fields of Row
    ceiling: Timing
    ceiling_bytes: int
    uncaptured: dict[str, str]  # our own variants that were not captured, and why. A peer's is no fault


def named(timing: Timing, prefix: str = "", calls: int = 1) -> dict[str, float]:
    keys = (f"{prefix or 'time_'}us", f"{prefix}low_us", f"{prefix}high_us")
    return dict(zip(keys, timing.microseconds(calls), strict=True))


def rotating(steps: dict[str, Step], data: list[Inputs]) -> dict[str, Callable[[int], object]]:
    return {name: lambda i, step=step: step(data[i % len(data)]) for name, step in steps.items()}  # type: ignore[misc]


def cpu_timings(formula: Formula, steps: dict[str, Step], data: list[Inputs], options: Options) -> Timed:
    stream = Stream(data) if formula.images else Stream([make_inputs(STREAMED, "cpu", seed) for seed in range(3)])
    timed: dict[str, Callable[[int], object]] = {**rotating(steps, data), "ceiling": stream}
    timings = time_interleaved(timed, rounds=options.rounds, seconds=CASE_SECONDS)
    ceiling, _ = timings.pop("ceiling")
    times = {name: {**named(timing), "timed_by": "calls"} for name, (timing, _) in timings.items()}
    return Timed(times, ceiling, stream.bytes, {})


class Stream:
    """Three reads and one write of the bytes of N elements, by one op of PyTorch.

    The op is in float32: with half precision, arithmetic would be the limit, not memory.
    """

    def __init__(self, data: list[Inputs]) -> None:
        sets = [[as_float32(w.detach()) for w in (v.student, v.teacher, v.fake)] for v in data]
        self.sets = [(*each, torch.empty_like(each[0])) for each in sets]
        self.bytes = 4 * self.sets[0][0].nbytes

    def __call__(self, i: int) -> Tensor:
        a, b, c, out = self.sets[i % len(self.sets)]
        return torch.addcmul(a, b, c, out=out)


def as_float32(tensor: Tensor) -> Tensor:
    """The same memory as float32, without a last half-precision element that has no partner."""
    flat = tensor.reshape(-1)
    each = 4 // flat.element_size()
    return flat[: flat.numel() // each * each].view(torch.float32)


the_copy = functools.cache(Copy)  # one for all cases of a run


def gpu_timings(formula: Formula, steps: dict[str, Step], data: list[Inputs], options: Options) -> Timed:
    copy = the_copy(COPIED_BYTES, options.device)
    wait = functools.partial(wait_for, options.device)
    calls = time_interleaved(
        rotating(steps, data), rounds=options.rounds, window=WINDOW, fewest=FEWEST_CALLS, most=MOST_CALLS, wait=wait
    )
    replays, uncaptured = {}, {}
    for name, step in steps.items():
        if formula.in_place or (name not in options.backends and syncs(lambda: step(data[0]))):  # noqa: B023
            continue  # a failed capture may leave the allocator in disorder
        try:
            replays[name] = Replay(step, data, draws=formula.draws)
        except Exception as error:
            if name in options.backends:
                uncaptured[name] = described(error)
    on_device = device_timings({"ceiling": copy, **replays}, options.rounds, options.device)
    times: dict[str, dict[str, Any]] = {}
    for name, (wall, call) in calls.items():
        own = named(on_device[name], calls=replays[name].calls) if name in replays else named(wall)
        times[name] = {**own, **named(wall, "wall_"), **named(call, "call_")}
        times[name]["timed_by"] = "graph" if name in replays else "wall"
    return Timed(times, on_device["ceiling"], copy.bytes, uncaptured)


def counted(row: Row, step: Step, data: list[Inputs], device: str) -> Row:
    """The row with what the profiler, the allocator and the dispatcher see of its calls."""
    compiled = row.mode is not None and row.mode != "eager"
    # A normalizer checks t in its first calls; later calls, which do not, are counted.
    for i in range(max(len(data), LOOKS)):
        step(data[i % len(data)])
    ops, moved, waits = (None, None, None) if compiled else tensor_traffic(lambda: step(unread(data[0])))
    n = len(data)
    if device == "cuda":
        extra = extra_memory(lambda: step(data[0]))
        seen = trace(lambda: [step(v) for v in data], device)
        if seen.work:  # on some machines the profiler records nothing
            kernel_us = sum(event["us"] for event in seen.work) / n
            row = replace(row, launches=round(len(seen.work) / n), syncs=seen.syncs / n, kernel_us=kernel_us)
    else:
        extra = trace(lambda: step(data[0]), device).peak_bytes
        row = replace(row, launches=ops, syncs=waits)
    is_one_op = row.ours and row.op != STEP  # its traffic is in its plan
    return replace(row, counted_bytes=None if is_one_op else moved, extra_bytes=extra)


def count_later(found: Measured, formula: Formula, case: Case, options: Options, compiled: bool) -> None:
    """Give the compiled or the other rows of a case their counts. Only after all timing on a GPU: the profiler slows
    later launches."""
    torch._dynamo.reset()
    data = [formula.timed(make_inputs(case, options.device, seed)) for seed in range(TRACED_SETS)]
    made = {variant.name: variant for variant in variants(formula, options.backends, options.modes, options.device)}
    for i, row in enumerate(found.rows):
        if made[row.variant].compiled != compiled:
            continue
        try:
            found.rows[i] = counted(row, made[row.variant].make(), data, options.device)
        except Exception as error:
            what = f"{case} {row.variant}: launches and memory"
            found.skipped.append(Skipped(what, described(error), "failed", row.ours))
