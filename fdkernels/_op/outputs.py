"""The uninitialized results of a loss, as `registry.py` has them: loss, then gradient and unscale of each input."""

from __future__ import annotations

import torch
from torch import Tensor


def loss_outputs(first: Tensor, reduction: str, *gradients: tuple[Tensor | None, bool]) -> list[Tensor]:
    """[loss, gradient, unscale, gradient, unscale, ...]; a gradient that is not wanted, and its unscale, are empty.

    first: the samples of the loss, whose dtype decides the loss's. gradients: each input that may get a gradient, and
    whether it is wanted; an input that the call does not have is None.
    """
    per_loss = (first.shape[0],) if reduction == "none" else ()
    outputs = [first.new_empty(per_loss, dtype=torch.float64 if first.dtype == torch.float64 else torch.float32)]
    for given, wanted in gradients:
        v, wanted = (first, False) if given is None else (given, wanted)
        scaled = wanted and v.dtype == torch.float16
        outputs.append(v.new_empty(v.shape if wanted else (0,)))
        outputs.append(v.new_empty(per_loss if scaled else (0,), dtype=torch.float32))
    return outputs
