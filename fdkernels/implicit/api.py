"""The public function over the op `implicit`: signature, validation, choice of backend."""

from __future__ import annotations

import numbers
from typing import Any

import torch
from torch import Tensor

from fdkernels import backends
from fdkernels._op import registry
from fdkernels._op.checks import (
    check_choice,
    check_constant,
    check_like,
    check_number,
    check_positive,
    check_samples,
    one_per_sample,
    shown,
)
from fdkernels._op.views import dense_samples, memory_order
from fdkernels.implicit import reference
from fdkernels.implicit.arguments import IMPLICIT, ImplicitArguments, implicit_outputs

_IMPLICIT = registry.register(
    registry.Op(
        "implicit", "score_implicit_loss", IMPLICIT,
        "Tensor loss, Tensor student_gradient, Tensor student_unscale, Tensor teacher_gradient, "
        "Tensor teacher_unscale, Tensor fake_gradient, Tensor fake_unscale",
        implicit_outputs, reference.implicit,
        (("student", "with_student_grad"), ("teacher", "with_teacher_grad"), ("fake", "with_fake_grad")),
    ),
    "fdkernels.implicit.triton_launch",
)  # fmt: skip
registry.differentiable(_IMPLICIT)

KINDS = ("sid", "sim")
REDUCTIONS = ("mean", "sum", "none")


def score_implicit_loss(
    student: Tensor,
    teacher: Tensor,
    fake: Tensor,
    *,
    kind: str = "sid",
    alpha: float | None = None,
    floor: float | None = None,
    score_scale: float | Tensor | None = None,
    c: float | None = None,
    weight: float | Tensor | tuple[float | Tensor, float | Tensor] | None = None,
    reduction: str = "mean",
    backend: str = "auto",
) -> Tensor:
    """The loss of score implicit matching, with the gradients of student, teacher and fake score in the same pass.

        e = τ - f,  d = τ - x                   τ, f: x0 predictions of teacher and fake score at a noised x
        sid:  Σ_i e·(h1·d - alpha·h2·e) / max(mean_i |d|, floor)       the mean over a sample is a constant of the loss
        sim:  k²·Σ_i e·(h1·d - h2·e) / √(k²·Σ_i e² + c²)               the root is not

    The student's sample x reaches τ and f through both networks, too. Their gradients are part of this loss, so do not
    detach teacher and fake. Freeze the networks' parameters instead.

    Args:
        student: (B, *S), x; float16, bfloat16, float32 or float64; any strides.
        teacher, fake: (B, *S), τ and f, in any mix of those dtypes. An input that requires no gradient gets none.
        kind: sid (Score identity Distillation), or sim (Score Implicit Matching with the pseudo-Huber distance).
        alpha: of sid, 1.2 if it is not given; SiD-LSG has 1.
        floor: of sid, at least 0, 1e-5 if it is not given: the least mean that divides; in units of x. With 0, a sample
            of d = 0 gets NaN.
        score_scale: of sim, k, by which a difference of x0 predictions becomes one of scores: α/σ² at noise level (α,
            σ). A number or one a sample, as (B,); 1 if it is not given.
        c: of sim, required: the positive constant of the pseudo-Huber distance, in units of k·e summed over a sample.
        weight: h1 and h2: a number, or one a sample, as (B,); or a pair of these. 1 if it is not given.
        reduction: "mean": sid divides by all N elements, as Self-Forcing does, sim by the number of samples. "sum": SiD
            divides that by the batch. "none": (B,), where sid's are means over a sample's elements.
        backend: as in `fused_fdiv_loss`.

    score_scale and weight are constants of the loss. If an element of a sample is not finite, the sample's gradients
    and the loss are NaN. A float16 gradient is stored unscaled by N (sid) or N/√n (sim; n elements a sample), and must
    stay below 65504 then: for sid that is weight·|2(1 - alpha)·e + f - x| / mean|d|, for sim about weight·k, and √n
    times that if all of e is in one element. It loses digits where this is below 1e-3, and vanishes below 1e-7: with
    weights or k that small, multiply the loss instead. In float32 the gradients are right to 2⁻²⁴ of their terms, which
    are multiples of τ - f and f - x; where these cancel, less of the result is.

    Returns:
        The loss, float32 (float64 for a float64 student).

    Raises:
        ValueError: a shape, dtype or device that does not fit; an unknown kind; c missing or not positive; score_scale
            or c with sid, alpha or floor with sim; a weight or score_scale that requires a gradient, which it would not
            get.
        TypeError: not a tensor; a weight or score_scale that is neither a number nor a tensor.
        RuntimeError: a backend that is not available, with the reason; double backward.

    Source: Zhou et al. 2024 (SiD, arXiv 2404.04057), equation 23, and mingyuanzhou/SiD; Luo et al. 2024 (SIM, arXiv
    2410.16794); Wang et al. 2025 (Uni-Instruct, arXiv 2505.20755) for weights.

    Example:
        >>> x, tau, f = torch.randn(3, 8, 3, 16, 16).unbind()
        >>> inputs = [v.requires_grad_() for v in (x, tau, f)]  # in training: the networks' outputs at x_t
        >>> loss = fdk.score_implicit_loss(*inputs, alpha=1.2)
        >>> loss.backward()
        >>> [tuple(v.grad.shape) for v in inputs]
        [(8, 3, 16, 16), (8, 3, 16, 16), (8, 3, 16, 16)]
    """
    check_samples("student", student)
    if student.shape[0] == 0:
        raise ValueError(f"student: expected at least one sample, got shape {tuple(student.shape)}")
    check_like("teacher", teacher, student)
    check_like("fake", fake, student)
    check_choice("kind", kind, KINDS)
    check_choice("reduction", reduction, REDUCTIONS)
    other, without = ("sim", {"score_scale": score_scale, "c": c})
    if kind == "sim":
        other, without = ("sid", {"alpha": alpha, "floor": floor})
    for name, value in without.items():
        if value is not None:
            raise ValueError(f"{name}: expected with kind={other!r}, got kind={kind!r}")
    if kind == "sim":
        if c is None:
            raise ValueError("c: kind 'sim' needs it, got None")
        alpha, floor, c = 1.0, 0.0, check_positive("c", c)
    else:
        alpha = 1.2 if alpha is None else check_number("alpha", alpha)
        floor = 1e-5 if floor is None else check_number("floor", floor)
        if floor < 0.0:
            raise ValueError(f"floor: expected a number >= 0, got {shown(floor)}")
    scale, fixed_scale = _value("score_scale", score_scale, student)
    (h1, fixed_h1), (h2, fixed_h2) = _weights(weight, student)
    chosen = backends.choose(backend, student.device.type)
    backends.log_choice("score_implicit_loss", chosen, student.device.type)
    order = memory_order(student)

    def samples(v: Tensor) -> Tensor:
        return dense_samples(v if order is None else v.permute(order))

    recorded = torch.is_grad_enabled()
    call = ImplicitArguments(
        student=samples(student),
        teacher=samples(teacher),
        fake=samples(fake),
        kind=kind,
        alpha=alpha,
        floor=floor,
        c=1.0 if c is None else c,
        score_scale=scale,
        weight=h1,
        square_weight=h2,
        fixed_score_scale=fixed_scale,
        fixed_weight=fixed_h1,
        fixed_square_weight=fixed_h2,
        reduction=reduction,
        with_student_grad=student.requires_grad and recorded,
        with_teacher_grad=teacher.requires_grad and recorded,
        with_fake_grad=fake.requires_grad and recorded,
    )
    return registry.run(_IMPLICIT, chosen, call)[0]


def _weights(weight: Any, student: Tensor) -> list[tuple[Tensor | None, float]]:
    """h1 and h2."""
    if not isinstance(weight, (tuple, list)):
        return [_value("weight", weight, student)] * 2
    if len(weight) != 2:
        raise ValueError(f"weight: expected a number, a tensor or a pair of these, got {shown(weight)}")
    return [_value(f"weight[{at}]", value, student) for at, value in enumerate(weight)]


def _value(name: str, value: Any, student: Tensor) -> tuple[Tensor | None, float]:
    """(one value a sample, None if all samples share one; the one that they share)."""
    if isinstance(value, Tensor):
        check_constant(name, value)
        return one_per_sample(name, value, student.shape[0], student.device), 1.0
    if value is None:
        return None, 1.0
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        raise TypeError(f"{name}: expected a number or a tensor, got {type(value).__name__}")
    return None, check_number(name, value)
