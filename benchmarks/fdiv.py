"""`fused_fdiv_loss` (js, normalizer, dmd scale), forward + backward, beside FastGen's chain and the streaming limit."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

import fdkernels as fdk
from benchmarks.baselines import fastgen_chain
from benchmarks.timing import Timing, time_interleaved
from fdkernels import backends

SHAPES = ((64, 3, 32, 32), (8, 3, 512, 512), (2, 16, 21, 60, 104))
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
HEADS = 2
BINS = 10
# Rotating inputs together exceed this, four times the last-level cache of a large desktop part; a shape whose one set
# is under RESIDENT_BYTES is timed on that set alone, in cache, where training at that size finds it too.
ROTATION_BYTES = 256 * 2**20
RESIDENT_BYTES = 8 * 2**20
# Relative L2 of the gradient against float64 that a variant may have before its time means nothing. The peers form
# x - g, which in bf16 rounds away up to a tenth of g.
TOLERANCE = {"fused": {"fp32": 1e-5, "bf16": 4e-3}, "peer": {"fp32": 1e-4, "bf16": 0.2}}

Step = Callable[["Inputs"], tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class Inputs:
    student: Tensor
    teacher: Tensor
    fake: Tensor
    logits: Tensor
    t: Tensor
    out: Tensor


@dataclass(frozen=True)
class Row:
    """One variant at one shape and dtype; times in milliseconds."""

    op: str
    shape: tuple[int, ...]
    dtype: str
    variant: str
    median_ms: float
    low_ms: float
    high_ms: float
    gb_per_s: float
    x_stream: float
    x_eager: float
    x_compile: float | None
    gradient_error: float | None
    input_sets: int
    rounds: int
    calls_per_round: int

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def make_inputs(shape: tuple[int, ...], dtype: torch.dtype, seed: int) -> Inputs:
    generator = torch.Generator().manual_seed(seed)

    def noise(*size: int) -> Tensor:
        return torch.randn(size, generator=generator)

    student = noise(*shape)
    teacher = student + 0.5 * noise(*shape)
    fake = teacher + 0.25 * noise(*shape)
    x = student.to(dtype).requires_grad_()
    t = torch.rand(shape[0], generator=generator)
    return Inputs(x, teacher.to(dtype), fake.to(dtype), noise(shape[0], HEADS), t, torch.empty(shape, dtype=dtype))


def exact_gradient(inputs: Inputs) -> Tensor:
    """∂loss/∂x in float64, for fresh bins and decay 0.9."""
    x, teacher, fake = (v.detach().double() for v in (inputs.student, inputs.teacher, inputs.fake))
    r = inputs.logits.double().mean(1).exp().clamp(0.1, 20.0)
    index = (inputs.t.double() * BINS).floor().long().clamp(0, BINS - 1)
    for b in index.unique():
        here = index == b
        r[here] = r[here] / (0.9 + 0.1 * r[here].mean())
    h = r / (1 + r)
    h = h / h.mean()
    w = h / ((x - teacher).abs().flatten(1).mean(1) + 1e-6)
    return w.reshape(-1, *[1] * (x.ndim - 1)) * (fake - teacher) / x.numel()


def fused_step(backend: str) -> Step:
    normalizer = fdk.RatioNormalizer(BINS, (0.0, 1.0), 0.9)

    def step(v: Inputs) -> tuple[Tensor, Tensor]:
        loss = fdk.fused_fdiv_loss(
            v.student, v.teacher, v.fake, v.logits, v.t, divergence="js", normalizer=normalizer, backend=backend
        )
        return loss, torch.autograd.grad(loss, v.student)[0]

    return step


def peer_step(chain: Callable[..., Tensor]) -> Step:
    bins = torch.ones(BINS)

    def step(v: Inputs) -> tuple[Tensor, Tensor]:
        loss = chain(v.student, v.teacher, v.fake, v.logits, v.t, bins)
        return loss, torch.autograd.grad(loss, v.student)[0]

    return step


def steps(backend: str, compiled: bool) -> dict[str, Callable[[], Step]]:
    """A factory per variant, each with a state of its own."""
    found: dict[str, Callable[[], Step]] = {
        f"fdkernels {backend}": lambda: fused_step(backend),
        "eager FastGen": lambda: peer_step(fastgen_chain),
    }
    if compiled:
        chain = torch.compile(fastgen_chain, dynamic=False)  # backward is compiled with the forward, by AOTAutograd
        found["torch.compile FastGen"] = lambda: peer_step(chain)
    return found


def gradient_errors(makers: dict[str, Callable[[], Step]], inputs: Inputs, dtype: str) -> dict[str, float]:
    """Relative L2 error of each variant's gradient.

    Raises:
        RuntimeError: a variant is wrong, so timing it would say nothing.
    """
    exact = exact_gradient(inputs)
    errors = {}
    for name, make in makers.items():
        _, gradient = make()(inputs)
        errors[name] = ((gradient.double() - exact).norm() / exact.norm()).item()
        allowed = TOLERANCE["fused" if name.startswith("fdkernels") else "peer"][dtype]
        if not errors[name] <= allowed:
            raise RuntimeError(f"{name}: gradient is off by {errors[name]:.2g} (allowed {allowed:g}); not timed")
    return errors


def measure(shape: tuple[int, ...], dtype: str, *, backend: str, rounds: int, compiled: bool) -> list[Row]:
    """All variants at one shape and dtype, in one interleaved run."""
    elements = math.prod(shape)
    tensor_bytes = elements * DTYPES[dtype].itemsize
    resident = 4 * tensor_bytes < RESIDENT_BYTES
    sets = 1 if resident else max(2, math.ceil(ROTATION_BYTES / (4 * tensor_bytes)))
    data = [make_inputs(shape, DTYPES[dtype], seed) for seed in range(sets)]
    if backend == "auto":
        backend = backends.choose("auto", "cpu")
    torch._dynamo.reset()
    makers = steps(backend, compiled)
    errors = gradient_errors(makers, data[0], dtype)

    def on_rotating(step: Step) -> Callable[[int], object]:
        return lambda i: step(data[i % sets])

    def stream(i: int) -> Tensor:
        v = data[i % sets]
        with torch.no_grad():
            return torch.addcmul(v.student, v.teacher, v.fake, out=v.out)

    variants = {name: on_rotating(make()) for name, make in makers.items()}
    timings = time_interleaved({**variants, "streaming limit": stream}, rounds=rounds)

    def row(name: str, timing: Timing) -> Row:
        compile_time = timings.get("torch.compile FastGen")
        return Row(
            op="fused_fdiv_loss fwd+bwd", shape=shape, dtype=dtype, variant=name,
            median_ms=timing.median * 1e3, low_ms=timing.low * 1e3, high_ms=timing.high * 1e3,
            gb_per_s=4 * tensor_bytes / timing.median / 1e9,
            x_stream=timing.median / timings["streaming limit"].median,
            x_eager=timings["eager FastGen"].median / timing.median,
            x_compile=compile_time.median / timing.median if compile_time else None,
            gradient_error=errors.get(name), input_sets=sets, rounds=timing.rounds, calls_per_round=timing.calls,
        )  # fmt: skip

    return [row(name, timing) for name, timing in timings.items()]
