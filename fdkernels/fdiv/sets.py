"""`DmdScale(over=...)`: one mean for other sets than a sample, by the same kernels on a view whose samples are sets.

h is computed first. Over blocks of frames, (B, F, ...) becomes (B·F/k, k, ...), and a block's weight is its sample's.
Over the batch, (B, ...) becomes (1, B, ...), and the weights are a multiplier.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from fdkernels._op.views import as_table, broadcastable
from fdkernels.fdiv.scale import DmdScale
from fdkernels.prediction import Prediction


def over_sets(
    loss: Callable[..., Any],
    scale: DmdScale,
    tensors: dict[str, Tensor | None],
    tables: dict[str, Tensor | None],
    prediction: Prediction | None,
    h: Tensor,
    reduction: str,
    **options: Any,
) -> Any:
    """What `fused_fdiv_loss`, `loss` here, returns of the view.

    Args:
        tensors: N-sized, the student among them.
        tables: multiplier and mask.
        h: (B,), the weights as used.
    """
    student = tensors["student"]
    assert student is not None
    per_set = _over_batch(scale, reduction) if scale.over == "batch" else _over_frames(scale, student)
    views = {name: None if v is None else per_set(v) for name, v in tensors.items()}
    tables = {name: None if v is None else per_set(broadcastable(name, v, student)) for name, v in tables.items()}
    if prediction is not None:
        levels = {name: getattr(prediction, name) for name in ("alpha", "sigma")}
        levels = {
            name: per_set(broadcastable(prediction.argument(name), v, student)) if isinstance(v, Tensor) else v
            for name, v in levels.items()
        }
        noisy = None if prediction.noisy is None else per_set(prediction.noisy)
        prediction = replace(prediction, noisy=noisy, **levels)
    options |= {"scale": replace(scale, over="sample"), "prediction": prediction, "reduction": reduction}
    if scale.over == "batch":
        column = h.view(1, -1, *(1,) * (student.dim() - 1))
        given = tables["multiplier"]
        tables["multiplier"] = column if given is None else column * given
        return loss(**views, **tables, **options)
    blocks = views["student"].shape[0] // student.shape[0]  # type: ignore[union-attr]
    result = loss(**views, **tables, weight=h.repeat_interleave(blocks), **options)
    if reduction != "none":
        return result
    losses, stats = result if options["return_stats"] else (result, None)
    losses = _of_samples(losses.view(-1, blocks), tables["mask"], views["student"])
    return losses if stats is None else (losses, stats)


def _over_batch(scale: DmdScale, reduction: str) -> Callable[[Tensor], Tensor]:
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


def _of_samples(losses: Tensor, mask: Tensor | None, sets: Tensor | None) -> Tensor:
    """Each sample's mean over its elements, of its blocks' means (B, blocks)."""
    if mask is None or sets is None:
        return losses.mean(1)
    kept = as_table("mask", mask, sets.detach(), None).entries.double().mean(1)  # type: ignore[union-attr]
    kept = kept.expand(sets.shape[0]).view_as(losses)
    return (
        (losses * (kept / kept.sum(1, keepdim=True).clamp(min=torch.finfo(torch.float32).tiny))).sum(1).to(losses.dtype)
    )
