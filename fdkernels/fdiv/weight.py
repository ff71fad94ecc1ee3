"""From the discriminator's logits to the weight h in PyTorch, in float64. The kernels' comments number the steps, too:
1 mean over heads, 2 clamp, 3 normalizer, 4 log h, 5 division by the batch mean.

This file specifies the weights. Every backend also runs it where a single launch can't serve: statistics over a process
group, and divergences that users register.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from fdkernels._op.registry import inside_backward
from fdkernels.divergences import Divergence, from_kernel
from fdkernels.fdiv.arguments import FDIV_WEIGHT, WEIGHT_STATS, WeightArguments

# may_update is an op, because its answer is needed when a compiled graph runs, not when the graph is traced.
_library = torch.library.Library("fdkernels", "FRAGMENT")
_library.define("may_update(Tensor state) -> Tensor")
torch.library.register_fake("fdkernels::may_update", lambda state: state.new_empty((), dtype=torch.bool), lib=_library)
_library.impl(
    "may_update", lambda state: state.new_full((), not inside_backward(), dtype=torch.bool), "CompositeExplicitAutograd"
)


@torch.no_grad()
def fdiv_weight(
    call: WeightArguments, divergence: Divergence | None = None, group: Any | None = None
) -> tuple[Tensor, Tensor]:
    """(h (B,) in float64, its statistics (WEIGHT_STATS,)) of this process's samples.

    A sample whose combined logit or t is not finite gets NaN and takes part in nothing. A sample whose log h is not
    below infinity (the state holds a mean of 0, or a registered divergence returns it) gets NaN too. It takes no part
    in the batch mean of h and the first four statistics, but its ratio counts.

    Args:
        divergence: a divergence that a user registered, in place of the call's.
        group: process group of the batch statistics.
    """
    call = FDIV_WEIGHT.traced(call)
    logits, t = call.logits, call.t
    assert logits is not None
    if divergence is None:
        divergence = from_kernel(call.divergence, call.amari_alpha)
    log_ratio = logits.double()
    if log_ratio.dim() == 2:
        log_ratio = log_ratio.mean(1)
    t = None if t is None else t.double()
    finite = torch.isfinite(log_ratio) if t is None else torch.isfinite(log_ratio) & torch.isfinite(t)
    log_ratio = torch.where(finite, log_ratio, 0.0)
    clipped = finite & ((log_ratio < call.log_ratio_min) | (log_ratio > call.log_ratio_max))
    log_ratio = log_ratio.clamp(call.log_ratio_min, call.log_ratio_max)  # type: ignore[arg-type]  # both of one type
    ratio_stats = _ratio_stats(log_ratio, clipped, t, finite, call)
    mean = None
    if call.ratio_mean is not None and t is not None:
        log_ratio, mean = _normalize_ratio(log_ratio, t, finite, call.ratio_mean, call, group)
    log_h = _log_weight(divergence, log_ratio)
    finite = finite & (log_h < torch.inf)  # log h = -inf counts: h is 0
    if call.update and call.ratio_mean is not None and mean is not None:
        call.ratio_mean.copy_(mean)  # after log_weight: a user's divergence that raises must leave the state unchanged
    stats = torch.cat((_summarize(log_h, finite), ratio_stats))
    if call.normalize_weight:
        log_h = log_h - _log_batch_mean(log_h, finite, group)
    return torch.where(finite, log_h.exp(), torch.nan), stats


def _normalize_ratio(
    log_ratio: Tensor, t: Tensor, finite: Tensor, mean: Tensor, call: WeightArguments, group: Any | None
) -> tuple[Tensor, Tensor]:
    """(log_ratio - log m of its bin, m), m after the update."""
    t = torch.where(finite, t, call.t_min)
    bins = mean.numel()
    if call.edges is not None:
        index = torch.bucketize(t, call.edges, right=True)
    else:
        # Divide by a tensor: for a number, CUDA multiplies by its reciprocal, which moves an edge. The number may also
        # be a symbol.
        width = torch.zeros_like(t) + (call.t_max - call.t_min) / bins
        index = ((t - call.t_min) / width).floor().clamp(0, bins - 1).long()
    # A sum over a one-hot matrix: no atomics, so the same bits every time, and no host sync.
    member = index[:, None] == torch.arange(bins, device=log_ratio.device)
    if call.update:
        taken = member & finite[:, None]
        totals = torch.stack((taken.double().sum(0), torch.where(taken, log_ratio.exp()[:, None], 0.0).sum(0)))
        if group is not None:
            dist.all_reduce(totals, group=group)
        count, ratio_sum = totals
        old = mean.double()
        new = call.decay * old + (1 - call.decay) * ratio_sum / count.clamp(min=1)
        updated = (count > 0) & torch.ops.fdkernels.may_update(mean)
        mean = torch.where(updated, new, old).to(mean.dtype)
    return log_ratio - torch.where(member, mean.double(), 0.0).sum(1).log(), mean


def _log_weight(divergence: Divergence, log_ratio: Tensor) -> Tensor:
    log_h = divergence.log_weight(log_ratio)
    if not isinstance(log_h, Tensor) or log_h.shape != log_ratio.shape or not log_h.is_floating_point():
        got = f"{tuple(log_h.shape)}, {log_h.dtype}" if isinstance(log_h, Tensor) else type(log_h).__name__
        raise ValueError(
            f"divergence {divergence.name!r}: log_weight must return shape {tuple(log_ratio.shape)} in a floating "
            f"dtype, got {got}"
        )
    return log_h.double()


def _log_batch_mean(log_h: Tensor, finite: Tensor, group: Any | None) -> Tensor:
    log_h = torch.where(finite, log_h, -torch.inf)
    if group is None:
        # No clamp of the count: without a finite sample the mean is 0/0, and every weight is NaN anyway.
        return log_h.logsumexp(0) - finite.sum().double().log() if log_h.numel() else log_h.sum()
    totals = torch.stack((log_h.exp().sum(), finite.double().sum()))
    dist.all_reduce(totals, group=group)
    return (totals[0] / totals[1]).log()


def _ratio_stats(log_ratio: Tensor, clipped: Tensor, t: Tensor | None, finite: Tensor, call: WeightArguments) -> Tensor:
    """ratio_mean, clip_fraction and out_of_range_fraction; NaN if the call does not have them."""
    count = finite.sum().double()
    outside = torch.full_like(count, torch.nan)
    if call.ratio_mean is not None and t is not None:
        outside = (finite & ((t < call.t_min) | (t > call.t_max))).sum() / count
    return torch.stack((torch.where(finite, log_ratio.exp(), 0.0).sum() / count, clipped.sum() / count, outside))


def _summarize(log_h: Tensor, finite: Tensor) -> Tensor:
    """min, mean and max of h over the finite samples, and (Σh)²/(B·Σh²); NaN if there are none."""
    if not log_h.numel():
        return log_h.new_full((4,), torch.nan)
    low = torch.where(finite, log_h, torch.inf).amin()
    high = torch.where(finite, log_h, -torch.inf).amax()
    # Relative to the largest h, so that no square overflows. If every h is 0, the mean and the last figure are NaN.
    relative = torch.where(finite, (log_h - high).exp(), 0.0)
    total = relative.sum()
    ess = total.square() / (log_h.numel() * relative.square().sum())
    mean = high.exp() * total / finite.sum()
    return torch.stack((low.exp(), mean, high.exp(), ess)) + torch.where(finite.any(), 0.0, torch.nan)


def given_weight(weight: Tensor | None, t: Tensor | None, student: Tensor) -> Tensor:
    """h of a call without logits; NaN where t is not finite."""
    if weight is None:
        h = torch.ones(student.shape[0], dtype=torch.float64, device=student.device)
    else:
        h = weight.detach().double()
    return h if t is None else torch.where(torch.isfinite(t.double()), h, torch.nan)


def given_weight_stats(h: Tensor) -> Tensor:
    """The first four statistics of weights that the caller gave; the others are NaN."""
    stats = h.new_full((WEIGHT_STATS,), torch.nan)
    if h.numel():
        finite = torch.isfinite(h)
        used, count = torch.where(finite, h, 0.0), finite.sum()
        stats[0] = torch.where(finite, h, torch.inf).amin()
        stats[1] = used.sum() / count
        stats[2] = torch.where(finite, h, -torch.inf).amax()
        stats[3] = used.sum().square() / (h.numel() * used.square().sum())
        stats[:4] += torch.where(finite.any(), 0.0, torch.nan)
    return stats
