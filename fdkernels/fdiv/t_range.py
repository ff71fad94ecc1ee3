"""Detects noise levels outside a normalizer's t_range: on the CPU at once, on a GPU some calls later, without a sync.

All levels outside share the end bins. The usual case is DDPM's integer timesteps with the default t_range.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fdkernels._op.checks import is_readable, is_traced
from fdkernels.normalizer import RatioNormalizer

# How many calls are checked per normalizer. A wrong unit already shows in the first call.
LOOKS = 16
DEVICES_THAT_COPY = ("cuda",)  # asynchronously into pinned memory; ROCm devices are "cuda" too


class Levels(NamedTuple):
    """Figures of a batch's finite t."""

    least: float
    largest: float
    outside: float  # the fraction outside t_range


def complaint(normalizer: RatioNormalizer, t: Tensor) -> str | None:
    """The warning if this t, or on a GPU the t of an earlier call, lies outside t_range; else None."""
    watch = normalizer.watch
    if watch is None:
        watch = normalizer.watch = RangeWatch(LOOKS)
    if not watch.left and watch.pending is None:
        return None
    has_edges = normalizer.edges is not None
    t0, t1 = normalizer.t_range
    # With uniform bins, rounding may put t slightly outside. With edges, t may have longer tails than the samples that
    # t_range came from.
    slack = 0.0 if has_edges else 0.01 * (t1 - t0)
    levels = watch.look(t, t0 - slack, t1 + slack)
    if levels is None or not levels.outside > (0.5 if has_edges else 0.0):
        return None
    if has_edges:
        advice = "draw the samples of from_samples, or take t_range and edges, as t is drawn"
    elif normalizer.t_range == (0.0, 1.0) or not t.is_floating_point():
        advice = "pass the t_range that t is drawn from (t_range=(0, 999) for DDPM's integer timesteps, or t / 1000)"
    else:
        advice = "pass the t_range that t is drawn from"
    return (
        f"t: expected noise levels within the normalizer's t_range {normalizer.t_range}, got {levels.least!r} to "
        f"{levels.largest!r}: those outside share its end bins; {advice}"
    )


class RangeWatch:
    """How many checks a normalizer has left, and the check whose result is still on its way from a GPU."""

    def __init__(self, left: int) -> None:
        self.left = left
        self.pending: DeviceLevels | None = None

    def __reduce__(self) -> Any:
        # Copies and pickles of the normalizer lose `pending`: an event and its memory belong to this process.
        return RangeWatch, (self.left,)

    def look(self, t: Tensor, low: float, high: float) -> Levels | None:
        """The levels of this t, or on a GPU of an earlier call's t; None if nothing is known yet."""
        if is_traced() or not t.numel():
            return None
        if is_readable(t):
            self.left -= self.left > 0
            return Levels(*_levels(t, low, high).tolist())
        if t.device.type not in DEVICES_THAT_COPY or torch.cuda.is_current_stream_capturing():
            return None
        levels = None if self.pending is None else self.pending.arrived()
        if levels is not None:
            self.pending = None
        if self.left and self.pending is None:
            self.left -= 1
            self.pending = DeviceLevels(t, low, high)
        return levels


class DeviceLevels:
    """Levels of a GPU tensor, copied to the host after the work that is queued on the stream."""

    def __init__(self, t: Tensor, low: float, high: float) -> None:
        with torch.cuda.device(t.device):
            self._host = torch.empty(3, dtype=torch.float64, device="cpu", pin_memory=True)
            self._host.copy_(_levels(t, low, high), non_blocking=True)
            self._event = torch.cuda.current_stream().record_event()

    def arrived(self) -> Levels | None:
        return Levels(*self._host.tolist()) if self._event.query() else None


def _levels(t: Tensor, low: float, high: float) -> Tensor:
    t = t.detach().double()
    is_finite = t.isfinite()
    is_outside = ((t < low) | (t > high)) & is_finite
    least, largest = t.where(is_finite, math.inf).amin(), t.where(is_finite, -math.inf).amax()
    return torch.stack((least, largest, is_outside.sum() / is_finite.sum()))
