"""Tells of noise levels outside a normalizer's t_range: on the CPU at once, on a GPU some calls later, without a sync.

All of them share the end bins. DDPM's integer timesteps with the default t_range are the usual case.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from fdkernels.checks import is_readable, is_traced
from fdkernels.normalizer import RatioNormalizer

# How many calls of a normalizer are looked at: a wrong unit shows in the first already.
LOOKS = 16
DEVICES_THAT_COPY = ("cuda",)  # into pinned memory, behind an event; ROCm's are called so too
Levels = tuple[float, float, float]  # the least, the median and the largest of a batch


def complaint(normalizer: RatioNormalizer, t: Tensor) -> str | None:
    """What to warn of, where this t, or on a GPU an earlier one, lies outside."""
    watch = normalizer.watch
    if watch is None:
        watch = normalizer.watch = RangeWatch(LOOKS)
    if not watch.left and watch.pending is None:
        return None
    levels = watch.look(t)
    if levels is None or not _are_outside(levels, normalizer):
        return None
    least, _, largest = levels
    return (
        f"t: expected noise levels within the normalizer's t_range {normalizer.t_range}, got {least!r} to {largest!r}: "
        f"those outside share its end bins; pass the t_range that t is drawn from{_of_ddpm(normalizer, t)}"
    )


def _of_ddpm(normalizer: RatioNormalizer, t: Tensor) -> str:
    steps = normalizer.t_range == (0.0, 1.0) or not t.is_floating_point()
    return " (t_range=(0, 999) for DDPM's integer timesteps, or t / 1000)" if steps else ""


def _are_outside(levels: Levels, normalizer: RatioNormalizer) -> bool:
    """Any by more than rounding; of edges of one's own, from samples say, half the batch: a tail may lie beyond."""
    (least, median, largest), (t0, t1) = levels, normalizer.t_range
    if normalizer.edges is not None:
        least = largest = median
    slack = (t1 - t0) * 0.01
    below, above = t0 - slack - least, largest - t1 - slack
    return 0.0 < below < math.inf or 0.0 < above < math.inf  # non-finite t take part in nothing


class RangeWatch:
    """The looks that a normalizer has left, and one whose result is still on its way from a GPU."""

    def __init__(self, left: int) -> None:
        self.left = left
        self.pending: DeviceLevels | None = None

    def __reduce__(self) -> Any:
        # For copies and pickles of the normalizer: an event and its memory belong to this process.
        return RangeWatch, (self.left,)

    def look(self, t: Tensor) -> Levels | None:
        """Of this t, or on a GPU of an earlier one; None where none is known yet."""
        if is_traced() or not t.numel():
            return None
        if is_readable(t):
            self.left -= self.left > 0
            return _as_levels(_levels(t))
        if t.device.type not in DEVICES_THAT_COPY or torch.cuda.is_current_stream_capturing():
            return None
        levels = None if self.pending is None else self.pending.arrived()
        if levels is not None:
            self.pending = None
        if self.left and self.pending is None:
            self.left -= 1
            self.pending = DeviceLevels(t)
        return levels


class DeviceLevels:
    """Levels of a GPU's tensor, on their way to the host behind what is queued there."""

    def __init__(self, t: Tensor) -> None:
        with torch.cuda.device(t.device):
            self._host = torch.empty(3, dtype=torch.float64, device="cpu", pin_memory=True)
            self._host.copy_(_levels(t), non_blocking=True)
            self._event = torch.cuda.current_stream().record_event()

    def arrived(self) -> Levels | None:
        return _as_levels(self._host) if self._event.query() else None


def _levels(t: Tensor) -> Tensor:
    t = t.detach().double()
    return torch.stack((t.amin(), t.median(), t.amax()))


def _as_levels(values: Tensor) -> Levels:
    least, median, largest = values.tolist()
    return least, median, largest
