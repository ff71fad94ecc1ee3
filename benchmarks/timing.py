"""Interleaved timing: every round times each variant once, in an order that rotates, so drift hits all alike."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

FEWEST_ROUNDS = 12
WARM_UP = 3


@dataclass(frozen=True)
class Timing:
    """Seconds per call: the median over rounds and the 95 % interval of that median (from order statistics)."""

    median: float
    low: float
    high: float
    rounds: int
    calls: int

    def microseconds(self, calls: int = 1) -> tuple[float, float, float]:
        return self.median * 1e6 / calls, self.low * 1e6 / calls, self.high * 1e6 / calls


def summarize(seconds: list[float], calls: int) -> Timing:
    ordered = sorted(seconds)
    n = len(ordered)
    reach = 0.98 * math.sqrt(n)
    low = ordered[max(0, math.floor(n / 2 - reach))]
    high = ordered[min(n - 1, math.ceil(n / 2 + reach) - 1)]
    return Timing(statistics.median(ordered), low, high, n, calls)


def time_interleaved(
    variants: dict[str, Callable[[int], object]], *, rounds: int, window: float = 0.01, seconds: float = math.inf
) -> dict[str, Timing]:
    """Time each variant, called with a running index by which it rotates its inputs.

    A sample is the mean over as many calls as fill `window` seconds of that variant, at least one; `WARM_UP` calls of
    each come first. After `seconds` no further round is begun, but `FEWEST_ROUNDS` are made, or `rounds` if fewer.
    """
    calls: dict[str, int] = {}
    for name, variant in variants.items():
        for i in range(WARM_UP):
            variant(i)
        start = time.perf_counter()
        variant(WARM_UP)
        calls[name] = max(1, round(window / (time.perf_counter() - start)))
    samples: dict[str, list[float]] = {name: [] for name in variants}
    index = dict.fromkeys(variants, 0)
    order = list(variants)
    begun = time.perf_counter()
    for done in range(rounds):
        if done >= FEWEST_ROUNDS and time.perf_counter() - begun > seconds:
            break
        for name in order:
            variant, n, first = variants[name], calls[name], index[name]
            start = time.perf_counter()
            for i in range(first, first + n):
                variant(i)
            samples[name].append((time.perf_counter() - start) / n)
            index[name] += n
        order.append(order.pop(0))
    return {name: summarize(samples[name], calls[name]) for name in variants}
