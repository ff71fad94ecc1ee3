"""Interleaved timing: every round times each variant once, in a new order, so that drift hits all variants alike and no
variant always follows the same other one."""

from __future__ import annotations

import functools
import math
import random
import statistics
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

FEWEST_ROUNDS = 12
# With fewer rounds, not even the extremes enclose the median with 95 %.
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


def summarize(seconds: Iterable[float], calls: int) -> Timing:
    ordered = sorted(seconds)
    left_out = outside_the_interval(len(ordered))
    return Timing(statistics.median(ordered), ordered[left_out], ordered[-1 - left_out], len(ordered), calls)


@functools.cache
def outside_the_interval(n: int) -> int:
    """How many of n sorted values may be left out at each end so that the others hold the median with 95 %.

    Each value lies below the median with probability one half. The median is outside if at most `left_out` values lie
    on one of its sides.
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
    variants: dict[str, Callable[[int], object]], *, rounds: int, window: float = 0.01, seconds: float = math.inf,
    fewest: int = 1, most: int = sys.maxsize, wait: Callable[[], object] = lambda: None,
) -> dict[str, tuple[Timing, Timing]]:  # fmt: skip
    """Time each variant: (until `wait` has returned after the calls, until the calls have returned).

    A variant is called with a running index, by which it rotates its inputs. A sample is the mean over as many calls as
    fill `window` seconds of that variant, within `fewest` and `most`; `WARM_UP` calls of each come first. After
    `seconds` no further round begins, but at least `FEWEST_ROUNDS` are made, or `rounds` if fewer.
    """
    index = dict.fromkeys(variants, 0)

    def sample(name: str, n: int) -> tuple[float, float]:
        variant, first = variants[name], index[name]
        index[name] += n
        wait()
        start = time.perf_counter()
        for i in range(first, first + n):
            variant(i)
        returned = time.perf_counter()
        wait()
        return (time.perf_counter() - start) / n, (returned - start) / n

    calls = {}
    for name in variants:
        sample(name, WARM_UP)
        calls[name] = min(most, max(fewest, math.ceil(window / sample(name, fewest)[0])))
    samples: dict[str, list[tuple[float, float]]] = {name: [] for name in variants}
    begun = time.perf_counter()
    for done, order in enumerate(orders(variants, rounds)):
        if done >= FEWEST_ROUNDS and time.perf_counter() - begun > seconds:
            break
        for name in order:
            samples[name].append(sample(name, calls[name]))
    return {
        name: (summarize((a for a, _ in found), calls[name]), summarize((b for _, b in found), calls[name]))
        for name, found in samples.items()
    }
