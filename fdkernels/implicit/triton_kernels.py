"""The op `implicit` in Triton: from samples to the loss and the gradients of student, teacher and fake score.

    e = τ - f,  u = f - x,  d = τ - x
    M = h1·Σ e·d - α·h2·Σ e² = h1·Σ e·u + (h1 - α·h2)·Σ e²
    sid: loss = w·M, w = 1 / max(mean|d|, floor)      sim: loss = k²·M / D, D = √(k²·Σ e² + c²)
    ∂loss/∂x = -p·e,  ∂loss/∂τ = 2·(p + q)·e + p·u,  ∂loss/∂f = -(p + 2q)·e - p·u,  p = ∂loss/∂Σe·d, q = ∂loss/∂Σe²

One launch if a program can hold a sample (`implicit_fwd_kernel`), else two (`implicit_reduce_kernel`,
`implicit_apply_kernel`); `triton_plan.py` decides. Sums are in float64. The program with the last ticket adds up the
samples' losses by index.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import triton
import triton.language as tl

from fdkernels._triton.elements import affine, float64, is_finite, load_samples, store_rounded
from fdkernels._triton.sums import is_last, load_stored, sum_of_pieces


class Operands(NamedTuple):
    """The inputs of a call; None for an input that the call does not have."""

    student: Any
    teacher: Any
    fake: Any
    score_scale: Any
    """(B,), or None if the number `fixed_score_scale` takes its place. The same holds for the weights."""
    weight: Any
    square_weight: Any
    end: None = None
    """Keep this None last, as in `fdiv/triton_elements.py`."""


class Written(NamedTuple):
    """The tensors that a forward writes; None for one that the call does not ask for."""

    loss: Any
    student: Any
    """A gradient, like the next two."""
    teacher: Any
    fake: Any
    student_unscale: Any
    teacher_unscale: Any
    fake_unscale: Any
    partials: Any
    """float64: a loss per sample, or in the split schedule (3, B, programs) sums."""
    slopes: Any
    """(2, B) float64, in the split schedule: p / N and q / N."""
    ticket: Any
    end: None = None


class Numbers(NamedTuple):
    """The numbers of a program. Build them inside a kernel: in a tuple argument they would arrive as float32."""

    elements: Any
    alpha: Any
    floor: Any
    c: Any
    score_scale: Any
    weight: Any
    square_weight: Any


@triton.jit
def _numbers(elements, alpha, floor, c, fixed_score_scale, fixed_weight, fixed_square_weight):
    return Numbers(
        float64(elements), float64(alpha), float64(floor), float64(c), float64(fixed_score_scale),
        float64(fixed_weight), float64(fixed_square_weight),
    )  # fmt: skip


@triton.jit
def _differences(operands, b, i, inside, WIDE: tl.constexpr):
    """(e, u, |d|)"""
    x = load_samples(operands.student, b, i, inside, WIDE)
    tau = load_samples(operands.teacher, b, i, inside, WIDE)
    f = load_samples(operands.fake, b, i, inside, WIDE)
    return tau - f, f - x, tl.abs(tau - x)


@triton.jit
def _constant(given, number, b, inside):
    """A sample's constant in float64. `b` is one sample or a block."""
    value = number
    if given is not None:
        value = tl.load(given + b, mask=inside, other=0).to(tl.float64)
    return value


@triton.jit
def _slopes(operands, numbers, distance, square, cross, b, inside, KIND: tl.constexpr):
    """(loss, p, q) of one sample or of a block of samples, not divided by N; NaN if a sum is not finite."""
    h1 = _constant(operands.weight, numbers.weight, b, inside)
    h2 = _constant(operands.square_weight, numbers.square_weight, b, inside)
    mixed = h1 * cross + (h1 - numbers.alpha * h2) * square
    if KIND == "sid":
        omega = distance / numbers.elements
        w = 1.0 / tl.where(omega < numbers.floor, numbers.floor, omega)
        loss, p, q = w * mixed, w * h1, -numbers.alpha * w * h2
    else:
        k = _constant(operands.score_scale, numbers.score_scale, b, inside)
        # Of ratios, since k⁴ and D³ may leave float64's range where the result does not. c is positive.
        score = tl.abs(k) * tl.sqrt(square)
        large, small = tl.maximum(score, numbers.c), tl.minimum(score, numbers.c)
        ratio = k / (large * tl.sqrt(1.0 + (small / large) * (small / large)))
        slope = k * ratio
        loss, p, q = slope * mixed, slope * h1, -slope * (h2 + 0.5 * ratio * (ratio * mixed))
    finite = is_finite(distance + square + cross)
    nan = float("nan")
    return tl.where(finite, loss, nan), tl.where(finite, p, nan), tl.where(finite, q, nan)


@triton.jit
def _power(gradient, power):
    """What a gradient is stored times."""
    by = tl.full((), 1.0, tl.float64)
    if tl.float16 == gradient.dtype.element_ty:
        by = float64(power)
    return by


@triton.jit
def _store_gradients(written, e, u, p, q, power, row, i, inside, WIDE: tl.constexpr):
    """p, q: divided by N."""
    if written.student is not None:
        by = -p * _power(written.student, power)
        store_rounded(written.student, row + i, by.to(WIDE) * e, inside)
    if written.teacher is not None:
        by = _power(written.teacher, power)
        store_rounded(written.teacher, row + i, affine(by * (2 * (p + q)), e, by * p, u, WIDE), inside)
    if written.fake is not None:
        by = -_power(written.fake, power)
        store_rounded(written.fake, row + i, affine(by * (p + 2 * q), e, by * p, u, WIDE), inside)


@triton.jit
def _store_unscale(written, power, b, inside):
    unscale = (tl.zeros_like(b).to(tl.float64) + 1.0 / float64(power)).to(tl.float32)
    if written.student_unscale is not None:
        tl.store(written.student_unscale + b, unscale, mask=inside)
    if written.teacher_unscale is not None:
        tl.store(written.teacher_unscale + b, unscale, mask=inside)
    if written.fake_unscale is not None:
        tl.store(written.fake_unscale + b, unscale, mask=inside)


# x, τ, f [B, n] -> loss and up to three gradients [B, n] in one launch. Program b holds sample b, [TILE] elements, in
# registers from its sums to its stores.
# Per element: reads x, τ and f once, writes the gradients: 12 bytes in bfloat16, 24 in float32.
@triton.jit
def implicit_fwd_kernel(
    operands, written, batch, elements, divisor: tl.float64, power: tl.float64, alpha: tl.float64, floor: tl.float64,
    c: tl.float64, fixed_score_scale: tl.float64, fixed_weight: tl.float64, fixed_square_weight: tl.float64,
    KIND: tl.constexpr, REDUCTION: tl.constexpr, SAMPLES: tl.constexpr, TILE: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    b = tl.program_id(0)
    i = tl.arange(0, TILE)
    inside = i < elements
    numbers = _numbers(elements, alpha, floor, c, fixed_score_scale, fixed_weight, fixed_square_weight)
    e, u, error = _differences(operands, b, i, inside, WIDE)
    wide = e.to(tl.float64)
    distance, square = tl.sum(error.to(tl.float64)), tl.sum(wide * wide)
    cross = tl.sum(wide * u.to(tl.float64))
    loss, p, q = _slopes(operands, numbers, distance, square, cross, b, b < batch, KIND)
    n = float64(divisor)
    _store_gradients(written, e, u, p / n, q / n, power, b.to(tl.int64) * elements, i, inside, WIDE)
    if REDUCTION == "none":
        tl.store(written.loss + b, loss / n)
        _store_unscale(written, power, b, b < batch)
    else:
        tl.store(written.partials + b, loss)
        if is_last(written.ticket):
            total = tl.zeros((SAMPLES,), tl.float64)
            for start in range(0, batch, SAMPLES):
                samples = start + tl.arange(0, SAMPLES)
                total += load_stored(written.partials + samples, samples < batch)
            tl.store(written.loss, tl.sum(total) / n)
            _store_unscale(written, power, tl.zeros_like(b), b < batch)


# Σ|d|, Σe², Σe·u of x, τ, f [B, n] -> loss, p / N and q / N [B]. Program `piece` of sample b adds up to `tiles` tiles
# of it; the program with the last ticket adds all of them.
# Per element: reads x, τ and f once, 6 bytes in bfloat16 (12 in float32), and writes nothing.
@triton.jit
def implicit_reduce_kernel(
    operands, written, batch, elements, programs, tiles, divisor: tl.float64, power: tl.float64, alpha: tl.float64,
    floor: tl.float64, c: tl.float64, fixed_score_scale: tl.float64, fixed_weight: tl.float64,
    fixed_square_weight: tl.float64, KIND: tl.constexpr, REDUCTION: tl.constexpr, SAMPLES: tl.constexpr,
    PIECES: tl.constexpr, TILE: tl.constexpr, OFFSET: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    b = tl.program_id(0) // programs
    begin = (tl.program_id(0) % programs).to(OFFSET) * tiles * TILE
    end = tl.minimum(begin + tiles * TILE, tl.full((), elements, OFFSET))
    distances = tl.zeros((TILE,), tl.float64)
    squares = tl.zeros((TILE,), tl.float64)
    crosses = tl.zeros((TILE,), tl.float64)
    for start in range(begin, end, TILE):
        i = start + tl.arange(0, TILE)
        e, u, error = _differences(operands, b, i, i < elements, WIDE)
        wide = e.to(tl.float64)
        distances += error.to(tl.float64)
        squares += wide * wide
        crosses += wide * u.to(tl.float64)
    at = written.partials + tl.program_id(0)
    field = tl.full((), batch, tl.int64) * programs
    tl.store(at, tl.sum(distances))
    tl.store(at + field, tl.sum(squares))
    tl.store(at + 2 * field, tl.sum(crosses))
    if is_last(written.ticket):
        numbers = _numbers(elements, alpha, floor, c, fixed_score_scale, fixed_weight, fixed_square_weight)
        n = float64(divisor)
        total = tl.zeros((SAMPLES,), tl.float64)
        for chunk in range(0, batch, SAMPLES):
            samples = chunk + tl.arange(0, SAMPLES)
            own = samples < batch
            distance = sum_of_pieces(written.partials, samples, batch, programs, SAMPLES, PIECES)
            square = sum_of_pieces(written.partials + field, samples, batch, programs, SAMPLES, PIECES)
            cross = sum_of_pieces(written.partials + 2 * field, samples, batch, programs, SAMPLES, PIECES)
            loss, p, q = _slopes(operands, numbers, distance, square, cross, samples, own, KIND)
            tl.store(written.slopes + samples, p / n, mask=own)
            tl.store(written.slopes + batch + samples, q / n, mask=own)
            if REDUCTION == "none":
                tl.store(written.loss + samples, loss / n, mask=own)
                _store_unscale(written, power, samples, own)
            else:
                total += tl.where(own, loss, 0.0)
        if REDUCTION != "none":
            tl.store(written.loss, tl.sum(total) / n)
            _store_unscale(written, power, tl.zeros_like(b), b < batch)


# x, τ, f [B, n], p / N and q / N [B] -> up to three gradients [B, n]. Each program of sample b stores up to `tiles`
# tiles of it. Samples go from the last to the first, because the cache still holds what the sums read last.
# Per element: reads x, τ and f again, writes the gradients: 12 bytes in bfloat16, 24 in float32.
@triton.jit
def implicit_apply_kernel(
    operands, written, batch, elements, programs, tiles, power: tl.float64,
    TILE: tl.constexpr, OFFSET: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    program = tl.num_programs(0) - 1 - tl.program_id(0)
    b = program // programs
    begin = (program % programs).to(OFFSET) * tiles * TILE
    end = tl.minimum(begin + tiles * TILE, tl.full((), elements, OFFSET))
    p, q = tl.load(written.slopes + b), tl.load(written.slopes + batch + b)
    row = b.to(tl.int64) * elements
    for start in range(begin, end, TILE):
        i = start + tl.arange(0, TILE)
        inside = i < elements
        e, u, _ = _differences(operands, b, i, inside, WIDE)
        _store_gradients(written, e, u, p, q, power, row, i, inside, WIDE)
