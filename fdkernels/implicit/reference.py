"""The op `implicit` in eager PyTorch: the specification of every other backend. In float64, rounded once.

With e = τ - f, d = τ - x and u = f - x = d - e of each sample: M = h1·Σ e·d - α·h2·Σ e².

sid: loss = w·M, w = 1 / max(mean|d|, floor) a constant
sim: loss = k²·M / D, D = √(k²·Σ e² + c²), α = 1
∂loss/∂x = -p·e,   ∂loss/∂τ = p·(e + d) + 2q·e,   ∂loss/∂f = -p·d - 2q·e,   p = ∂loss/∂(Σ e·d), q = ∂loss/∂(Σ e²)

Terms of e and d cancel where f has learned x and α is near 1. All of this is computed from e and u instead.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from fdkernels._op.floats import float16_power
from fdkernels.implicit.arguments import IMPLICIT, ImplicitArguments


@torch.no_grad()
def implicit(call: ImplicitArguments) -> tuple[Tensor, ...]:
    """The raw op. Returns (loss, then gradient and unscale of student, of teacher and of fake)."""
    call = IMPLICIT.traced(call)
    student = call.student
    batch, n = student.shape[0], math.prod(student.shape[1:])
    x, tau, f = (v.double().reshape(batch, n) for v in (student, call.teacher, call.fake))
    e, u = tau - f, f - x
    cross, square, distance = (e * u).sum(1), (e * e).sum(1), (tau - x).abs().sum(1)
    p, q, loss = _slopes(call, cross, square, distance / n)
    # If the sums are not finite, neither is anything else of this sample.
    lost = torch.where(torch.isfinite(cross + square + distance), 0.0, torch.nan)
    p, q, loss = p + lost, q + lost, loss + lost

    elements = {"mean": batch * n, "none": n, "sum": 1}[call.reduction]
    samples = {"mean": batch, "none": 1, "sum": 1}[call.reduction]
    divisor = torch.full((), float(elements if call.kind == "sid" else samples), dtype=torch.float64, device=x.device)
    # An element of sim's gradient is as large as e / √(Σ e²), so it is stored times a larger power.
    power = float16_power(divisor * torch.full_like(divisor, float(n)).sqrt() if call.kind == "sim" else divisor)
    p, q = (p / divisor)[:, None], (q / divisor)[:, None]
    wide = torch.float64 if student.dtype == torch.float64 else torch.float32
    outputs = [((loss if call.reduction == "none" else loss.sum()) / divisor).to(wide)]
    nothing = divisor.new_empty((0,), dtype=torch.float32)
    for each, with_grad, of_e, of_u in (
        (student, call.with_student_grad, -p, torch.zeros_like(p)),
        (call.teacher, call.with_teacher_grad, 2 * (p + q), p),
        (call.fake, call.with_fake_grad, -(p + 2 * q), -p),
    ):
        if not with_grad:
            outputs += [each.new_empty((0,)), nothing]
            continue
        is_half = each.dtype == torch.float16
        gradient = of_e * e + of_u * u
        outputs.append((gradient * power if is_half else gradient).to(each.dtype).view(each.shape))
        outputs.append(power.reciprocal().float().expand(outputs[0].shape).clone() if is_half else nothing)
    return tuple(outputs)


def _slopes(call: ImplicitArguments, cross: Tensor, square: Tensor, omega: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """p, q and the loss of each sample, not divided. cross: Σ e·u; square: Σ e²."""
    h1 = _value(call.weight, call.fixed_weight, cross)
    h2 = call.alpha * _value(call.square_weight, call.fixed_square_weight, cross)
    mixed = h1 * cross + (h1 - h2) * square
    if call.kind == "sid":
        w = 1 / torch.where(omega < call.floor, torch.zeros_like(omega) + call.floor, omega)
        return w * h1, -w * h2, w * mixed
    # Of ratios, since k⁴ and D³ may leave float64's range where the result does not.
    k = _value(call.score_scale, call.fixed_score_scale, cross)
    ratio = k / torch.hypot(k * square.sqrt(), torch.zeros_like(square) + call.c)
    slope = k * ratio
    return slope * h1, -slope * (h2 + ratio * (ratio * mixed) / 2), slope * mixed


def _value(per_sample: Tensor | None, fixed: float | Tensor, like: Tensor) -> Tensor:
    return torch.zeros_like(like) + fixed if per_sample is None else per_sample.double()
