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


def complaint(normalizer: RatioNormalizer, t: Tensor) -> str | None:
    """What to warn of, where this t, or on a GPU an earlier one, lies outside."""
    watch = normalizer.watch
    if watch is None:
        watch = normalizer.watch = RangeWatch(LOOKS)
    if not watch.left and watch.pending is None:
        return None
    extremes = watch.look(t)
    if extremes is None or not _are_outside(extremes, normalizer):
        return None
    least, largest = extremes
    return (
        f"t: expected noise levels within the normalizer's t_range {normalizer.t_range}, got {least!r} to {largest!r}: "
        f"those outside share its end bins; pass the t_range that t is drawn from{_of_ddpm(normalizer, t)}"
    )


def _of_ddpm(normalizer: RatioNormalizer, t: Tensor) -> str:
    steps = normalizer.t_range == (0.0, 1.0) or not t.is_floating_point()
    return " (t_range=(0, 999) for DDPM's integer timesteps, or t / 1000)" if steps else ""


def _are_outside(extremes: tuple[float, float], normalizer: RatioNormalizer) -> bool:
    """By more than rounding; with edges of one's own, from samples say, by more than the tail of a distribution."""
    (least, largest), (t0, t1) = extremes, normalizer.t_range
    slack = (t1 - t0) * (0.01 if normalizer.edges is None else 1.0)
    below, above = t0 - slack - least, largest - t1 - slack
    return 0.0 < below < math.inf or 0.0 < above < math.inf  # non-finite t take part in nothing


class RangeWatch:
    """The looks that a normalizer has left, and one whose result is still on its way from a GPU."""

    def __init__(self, left: int) -> None:
        self.left = left
        self.pending: DeviceExtremes | None = None

    def __reduce__(self) -> Any:
        # For copies and pickles of the normalizer: an event and its memory belong to this process.
        return RangeWatch, (self.left,)

    def look(self, t: Tensor) -> tuple[float, float] | None:
        """(least, largest) of this t, or on a GPU of an earlier one; None where none is known yet."""
        if is_traced() or not t.numel():
            return None
        if is_readable(t):
            self.left -= self.left > 0
            least, largest = t.detach().double().aminmax()
            return least.item(), largest.item()
        if t.device.type not in DEVICES_THAT_COPY or torch.cuda.is_current_stream_capturing():
            return None
        extremes = None if self.pending is None else self.pending.arrived()
        if extremes is not None:
            self.pending = None
        if self.left and self.pending is None:
            self.left -= 1
            self.pending = DeviceExtremes(t)
        return extremes


class DeviceExtremes:
    """The least and largest element of a GPU's tensor, on their way to the host behind what is queued there."""

    def __init__(self, t: Tensor) -> None:
        with torch.cuda.device(t.device):
            extremes = torch.stack(t.detach().double().aminmax())
            self._host = torch.empty(2, dtype=torch.float64, device="cpu", pin_memory=True)
            self._host.copy_(extremes, non_blocking=True)
            self._event = torch.cuda.current_stream().record_event()

    def arrived(self) -> tuple[float, float] | None:
        if not self._event.query():
            return None
        least, largest = self._host.tolist()
        return least, largest
