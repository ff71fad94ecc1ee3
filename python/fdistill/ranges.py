"""Which values a setting may have. A setting's type holds its `Range`: `Annotated[float, Range("updates", least=1)]`,
or its `Choice`: `Annotated[str, Choice("constant", "cosine")]`.

`config.from_dict` checks them; `settings_table` prints docs/settings.md from them.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from fdistill.messages import ConfigError, shown

INTEGER_MOST = 2**31 - 1  # upper end of an integer range without one; all libraries below can count so far


@dataclass(frozen=True)
class Range:
    """The numbers between two ends, their unit, and what the ends mean. NaN and infinity are in no range.

    Args:
        unit: what is counted or measured.
        least, most: ends that belong to the range.
        above, below: ends that do not.
        multiple: only multiples of it.
        off: what 0 stands for if it switches something off; null is read as 0.
        hint: what to do instead of a number outside.
    """

    unit: str = ""
    least: float | None = None
    above: float | None = None
    most: float | None = None
    below: float | None = None
    multiple: int = 1
    off: str = ""
    hint: str = ""

    def check(self, key: str, number: float, given: object) -> None:
        """Raise if number is not in the range; the message shows `given`, the value that the user wrote."""
        if not (self._holds(number) or (self.off and number == 0)):
            too_large = isinstance(number, int) and number > INTEGER_MOST
            hint = f" ({self.hint})" if self.hint else ""
            expected = self.text(type(number), too_large)
            raise ConfigError(f"{key}: expected {expected}{hint}, got {shown(given)}")

    def _holds(self, number: float) -> bool:
        return (
            (isinstance(number, int) or math.isfinite(number))
            and (self.least is None or number >= self.least)
            and (self.above is None or number > self.above)
            and (self.most is None or number <= self.most)
            and (self.below is None or number < self.below)
            and not (isinstance(number, int) and (number % self.multiple or number > self._integer_most()))
        )

    def _integer_most(self) -> float:
        return INTEGER_MOST if self.most is None else self.most

    def text(self, kind: type, too_large: bool = False) -> str:
        """The range in words: `a number in [0, 1)`; `an integer > 0, or 0 or null for no pictures`."""
        noun = "an integer" if kind is int else "a number"
        if self.multiple > 1:
            noun = f"a multiple of {self.multiple}"
        most = self._integer_most() if too_large else self.most
        low, high = (self.above if self.least is None else self.least), (self.below if most is None else most)
        if low is not None and high is not None:
            opening, closing = "(["[self.above is None], ")]"[most is not None]
            noun += f" in {opening}{low:.10g}, {high:.10g}{closing}"
        elif low is not None:
            noun += f" {'>' if self.least is None else '>='} {low:.10g}"
        return noun + (f", or 0 or null for {self.off}" if self.off else "")


@dataclass(frozen=True, init=False)
class Choice:
    """Some names, or any text, and what it stands for.

    Args:
        names: the names that a setting may have; none: any text.
        unit: what is named.
    """

    names: tuple[str, ...]
    unit: str
    off = ""

    def __init__(self, *names: str, unit: str = "") -> None:
        object.__setattr__(self, "names", names)
        object.__setattr__(self, "unit", unit)

    def check(self, key: str, text: str, given: object) -> None:
        if self.names and text not in self.names:
            raise ConfigError(f"{key}: expected {self.text()}, got {shown(given)}")

    def text(self, kind: type = str) -> str:
        """`constant or cosine`"""
        if not self.names:
            return "text"
        *others, last = self.names
        return f"{', '.join(others)} or {last}" if others else last
