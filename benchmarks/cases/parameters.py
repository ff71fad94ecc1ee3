"""What a step does over lists of parameters: gradient clipping, and the average of the weights.

FastGen (34f30e8: GradClipCallback, EMACallback) looks for non-finite gradients tensor by tensor, each time waiting for
the GPU, and averages tensor by tensor. Ours are PyTorch's own functions over all tensors at once. The lists are those
of a network in which every second tensor is a vector, as a bias or the scale of a norm is.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import clip_grad_norm_
from torch.optim.swa_utils import get_ema_multi_avg_fn

from benchmarks.cases.exact import doubles
from benchmarks.cases.formula import Draw, Formula, Inputs
from benchmarks.cases.shapes import STEP, Case

VECTOR = 256
MAX_NORM, DECAY = 1.0, 0.99


class Network(nn.Module):
    """Parameters that are views of `student`, with gradients that are views of `teacher` and an average, of `fake`."""

    def __init__(self, v: Inputs) -> None:
        super().__init__()
        sizes = v.t.tolist()
        self.weights = nn.ParameterList(v.student.split(sizes))
        for weight, gradient in zip(self.weights, v.teacher.split(sizes), strict=True):
            weight.grad = gradient
        self.average = [w.detach() for w in v.fake.split(sizes)]


def network(v: Inputs) -> Network:
    """The network over a set of data, made once."""
    found: Network | None = getattr(v.student, "network", None)
    if found is None:
        found = v.student.network = Network(v)  # type: ignore[attr-defined]
    return found


def fastgen_clip(v: Inputs) -> Tensor:
    for weight in network(v).parameters():
        gradient = weight.grad
        assert gradient is not None
        if gradient.numel() - gradient.isfinite().sum().item():
            torch.nan_to_num(gradient, nan=0.0, out=gradient)
    return our_clip(v)


def our_clip(v: Inputs) -> Tensor:
    clip_grad_norm_(network(v).parameters(), MAX_NORM, foreach=True)
    return v.teacher


@torch.no_grad()
def fastgen_average(v: Inputs) -> Tensor:
    source = network(v)
    for average, weight in zip(source.average, source.parameters(), strict=True):
        average.lerp_(weight.to(device=average.device, dtype=average.dtype), 1.0 - DECAY)
    return v.fake


def our_average(v: Inputs) -> Tensor:
    source = network(v)
    get_ema_multi_avg_fn(DECAY)(source.average, list(source.parameters()), torch.empty(0))
    return v.fake


def exact_clip(v: Inputs) -> Tensor:
    (gradient,) = doubles(v.teacher)
    return gradient * (MAX_NORM / (gradient.norm() + 1e-6)).clamp(max=1.0)


def exact_average(v: Inputs) -> Tensor:
    weights, average = doubles(v.student, v.fake)
    return DECAY * average + (1 - DECAY) * weights


def lists(case: Case, draw: Draw) -> Inputs:
    """case.shape is the number of tensors and their mean size."""
    count, mean = case.shape[0], case.elements // case.shape[0]
    vector = min(VECTOR, mean)
    sizes = [vector if i % 2 else 2 * mean - vector for i in range(count)]
    if count % 2:
        sizes[-1] = mean
    weights, gradients, average = (draw.normal(case.elements) for _ in range(3))
    return Inputs(weights, gradients, average, torch.empty(0), torch.tensor(sizes))


_LISTS: dict[str, Any] = {
    "op": STEP, "peer": "fastgen", "inputs": lists, "reread": 0, "forward": True, "fp32": True, "in_place": True,
}  # fmt: skip

LISTS = (
    Formula(
        "clip", title="gradient clipping of a list of tensors: FastGen's, and clip_grad_norm_(foreach=True)",
        chain=fastgen_clip, call=lambda chain, v, _: chain(v), ours=lambda v, *_: our_clip(v), exact=exact_clip,
        images=1, **_LISTS,
    ),
    Formula(
        "average", title="average of a list of weights: FastGen's EMA, and get_ema_multi_avg_fn",
        chain=fastgen_average, call=lambda chain, v, _: chain(v), ours=lambda v, *_: our_average(v),
        exact=exact_average, images=2, **_LISTS,
    ),
)  # fmt: skip
