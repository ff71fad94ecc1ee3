"""Interleaved timing: every round times each variant once, in an order of its own, so that drift hits all alike and
none is always after the same other."""

from __future__ import annotations

import functools
import math
import random
import statistics
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

FEWEST_ROUNDS = 12
# With fewer, not even the extremes enclose the median with 95 %.
FEWEST_FOR_AN_INTERVAL = 6
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
    left_out = outside_the_interval(len(ordered))
    return Timing(statistics.median(ordered), ordered[left_out], ordered[-1 - left_out], len(ordered), calls)


@functools.cache
def outside_the_interval(n: int) -> int:
    """How many of n sorted values may be left out at each end so that the others hold the median with 95 %.

    Each value lies below it with probability one half: the median is outside where at most `left_out` of them lie on
    its one side, or on its other.
    """
    left_out, outside = 0, 2 * 0.5**n
    while True:
        outside += 2 * math.comb(n, left_out + 1) * 0.5**n
        if outside > 0.05:
            return left_out
        left_out += 1


def orders(names: Iterable[str], rounds: int) -> Iterator[list[str]]:
    """An order for each round, the same in every run."""
    shuffle = random.Random(0).shuffle
    for _ in range(rounds):
        order = list(names)
        shuffle(order)
        yield order


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
    begun = time.perf_counter()
    for done, order in enumerate(orders(variants, rounds)):
        if done >= FEWEST_ROUNDS and time.perf_counter() - begun > seconds:
            break
        for name in order:
            variant, n, first = variants[name], calls[name], index[name]
            start = time.perf_counter()
            for i in range(first, first + n):
                variant(i)
            samples[name].append((time.perf_counter() - start) / n)
            index[name] += n
    return {name: summarize(samples[name], calls[name]) for name in variants}
