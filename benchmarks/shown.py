"""How numbers, names and marks look, on the page and in the README's figures; and how logarithmic scales are laid."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, NamedTuple

from benchmarks.comparisons import Report, case_of
from benchmarks.variants import MODES as ASKED

VERDICTS = ("faster", "slower", "no difference", "wrong")
CLOSE = 1.25
"""A prediction within this factor of the measurement counts as met."""
MODES = {mode: name for name, mode in ASKED.items()}
"""Short names of the baselines' modes, which are those of the command line."""

Form = Callable[[Any], str]


# Marks and colours.


class Mark(NamedTuple):
    text: str
    colour: str
    """Of COLOURS."""
    marker: str
    """matplotlib's."""
    filled: bool = True


MARKS = {
    "ours": Mark("fdkernels", "ours", "o"),
    "reference": Mark("fdkernels, reference", "ours", "o", filled=False),
    "eager": Mark("eager", "eager", "s"),
    "compile": Mark("torch.compile", "compile", "^"),
    "max-autotune": Mark("torch.compile, max-autotune", "autotune", "D"),
    "other": Mark("other", "eager", "P"),
    "wrong": Mark("wrong result", "wrong", "X"),
}
# In light and in dark.
COLOURS = {
    "page": ("#f5f6f8", "#12151a"), "card": ("#ffffff", "#1b1f26"), "text": ("#20242b", "#e3e6ea"),
    "soft": ("#5a6270", "#a2abb8"), "line": ("#dfe3e9", "#2f3641"), "field": ("#7f8796", "#7a8392"),
    "ours": ("#2a6ac0", "#6ba4ee"), "eager": ("#6a7280", "#9aa3b1"), "compile": ("#7a3fb0", "#c39af0"),
    "autotune": ("#1e7d52", "#5cc492"), "slow": ("#b3520a", "#f0a35a"), "wrong": ("#b42318", "#ff8a7d"),
    "even": ("#79818e", "#8d96a4"), "bar": ("#a9c8f0", "#28507f"), "bar-slow": ("#f3cfa8", "#70430f"),
    "target": ("#fff3c4", "#3d3614"),
}  # fmt: skip


def mark(row: Report) -> str:
    """Which of MARKS a row is drawn as."""
    if row["wrong"]:
        return "wrong"
    if row["ours"]:
        return "reference" if row["backend"] == "reference" else "ours"
    return MODES.get(row["mode"] or "", "other")


# What there is in a report.


def drawable(comparison: Report) -> bool:
    return comparison["verdict"] != "wrong" and all(comparison[key] for key in ("ratio", "low", "high"))


def launch_bound(row: Report) -> bool:
    """Without tensors of N elements, so that no ceiling of bandwidth applies."""
    return row["percent_of_ceiling"] is None


def row_of(report: Report, comparison: Report, which: str) -> int:
    """The row of a comparison's variant: `which` is "ours" or "other"."""
    for i, row in enumerate(report["rows"]):
        if row["variant"] == comparison[which] and case_of(row) == case_of(comparison):
            return i
    raise ValueError(f"comparisons: no row of {which} {comparison[which]!r} for {comparison}")


def ours_to_show(report: Report) -> list[str]:
    """Our variants; the reference is one only where it is alone."""
    found = {row["variant"]: row["backend"] for row in report["rows"] if row["ours"]}
    return [name for name, backend in found.items() if backend != "reference"] or list(found)


def off(row: Report) -> float:
    """The factor between prediction and measurement, whichever is larger; 0 where there is none."""
    if not (row["predicted_us"] and row["time_us"]):
        return 0.0
    ratio: float = row["time_us"] / row["predicted_us"]
    return max(ratio, 1 / ratio)


# Scales.


@dataclass(frozen=True)
class LogScale:
    """From values to positions."""

    low: float
    high: float
    start: float
    end: float

    @classmethod
    def around(
        cls, values: Iterable[float], start: float, end: float, room: float = 1.25, span: float = 10.0
    ) -> LogScale:
        """Over the values, with room at both ends, and over a factor of `span` at least, in which there are ticks."""
        positive = [value for value in values if value > 0] or [1.0]
        low, high = min(positive) / room, max(positive) * room
        more = max(1.0, math.sqrt(span / (high / low)))
        return cls(low / more, high * more, start, end)

    def __call__(self, value: float) -> float:
        part = math.log(value / self.low) / math.log(self.high / self.low)
        return round(self.start + part * (self.end - self.start), 2)

    def decades(self) -> list[float]:
        """Powers of ten, with their double and fivefold where there would be fewer than three."""
        powers = [10.0**p for p in range(math.floor(math.log10(self.low)), math.ceil(math.log10(self.high)) + 1)]
        inside = [p for p in powers if self.low <= p <= self.high]
        if len(inside) < 3:
            inside = [p * digit for p in powers for digit in (1, 2, 5) if self.low <= p * digit <= self.high]
        return inside

    def powers_of_two(self) -> list[float]:
        step = 1 if self.high / self.low < 256 else 2
        exponents = range(math.ceil(math.log2(self.low)), math.floor(math.log2(self.high)) + 1)
        return [2.0**p for p in exponents if p % step == 0]


# Text. Numbers have three significant digits and a unit.


def shown(value: Any, form: Form) -> str:
    return "–" if value is None else form(value)


def significant(value: float) -> str:
    digits = 2 if value == 0 else max(0, 2 - math.floor(math.log10(abs(value))))
    return f"{value:,.{digits}f}" if digits < 7 else f"{value:.2e}"


def duration(us: float) -> str:
    if us < 1e3:
        return f"{significant(us)}\u00a0µs"
    return f"{significant(us / 1e3)}\u00a0ms" if us < 1e6 else f"{significant(us / 1e6)}\u00a0s"


def size(count: float) -> str:
    for power, unit in ((4, "TB"), (3, "GB"), (2, "MB"), (1, "kB")):
        if count >= 1000**power:
            return f"{significant(count / 1000**power)}\u00a0{unit}"
    return f"{count:.0f}\u00a0B"


def rate(gb_per_s: float) -> str:
    return f"{significant(gb_per_s)}\u00a0GB/s"


def times(ratio: float) -> str:
    return f"{significant(ratio)}\u00a0×"


def percent(value: float) -> str:
    return f"{significant(value)}\u00a0%"


def error(value: float) -> str:
    return f"{value:.1e}"


def whole(value: int) -> str:
    return f"{value:,}"


def count(mean: float) -> str:
    """A count, or the mean of several."""
    return f"{mean:.3g}"


def short(text: str) -> str:
    """Of a tick: without zeros after the point."""
    number, unit = text.split("\u00a0")
    return f"{float(number.replace(',', '')):g} {unit}"


def plain(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)


def variant(name: str) -> str:
    """With its mode by the short name."""
    for mode, short_name in MODES.items():
        if name.endswith(mode):
            return name.removesuffix(mode) + short_name
    return name


def commit(name: str) -> str:
    """Shortened, but for what says that files differed from it."""
    hash_, dash, rest = name.partition("-")
    return hash_[:7] + dash + rest


def day(date: str) -> str:
    return date[:10]
