"""Stand-ins for the networks of a step. They compute nothing: their outputs, and the gradients that they send back, are
there before the call. So what is timed and counted of a step are the tensor ops between its networks.

As with real networks, torch.compile does not see through them: what they read has to be in memory when they run.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function


@torch.compiler.disable
def outputs(inputs: tuple[Tensor, ...], *found: Tensor) -> tuple[Tensor, ...]:
    """What the networks make of `inputs`."""
    return found


@torch.compiler.disable
def logits(noisy: Tensor, found: Tensor, sent: Tensor) -> Tensor:
    """The discriminator's logits on x_t; their backward sends `sent` to x_t."""
    result: Tensor = _Discriminator.apply(noisy, found, sent)
    return result


class _Discriminator(Function):
    @staticmethod
    def forward(ctx: Any, noisy: Tensor, found: Tensor, sent: Tensor) -> Tensor:
        ctx.sent = sent
        return found.view_as(found)

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor, Tensor, None]:
        return ctx.sent, upstream[0], None
