"""How numbers, names and marks look, on the page, in docs/speed.md and in the README."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

from benchmarks.cases.variants import MODES as ASKED
from benchmarks.report.reading import Row

MODES = {mode: name for name, mode in ASKED.items()}
"""Short names of the baselines' modes, which are those of the command line."""

Form = Callable[[Any], str]


class Mark(NamedTuple):
    text: str
    colour: str  # of COLOURS
    marker: str  # matplotlib's


MARKS = {
    "ours": Mark("fdkernels", "ours", "o"),
    "reference": Mark("fdkernels, reference", "ours", "p"),
    "eager": Mark("eager", "eager", "s"),
    "compile": Mark("torch.compile", "compile", "^"),
    "max-autotune": Mark("torch.compile, max-autotune", "autotune", "D"),
    "wrong": Mark("wrong result", "wrong", "X"),
}
# (light, dark). Do not use a light color twice: charts.svg finds each color by its light value, and replaces it.
COLOURS = {
    "page": ("#f5f6f8", "#12151a"), "card": ("#ffffff", "#1b1f26"), "text": ("#20242b", "#e3e6ea"),
    "soft": ("#5a6270", "#a2abb8"), "line": ("#dfe3e9", "#2f3641"), "field": ("#7f8796", "#7a8392"),
    "ours": ("#2a6ac0", "#6ba4ee"), "eager": ("#6a7280", "#9aa3b1"), "compile": ("#7a3fb0", "#c39af0"),
    "autotune": ("#1e7d52", "#5cc492"), "slow": ("#b3520a", "#f0a35a"), "wrong": ("#b42318", "#ff8a7d"),
    "target": ("#fff3c4", "#3d3614"),
}  # fmt: skip


def mark(row: Row) -> str:
    """Which of MARKS a row is drawn as."""
    if row["wrong"]:
        return "wrong"
    if row["ours"]:
        return "reference" if row["backend"] == "reference" else "ours"
    return MODES[row["mode"]]


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


def with_unit(unit: str) -> Form:
    return lambda value: f"{significant(value)}\u00a0{unit}"


rate, times, percent = map(with_unit, ("GB/s", "×", "%"))


def short(text: str) -> str:
    """The text of a tick: without zeros after the point."""
    number, unit = text.split("\u00a0")
    return f"{float(number.replace(',', '')):g} {unit}"


def plain(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, dict):
        return ", ".join(f"{key} {each}" for key, each in value.items())
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)


def variant(name: str) -> str:
    """A variant's name, with the short name of its mode."""
    for mode, short_name in MODES.items():
        if name.endswith(mode):
            return name.removesuffix(mode) + short_name
    return name


def commit(name: str) -> str:
    """A commit's short name, with the part that says that files differed from it."""
    hash_, dash, rest = name.partition("-")
    return hash_[:7] + dash + rest
