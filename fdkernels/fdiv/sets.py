"""`DmdScale(over=...)`: one mean for a set that is not a sample. The same kernels run on a view whose samples are sets.

h is computed first. Over blocks of frames, (B, F, ...) becomes (B·F/k, k, ...), and each block gets its sample's
weight. Over the batch, (B, ...) becomes (1, B, ...), and the weights become a multiplier.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from fdkernels._op.views import as_table, broadcastable
from fdkernels.fdiv.scale import DmdScale
from fdkernels.prediction import KINDS, Prediction


def over_sets(
    loss: Callable[..., Any],
    scale: DmdScale,
    tensors: dict[str, Tensor | None],
    tables: dict[str, Tensor | None],
    prediction: Prediction | None,
    reduction: str,
    **options: Any,
) -> Callable[[Tensor | None], Any]:
    """Check a call, and return the function that makes it: from h (B,), or None if h is 1, to the result of `loss`,
    which is `fused_fdiv_loss`, for the original samples.

    Args:
        tensors: the N-sized inputs, with the student.
        tables: multiplier and mask.
    """
    student = tensors["student"]
    assert student is not None
    per_set = _over_batch(reduction) if scale.over == "batch" else _over_frames(scale, student)
    views = {name: None if v is None else per_set(v) for name, v in tensors.items()}
    tables = {name: None if v is None else per_set(broadcastable(name, v, student)) for name, v in tables.items()}
    if prediction is not None and prediction.kind != "sample":
        prediction = _prediction_of(prediction, student, per_set)
    options |= {"scale": replace(scale, over="sample"), "prediction": prediction, "reduction": reduction}

    def call(h: Tensor | None) -> Any:
        if scale.over == "batch":
            if h is not None:
                column, given = h.view(1, -1, *(1,) * (student.dim() - 1)), tables["multiplier"]
                tables["multiplier"] = column if given is None else column * given
            return loss(**views, **tables, **options)
        blocks = views["student"].shape[0] // student.shape[0]  # type: ignore[union-attr]
        result = loss(**views, **tables, weight=None if h is None else h.repeat_interleave(blocks), **options)
        if reduction != "none":
            return result
        losses, stats = result if options["return_stats"] else (result, None)
        losses, norm = _of_samples(losses.view(-1, blocks), tables["mask"], views["student"])
        return losses if stats is None else (losses, stats._replace(grad_norm=norm))

    return call


def _prediction_of(prediction: Prediction, student: Tensor, per_set: Callable[[Tensor], Tensor]) -> Prediction:
    changed: dict[str, Any] = {"noisy": None if prediction.noisy is None else per_set(prediction.noisy)}
    for name in KINDS[prediction.kind].needs:
        level = getattr(prediction, name)
        if isinstance(level, Tensor):
            changed[name] = per_set(broadcastable(prediction.argument(name), level, student))
    return replace(prediction, **changed)


def _over_batch(reduction: str) -> Callable[[Tensor], Tensor]:
    if reduction == "none":
        raise ValueError(
            "reduction: expected 'mean' or 'sum' with over='batch', got 'none'; its samples share one mean"
        )
    return lambda v: v.unsqueeze(0)


def _over_frames(scale: DmdScale, student: Tensor) -> Callable[[Tensor], Tensor]:
    size = 1 if scale.over == "frame" else int(scale.over)
    if student.dim() < 2 or student.shape[1] % size:
        raise ValueError(
            f"over: expected blocks that divide the frames, student's dimension 1, got {size} of {tuple(student.shape)}"
        )
    frames = student.shape[1]

    def per_block(v: Tensor) -> Tensor:
        if v.shape[:2] == (1, 1):
            return v
        whole = v.expand(student.shape[0], frames, *v.shape[2:])
        return whole.unflatten(1, (frames // size, size)).flatten(0, 1)

    return per_block


def _of_samples(losses: Tensor, mask: Tensor | None, sets: Tensor | None) -> tuple[Tensor, Tensor]:
    """(each sample's loss, the gradient's norm at upstream 1), from the losses of its blocks, (B, blocks)."""
    assert sets is not None
    kept = torch.ones_like(losses, dtype=torch.float64) * sets[:1].numel()
    if mask is not None:
        entries = as_table("mask", mask, sets.detach(), None).entries
        assert entries is not None
        kept = kept * entries.double().mean(1).expand(sets.shape[0]).view_as(losses)
    of_sample = kept.sum(1, keepdim=True).clamp(min=1.0)
    part = kept / of_sample
    # A block's loss is ½ Σ g² / kept.
    norm = (2 * losses.detach().double() * kept / of_sample.square()).sum().sqrt()
    return (losses * part).sum(1).to(losses.dtype), norm
