"""The op `adversarial` in eager PyTorch: the specification of every other backend. In float64, rounded once.

With s = -1 if the logits a are raised, else 1, and b the others:

    logistic      Σ softplus(s·a)  + Σ softplus(-s·b)
    hinge         Σ relu(1 + s·a)  + Σ relu(1 - s·b)
    linear        Σ s·a            - Σ s·b
    relativistic  Σ softplus(s·(a - b))
    square        Σ (a - b)²
"""

from __future__ import annotations

import torch
from torch import Tensor

from fdkernels._op.floats import float16_power
from fdkernels.adversarial.arguments import ADVERSARIAL, PAIRED, AdversarialArguments, adversarial_outputs


@torch.no_grad()
def adversarial(call: AdversarialArguments) -> tuple[Tensor, ...]:
    """The raw op. Returns (loss, gradient, unscale, others' gradient, its unscale)."""
    call = ADVERSARIAL.traced(call)
    given = [call.logits] if call.others is None else [call.logits, call.others]
    one = torch.ones((), dtype=torch.float64, device=call.logits.device)
    bound, divisor = one * call.bound, one * call.divisor()
    bound = torch.where(bound == 0, torch.inf, bound)
    clamped = [v.double().clamp(-bound, bound) for v in given]
    sign = -1.0 if call.raised else 1.0
    if call.kind in PAIRED:
        value, slope = term(call.kind, clamped[0] - clamped[1], sign)
        slopes = [slope, -slope]
    else:
        pairs = [term(call.kind, v, s) for v, s in zip(clamped, (sign, -sign), strict=False)]
        value = pairs[0][0] if len(pairs) == 1 else pairs[0][0] + pairs[1][0]
        slopes = [slope for _, slope in pairs]
    sums = value.reshape(len(value), -1).sum(1)
    loss, *rest = adversarial_outputs(call)
    outputs = list(rest)  # for torch 2.10's Dynamo `rest` is a tuple
    loss = ((sums if call.reduction == "none" else sums.sum()) / divisor).to(loss.dtype)
    for at, (v, wide, slope) in enumerate(zip(given, clamped, slopes, strict=True)):
        if not (call.with_others_grad if at else call.with_grad):
            continue
        power = one
        if v.dtype == torch.float16:
            power = float16_power(divisor) * call.headroom()
            outputs[2 * at + 1] = power.reciprocal().float().expand(loss.shape).clone()
        slope = torch.where(wide != v.double(), 0.0, slope)
        # A logit that is NaN has no slope, which hinge and linear do not see.
        slope = torch.where(v.isnan(), torch.nan, slope)
        outputs[2 * at] = (slope / divisor * power).to(v.dtype)
    return (loss, *outputs)


def term(kind: str, v: Tensor, sign: float) -> tuple[Tensor, Tensor]:
    """An element's term of the loss and its derivative."""
    u = sign * v
    if kind in ("logistic", "relativistic"):
        return torch.logaddexp(u, torch.zeros_like(u)), sign * torch.sigmoid(u)
    if kind == "hinge":
        return (1 + u).relu(), sign * (u > -1).double()
    if kind == "linear":
        return u, torch.full_like(u, sign)
    return v * v, 2 * v
