"""The op `implicit` in eager PyTorch: the specification of every other backend. In float64, rounded once.

With e = τ - f and d = τ - x of each sample: P = Σ e·d, Q = Σ e², M = h1·P - α·h2·Q.

sid: loss = w·M, w = 1 / max(mean|d|, floor) a constant
sim: loss = k²·M / D, D = √(k²·Q + c²), α = 1
∂loss/∂x = -p·e,   ∂loss/∂τ = p·(e + d) + 2q·e,   ∂loss/∂f = -p·d - 2q·e,   p = ∂loss/∂P, q = ∂loss/∂Q
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from fdkernels._op.floats import float16_power
from fdkernels.implicit.arguments import IMPLICIT, ImplicitArguments


@torch.no_grad()
def implicit(call: ImplicitArguments) -> tuple[Tensor, ...]:
    """The raw op. Returns (loss, then gradient and unscale of student, of teacher and of fake, nothing)."""
    call = IMPLICIT.traced(call)
    student = call.student
    batch, n = student.shape[0], math.prod(student.shape[1:])
    x, tau, f = (v.double().reshape(batch, n) for v in (student, call.teacher, call.fake))
    e, d = tau - f, tau - x
    product, square, distance = (e * d).sum(1), (e * e).sum(1), d.abs().sum(1)
    p, q, loss = _slopes(call, product, square, distance / n)
    # If the sums are not finite, neither is anything else of this sample.
    lost = torch.where(torch.isfinite(product + square + distance), 0.0, torch.nan)
    p, q, loss = p + lost, q + lost, loss + lost

    elements = {"mean": batch * n, "none": n, "sum": 1}[call.reduction]
    samples = {"mean": batch, "none": 1, "sum": 1}[call.reduction]
    divisor = torch.full((), float(elements if call.kind == "sid" else samples), dtype=torch.float64, device=x.device)
    # An element of sim's gradient is as large as e / √(Σ e²), so it is stored times a larger power.
    power = float16_power(divisor * torch.full_like(divisor, float(n)).sqrt() if call.kind == "sim" else divisor)
    p, q = (p / divisor)[:, None], (q / divisor)[:, None]
    wide = torch.float64 if student.dtype == torch.float64 else torch.float32
    outputs = [((loss if call.reduction == "none" else loss.sum()) / divisor).to(wide)]
    for each, with_grad, gradient in (
        (student, call.with_student_grad, -p * e),
        (call.teacher, call.with_teacher_grad, p * (e + d) + 2 * q * e),
        (call.fake, call.with_fake_grad, -p * d - 2 * q * e),
    ):
        is_half = with_grad and each.dtype == torch.float16
        stored = (gradient * power if is_half else gradient).to(each.dtype).view(each.shape)
        unscale = power.reciprocal().float().expand(outputs[0].shape).clone()
        outputs.append(stored if with_grad else each.new_empty((0,)))
        outputs.append(unscale if is_half else unscale.new_empty((0,)))
    return (*outputs, divisor.new_empty((0,)))


def _slopes(call: ImplicitArguments, product: Tensor, square: Tensor, omega: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """p, q and the loss of each sample, not divided."""
    h1, h2 = (
        _value(call.weight, call.fixed_weight, product),
        _value(call.square_weight, call.fixed_square_weight, product),
    )
    mixed = h1 * product - call.alpha * h2 * square
    if call.kind == "sid":
        w = 1 / torch.where(omega < call.floor, torch.zeros_like(omega) + call.floor, omega)
        return w * h1, -call.alpha * w * h2, w * mixed
    k = _value(call.score_scale, call.fixed_score_scale, product).abs()
    # Of ratios, since k⁴ and D³ may leave float64's range where the result does not.
    ratio = k / torch.hypot(k * square.sqrt(), torch.zeros_like(square) + call.c)
    slope = k * ratio
    return slope * h1, -slope * (h2 + ratio * (ratio * mixed) / 2), slope * mixed


def _value(per_sample: Tensor | None, fixed: float | Tensor, like: Tensor) -> Tensor:
    return torch.zeros_like(like) + fixed if per_sample is None else per_sample.double()
