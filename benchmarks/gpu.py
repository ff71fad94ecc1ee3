"""python -m benchmarks.gpu: `fused_fdiv_loss` on a GPU beside FastGen's chain and the bandwidth of a copy.

js with normalizer, dmd scale, forward + backward at an upstream of 1 that exists already. Several sets of inputs take
turns, inputs and gradients together four times the L2 cache, so that nothing is found there from the last turn. Times:

- gpu: replays of a CUDA graph that holds a call for each set. FastGen's chain syncs, so it cannot be captured; it has
  the sum of its kernels' times in torch.profiler's trace instead, which leaves out the gaps between them.
- call: plain calls, one behind the other, until the GPU has finished; cpu: until the last of them has returned.

A variant whose gradient is wrong is not timed. With --device cpu the same runs on tiny shapes, without graphs.
"""

from __future__ import annotations

import argparse
import functools
import json
import math
import time
import warnings
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import fdkernels as fdk
from benchmarks.baselines import fastgen_chain
from benchmarks.fdiv import BINS, DTYPES, HEADS, TOLERANCE, Inputs, exact_gradient
from benchmarks.gpu_timing import Copy, Replay, call_timings, device_timings, extra_memory, traced
from benchmarks.setting import setting
from benchmarks.timing import Timing
from benchmarks.traffic import SHAPES as PEERS
from fdkernels import backends

# Tensors of at least 64 MB in bf16.
LARGE: dict[str, tuple[int, ...]] = {
    "CIFAR, large": (12288, 3, 32, 32),
    "SDXL, large": (512, 4, 128, 128),
    "Wan, large": (16, 16, 21, 60, 104),
    "pixels, 512, large": (64, 3, 512, 512),
    "pixels, 1024, large": (16, 3, 1024, 1024),
}
SHAPES: dict[str, dict[str, tuple[int, ...]]] = {
    "cuda": {**PEERS, **LARGE},
    "cpu": {"CIFAR": (4, 3, 16, 16), "SDXL": (2, 4, 32, 32)},
}
BACKENDS = {"cuda": ("native", "triton"), "cpu": ("native",)}
EAGER = "eager FastGen"
MOST_SETS = 512
TRACED_SETS = 4
COPIED = {"cuda": 2**30, "cpu": 2**24}  # bytes

Step = Callable[[Inputs], Tensor]
Interval = tuple[float, float, float]


@dataclass(frozen=True)
class Row:
    """One variant at one shape and dtype. Microseconds: a median and the 95 % interval of that median."""

    name: str
    shape: tuple[int, ...]
    dtype: str
    variant: str
    failure: str | None = None
    """Why there are no figures."""
    gpu_us: Interval | None = None
    call_us: Interval | None = None
    cpu_us: Interval | None = None
    gb_per_s: float | None = None
    """Fewest bytes (3 N-sized reads, 1 write) over gpu_us, or over call_us where there is no gpu_us."""
    copy_gb_per_s: float | None = None
    """Bytes read and written by a copy of 1 GiB, interleaved with the rest."""
    of_copy: float | None = None
    x_eager_gpu: float | None = None
    """The eager chain's kernel_us / gpu_us."""
    x_eager_call: float | None = None
    launches: float | None = None
    kernel_us: float | None = None
    """Sum over the kernels, copies and fills of a call."""
    extra_mib: float | None = None
    """Peak memory beside the inputs, the gradient included."""
    gradient_error: float | None = None
    input_sets: int | None = None
    rounds: int | None = None


def make_inputs(shape: tuple[int, ...], dtype: torch.dtype, device: str, seed: int) -> Inputs:
    generator = torch.Generator(device).manual_seed(seed)

    def noise(*size: int) -> Tensor:
        return torch.randn(size, generator=generator, device=device)

    student = noise(*shape)
    teacher = student + 0.5 * noise(*shape)
    fake = teacher + 0.25 * noise(*shape)
    t = torch.rand(shape[0], generator=generator, device=device)
    logits = noise(shape[0], HEADS)
    x = student.to(dtype).requires_grad_()
    return Inputs(x, teacher.to(dtype), fake.to(dtype), logits, t, out=torch.empty(0, device=device))


def fused(backend: str, device: str) -> Step:
    normalizer = fdk.RatioNormalizer(BINS, (0.0, 1.0), 0.9).to(device)
    one = torch.ones((), device=device)

    def step(v: Inputs) -> Tensor:
        loss = fdk.fused_fdiv_loss(
            v.student, v.teacher, v.fake, v.logits, v.t, divergence="js", normalizer=normalizer, backend=backend
        )
        return torch.autograd.grad(loss, v.student, one)[0]

    return step


def eager(dtype: torch.dtype, device: str) -> Step:
    bins, one = torch.ones(BINS, device=device), torch.ones((), dtype=dtype, device=device)

    def step(v: Inputs) -> Tensor:
        loss = fastgen_chain(v.student, v.teacher, v.fake, v.logits, v.t, bins)
        return torch.autograd.grad(loss, v.student, one)[0]

    return step


def variants(dtype: str, device: str) -> dict[str, Callable[[], Step]]:
    """A factory per variant, each with a state of its own: the backends with kernels for the device, and the peer."""
    return {
        **{name: functools.partial(fused, name, device) for name in BACKENDS[device]},
        EAGER: functools.partial(eager, DTYPES[dtype], device),
    }


def examined(row: Row, make: Callable[[], Step], inputs: Inputs, exact: Tensor) -> Row:
    """The row with the relative L2 error of the gradient, and why the variant is not timed, if it is not."""
    reason = None if row.variant == EAGER else backends.unavailable(row.variant, inputs.student.device.type)
    if reason is not None:
        return replace(row, failure=f"unavailable: {reason}")
    try:
        error = ((make()(inputs).double() - exact).norm() / exact.norm()).item()
    except Exception as failure:
        return replace(row, failure=described(failure))
    allowed = TOLERANCE["peer" if row.variant == EAGER else "fused"][row.dtype]
    wrong = None if error <= allowed else f"gradient is off by {error:.2g} (allowed {allowed:g})"
    return replace(row, gradient_error=error, failure=wrong)


def described(error: Exception) -> str:
    lines = str(error).strip().splitlines() or [""]
    return f"{type(error).__name__}: {lines[0]}"[:300]


def input_sets(tensor_bytes: int, device: str) -> int:
    rotation = 4 * torch.cuda.get_device_properties().L2_cache_size if device == "cuda" else 0
    return min(MOST_SETS, max(2, math.ceil(rotation / (4 * tensor_bytes))))


def measure(name: str, dtype: str, *, device: str, rounds: int, copy: Copy) -> list[Row]:
    """All variants at one shape and dtype, in one interleaved run."""
    shape = SHAPES[device][name]
    least_bytes = 4 * math.prod(shape) * DTYPES[dtype].itemsize
    data = [make_inputs(shape, DTYPES[dtype], device, seed) for seed in range(input_sets(least_bytes // 4, device))]
    makers = variants(dtype, device)
    exact = exact_gradient(data[0])
    rows = {
        variant: examined(Row(name, shape, dtype, variant), make, data[0], exact) for variant, make in makers.items()
    }
    del exact
    steps = {variant: makers[variant]() for variant, row in rows.items() if row.failure is None}
    calls = call_timings(steps, data, rounds, device)
    replays = {}
    for variant, step in steps.items():
        if device == "cuda" and variant != EAGER:
            try:
                replays[variant] = Replay(step, data)
            except Exception as error:
                rows[variant] = replace(rows[variant], failure=f"not captured: {described(error)}")
    on_device = device_timings({"copy": copy, **replays}, rounds, device)
    copied = copy.bytes / on_device["copy"].median / 1e9
    for variant, (call, cpu) in calls.items():
        gpu = microseconds(on_device[variant], replays[variant].calls) if variant in replays else None
        gb_per_s = least_bytes / (gpu or microseconds(call))[0] / 1e3
        rows[variant] = replace(
            rows[variant], gpu_us=gpu, call_us=microseconds(call), cpu_us=microseconds(cpu), gb_per_s=gb_per_s,
            copy_gb_per_s=copied, of_copy=gb_per_s / copied, input_sets=len(data), rounds=rounds,
        )  # fmt: skip
    return list(rows.values())


def microseconds(timing: Timing, calls: int = 1) -> Interval:
    return timing.median * 1e6 / calls, timing.low * 1e6 / calls, timing.high * 1e6 / calls


def counted(row: Row) -> Row:
    """The row with what torch.profiler and the allocator say of its calls."""
    if row.failure is not None:
        return row
    step = variants(row.dtype, "cuda")[row.variant]()
    data = [make_inputs(row.shape, DTYPES[row.dtype], "cuda", seed) for seed in range(TRACED_SETS)]
    for v in data:
        step(v)
    row = replace(row, extra_mib=extra_memory(lambda: step(data[0])) / 2**20)
    work = traced(lambda: [step(v) for v in data])
    if not work:  # a machine on which the profiler records nothing
        return row
    return replace(row, launches=len(work) / len(data), kernel_us=sum(event["us"] for event in work) / len(data))


def compared(rows: list[Row]) -> list[Row]:
    """The rows with how many times faster than the eager chain at their shape and dtype they are."""
    peers = {(row.name, row.dtype): row for row in rows if row.variant == EAGER}

    def against(row: Row) -> Row:
        peer = peers.get((row.name, row.dtype))
        if peer is None or row.call_us is None or peer.call_us is None:
            return row
        gpu = peer.kernel_us / row.gpu_us[0] if peer.kernel_us and row.gpu_us else None
        return replace(row, x_eager_gpu=gpu, x_eager_call=peer.call_us[0] / row.call_us[0])

    return [against(row) for row in rows]


HEADER = (
    f"{'variant':14} {'gpu µs':>8} {'95 % interval':>17} {'GB/s':>7} {'% copy':>6} {'call µs':>8} {'cpu µs':>7} "
    f"{'launches':>8} {'× eager gpu':>11} {'call':>6} {'MiB':>7} {'grad error':>10}"
)


def format_row(row: Row) -> str:
    if row.failure is not None or row.call_us is None or row.cpu_us is None or row.of_copy is None:
        return f"{row.variant:14} not timed: {row.failure}"
    gpu = row.gpu_us[0] if row.gpu_us else row.kernel_us
    interval = f"{row.gpu_us[1]:.4g} – {row.gpu_us[2]:.4g}" if row.gpu_us else "sum of kernels" if gpu else ""

    def cell(value: float | None, width: int, form: str = ".4g") -> str:
        return f"{'' if value is None else format(value, form):>{width}}"

    return (
        f"{row.variant:14} {cell(gpu, 8)} {interval:>17} {cell(row.gb_per_s, 7)} {cell(100 * row.of_copy, 6, '.1f')} "
        f"{cell(row.call_us[0], 8)} {cell(row.cpu_us[0], 7)} {cell(row.launches, 8)} "
        f"{cell(row.x_eager_gpu, 11, '.2f')} {cell(row.x_eager_call, 6, '.2f')} {cell(row.extra_mib, 7, '.1f')} "
        f"{cell(row.gradient_error, 10, '.1e')}"
    )


def losses(rows: list[Row]) -> list[str]:
    """Where the eager chain is as fast or faster, in words."""
    found = []
    for row in rows:
        ratios = {"gpu": row.x_eager_gpu, "call": row.x_eager_call}
        slower = [f"{kind} {ratio:.2f} ×" for kind, ratio in ratios.items() if ratio is not None and ratio <= 1]
        if row.variant != EAGER and slower:
            found.append(f"{row.name} {row.dtype} {row.variant}: {', '.join(slower)}")
    return found


def run(shapes: list[str], options: argparse.Namespace, here: dict[str, Any]) -> list[Row]:
    """Times of everything, then counts of everything; the JSON grows on the way."""
    start = time.monotonic()
    rows: list[Row] = []
    asked = [(name, dtype) for name in shapes for dtype in options.dtypes]
    copy = Copy(COPIED[options.device], options.device)

    def write() -> None:
        done = {(row.name, row.dtype) for row in rows}
        result = {
            "setting": here,
            "rows": [asdict(row) for row in compared(rows)],
            "not_run": [" ".join(pair) for pair in asked if pair not in done],
        }
        if options.json is not None:
            options.json.write_text(json.dumps(result, indent=1, ensure_ascii=False) + "\n")

    for name, dtype in asked:
        if time.monotonic() - start > options.seconds:
            break
        try:
            rows += measure(name, dtype, device=options.device, rounds=options.rounds, copy=copy)
        except Exception as error:
            rows.append(Row(name, SHAPES[options.device][name], dtype, "all", described(error)))
        print(f"{name} {dtype}: {time.monotonic() - start:.0f} s", flush=True)
        write()
    for i, row in enumerate(rows):
        if options.device == "cuda" and time.monotonic() - start < options.seconds:
            rows[i] = counted(row)
    write()
    return compared(rows)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu", description=__doc__)
    parser.add_argument("--device", choices=tuple(SHAPES), default="cuda")
    parser.add_argument("--shapes", nargs="+", metavar="NAME", help=f"of {', '.join(SHAPES['cuda'])}")
    parser.add_argument("--dtypes", choices=tuple(DTYPES), nargs="+", default=["bf16", "fp32"])
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--seconds", type=float, default=math.inf, help="after which nothing else is begun")
    parser.add_argument("--json", type=Path, metavar="F", help="write the rows there too")
    options = parser.parse_args()
    shapes = options.shapes or list(SHAPES[options.device])
    unknown = [name for name in shapes if name not in SHAPES[options.device]]
    if unknown:
        parser.error(f"unknown shape {unknown[0]!r} on {options.device}; known: {', '.join(SHAPES[options.device])}")
    # One video is the shape under test; what a batch of one does to the weights is not.
    warnings.filterwarnings("ignore", message="normalize_weight over")
    here = setting(options.device)
    print(", ".join(f"{key}: {value}" for key, value in here.items()))
    rows = run(shapes, options, here)
    for pair in dict.fromkeys((row.name, row.dtype) for row in rows):
        found = [row for row in rows if (row.name, row.dtype) == pair]
        print(f"\n{pair[0]} {'×'.join(map(str, found[0].shape))} {pair[1]}\n{HEADER}")
        print("\n".join(format_row(row) for row in found))
    print(f"\nno faster than eager: {'; '.join(losses(rows)) or 'none'}")


if __name__ == "__main__":
    main()
