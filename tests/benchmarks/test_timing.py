"""Times under a clock that moves as it is told: they come out exact."""

from __future__ import annotations

import math
from types import SimpleNamespace

import pytest

from benchmarks import timing
from benchmarks.timing import Timing, summarize, time_interleaved

TICK = 2.0**-10  # seconds, of which sums are exact


class Clock:
    def __init__(self):
        self.now = 0.0

    def __call__(self):
        return self.now


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(timing, "time", SimpleNamespace(perf_counter=clock))
    return clock


def test_median_and_its_interval():
    found = summarize([float(i) for i in range(100, 0, -1)], calls=3)
    # The 40th to the 61st of a hundred; the binomial table has it.
    assert found == Timing(median=50.5, low=40.0, high=61.0, rounds=100, calls=3)
    assert (summarize([2.0], 1).low, summarize([2.0], 1).high) == (2.0, 2.0)


@pytest.mark.parametrize("rounds", [*range(timing.FEWEST_FOR_AN_INTERVAL, 61), 100, 101, 400])
def test_the_interval_holds_the_median_in_95_of_100_runs(rounds):
    """Ranks low to high hold it unless too many samples lie on one side of it, each with a chance of one half."""
    ranks = summarize([float(i) for i in range(rounds)], 1)
    inside = range(int(ranks.low) + 1, int(ranks.high) + 1)
    chance = sum(math.comb(rounds, below) for below in inside) / 2**rounds
    without_one_more = sum(math.comb(rounds, below) for below in inside[1:-1]) / 2**rounds
    assert without_one_more < 0.95 <= chance


def test_fewer_rounds_hold_no_interval():
    assert 1 - 2 / 2 ** (timing.FEWEST_FOR_AN_INTERVAL - 1) < 0.95 < 1 - 2 / 2**timing.FEWEST_FOR_AN_INTERVAL


def test_a_sample_is_a_mean_over_calls_that_fill_the_window(clock):
    """Round after round each call takes a tick longer; samples are 1 to 9 ticks."""
    rounds = {"short": 16, "long": 4}

    def variant(name, ticks):
        def call(i):
            clock.now += ticks * (1 + i // rounds[name]) * TICK

        return call

    found = time_interleaved({"short": variant("short", 1), "long": variant("long", 4)}, rounds=9, window=16 * TICK)
    assert found["short"] == Timing(5 * TICK, 2 * TICK, 8 * TICK, rounds=9, calls=16)
    assert found["long"] == Timing(20 * TICK, 8 * TICK, 32 * TICK, rounds=9, calls=4)
    assert found["short"].microseconds() == (5e6 * TICK, 2e6 * TICK, 8e6 * TICK)


def test_microseconds_of_a_timing_of_several_calls():
    assert Timing(2e-6, 1e-6, 4e-6, 3, 1).microseconds(2) == pytest.approx((1.0, 0.5, 2.0))


def test_variants_interleave_and_rotate_their_inputs(clock):
    calls = []

    def variant(name, ticks):
        def call(i):
            calls.append((name, i))
            clock.now += ticks * TICK

        return call

    names = {"a": variant("a", 1), "b": variant("b", 2), "c": variant("c", 2)}
    time_interleaved(names, rounds=20, window=2 * TICK)
    before = timing.WARM_UP + 1  # and one to size the window
    assert [i for _, i in calls[: 3 * before]] == 3 * list(range(before))
    timed = calls[3 * before :]
    assert [i for name, i in timed if name == "a"] == list(range(40))
    assert [i for name, i in timed if name == "b"] == list(range(20))
    rounds = [[name for name, _ in timed[4 * r : 4 * r + 4]] for r in range(20)]
    assert all(sorted(order) == ["a", "a", "b", "c"] for order in rounds)
    assert {order[0] for order in rounds} == {order[-1] for order in rounds} == {"a", "b", "c"}


def test_orders_are_the_same_in_every_run():
    assert list(timing.orders("abcd", 9)) == list(timing.orders("abcd", 9))
    assert len({tuple(order) for order in timing.orders("abcd", 9)}) > 4


@pytest.mark.parametrize(("rounds", "seconds", "made"), [(100, 0.0, 12), (100, 24.5 * TICK, 25), (5, 0.0, 5)])
def test_rounds_end_early_but_not_before_there_are_enough(clock, rounds, seconds, made):
    def call(i):
        clock.now += TICK

    assert time_interleaved({"a": call}, rounds=rounds, window=0.0, seconds=seconds)["a"].rounds == made
