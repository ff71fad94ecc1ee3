"""A forward of the CUDA backend, element by element through the functions that its kernels call, on the host.

What only a device can do is left out: threads, blocks and clusters run one after the other, and their sums are added
here. Weights are the CPU backend's.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from fdkernels.fdiv.arguments import FdivArguments

_NAMES = {torch.bfloat16: "bf16", torch.float16: "f16", torch.float32: "f32"}


@dataclass
class Team:
    """Blocks of threads that share a sample; `held`: the part of each block's share that stays on chip."""

    blocks: int
    threads: int
    held: float = 1.0


def loads_of(call: FdivArguments) -> tuple[str, bool, int]:
    """(type combination, whether it has more than x, τ and f, elements of a vector), as the launcher says."""
    if call.dtype() == torch.float64:
        return "any_f64", True, 2
    students = {v.dtype for v in (call.student, call.noisy) if v is not None}
    predictions = {v.dtype for v in call.images() if v is not call.student and v is not call.noisy}
    if len(students) > 1 or len(predictions) > 1 or (students != predictions and predictions != {torch.float32}):
        return "any_f32", True, 4
    tables = (call.c, call.mask, call.noisy, call.teacher_uncond, call.fake_uncond)
    general = any(v is not None for v in tables) or (call.scale is not None and call.scale.shape[1] > 1)
    name = _NAMES[call.student.dtype]
    same = students == predictions
    return name if same else f"{name}_f32", general, 8 if same and name != "f32" else 4


def _image(tensor: Tensor | None) -> tuple[int, str, int] | None:
    if tensor is None:
        return None
    return tensor.data_ptr(), str(tensor.dtype).removeprefix("torch."), tensor.stride(0)


def _table(tensor: Tensor | None, inner: int) -> tuple[int, bool, int, int, int] | None:
    if tensor is None:
        return None
    stride = 0 if tensor.shape[0] == 1 else tensor.stride(0)
    return tensor.data_ptr(), tensor.dtype == torch.float64, stride, tensor.shape[1], inner


def _is_aligned(call: FdivArguments, gradient: Tensor, vector: int) -> bool:
    def fits(v: Tensor) -> bool:
        return v.data_ptr() % (vector * v.element_size()) == 0 and (v.shape[0] == 1 or v.stride(0) % vector == 0)

    return all(fits(v) for v in (*call.images(), gradient))


def weights(call: FdivArguments) -> tuple[Tensor, Tensor]:
    """(h, its figures)."""
    if call.logits is not None:
        return torch.ops.fdkernels.fdiv_weight_native(
            call.logits, call.t, call.ratio_mean, call.edges, call.t_min, call.t_max, call.decay, call.update,
            call.divergence, call.alpha, call.log_ratio_min, call.log_ratio_max, call.normalize_weight,
        )  # fmt: skip
    h = torch.ones(call.student.shape[0], dtype=torch.float64) if call.weight is None else call.weight.double()
    if call.t is not None:
        h = torch.where(call.t.double().isfinite(), h, torch.nan)
    return h, torch.full((7,), torch.nan, dtype=torch.float64)


def divisors(call: FdivArguments) -> Tensor:
    batch, elements = call.student.shape[0], math.prod(call.student.shape[1:])
    if call.reduction == "sum":
        return torch.ones(batch, dtype=torch.float64)
    if call.divisor is not None:
        return call.divisor.double().reshape(1).expand(batch).clamp(min=1)
    kept = torch.full((batch,), float(elements), dtype=torch.float64)
    if call.mask is not None:
        kept = call.mask.double().mean(1).expand(batch) * elements
    return (kept if call.reduction == "none" else kept.sum().expand(batch)).clamp(min=1)


def forward(host: ModuleType, call: FdivArguments, team: Team) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """What the op returns."""
    student = call.student
    batch, elements = student.shape[0], math.prod(student.shape[1:])
    loads, general, vector = loads_of(call)
    # Guards on both sides of the gradient find a store beyond it.
    guarded = torch.full((batch * elements + 32,), 7.0, dtype=student.dtype)
    gradient = guarded[16:-16].view(student.shape)
    share = math.ceil(math.ceil(elements / vector) / team.blocks) * vector
    held = math.floor(team.held * share / vector)
    h, weight_stats = weights(call)
    divisor = divisors(call)
    power = torch.ones_like(divisor)
    if student.dtype == torch.float16:
        power = torch.ldexp(power, torch.frexp(divisor).exponent - 1)
    problem: dict[str, Any] = {name: _image(getattr(call, name)) for name in FdivArguments._fields[:5]}
    problem |= {
        "batch": batch, "elements": elements, "noisy": _image(call.noisy), "a": _table(call.a, call.coefficient_inner),
        "c": _table(call.c, call.coefficient_inner), "scale": _table(call.scale, call.scale_inner),
        "mask": _table(call.mask, call.mask_inner), "guidance_scale": call.guidance_scale,
        "fake_guidance_scale": call.fake_guidance_scale, "dmd_scale": call.dmd_scale, "eps": call.eps,
        "zero_nonfinite": call.zero_nonfinite, "with_stats": call.with_stats, "gradient": gradient.data_ptr(),
        "aligned": _is_aligned(call, gradient, vector),
    }  # fmt: skip
    samples = host.run(
        loads, general, problem, share, held, team.blocks, team.threads, h.tolist(), (divisor / power).tolist()
    )
    assert (guarded[:16] == 7).all() and (guarded[-16:] == 7).all(), "a store beyond the gradient"
    distance, energy, gap, bad, kept, w = torch.tensor(samples, dtype=torch.float64).unbind(1)
    if general and call.mask is not None and not bool(bad.any()):
        torch.testing.assert_close(kept, call.mask.double().mean(1).expand(batch) * elements)
    energy = torch.where(w == 0, 0.0, w.square() * energy)
    loss = 0.5 * energy / divisor if call.reduction == "none" else 0.5 * energy.sum() / divisor[0]
    good = bad == 0
    figures = ((energy / divisor.square()).sum().sqrt(), gap[good].sum() / distance[good].sum(), bad.sum())
    empty = torch.empty(0)
    return (
        loss.to(torch.float64 if student.dtype == torch.float64 else torch.float32),
        gradient if call.with_grad else empty.to(student.dtype),
        (1 / (power if call.reduction == "none" else power[0])).float() if student.dtype == torch.float16 else empty,
        torch.cat((weight_stats, torch.stack(figures), h)) if call.with_stats else empty.double(),
    )
