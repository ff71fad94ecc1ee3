"""Text with its source in the report, as the page's `data-from` names it.

A source is a place (`rows/3/time_us`), its name (`name setting/l2_mib`) or last key (`key formulas/fastgen`), the
product of a list (`product rows/3/shape`), a quotient (`rows/3/time_us over rows/3/predicted_us`), a count (`count
slower among comparisons/2 comparisons/5`; also of "ours wrong" and "other wrong"), or several of these, separated by
" | ".
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from benchmarks.comparisons import Report
from benchmarks.shown import Form, plain, row_of, shown, times, whole


class Shown(NamedTuple):
    text: str
    source: str


@dataclass(frozen=True)
class Reader:
    report: Report

    def value(self, place: str) -> Any:
        found: Any = self.report
        for key in place.split("/"):
            found = found[int(key)] if isinstance(found, list) else found.get(key)
        return found

    def shown(self, place: str, form: Form = plain) -> Shown:
        return Shown(shown(self.value(place), form), place)

    def quotient(self, over: str, under: str, form: Form = times) -> Shown:
        return Shown(shown(self.ratio(over, under), form), f"{over} over {under}")

    def ratio(self, over: str, under: str) -> float | None:
        a, b = self.value(over), self.value(under)
        return a / b if a is not None and b else None

    def product(self, place: str) -> Shown:
        return Shown(whole(math.prod(self.value(place))), f"product {place}")

    def name(self, place: str) -> Shown:
        """The last keys of a place, those within the setting all."""
        return Shown(place.partition("/")[2].replace("_", " ").replace("/", ", "), f"name {place}")

    def key(self, place: str) -> Shown:
        return Shown(place.rpartition("/")[2], f"key {place}")

    def count(self, what: str, among: Sequence[int]) -> Shown:
        number = sum(what in self.outcomes(i) for i in among)
        return Shown(str(number), f"count {what} among {' '.join(f'comparisons/{i}' for i in among)}")

    def outcomes(self, comparison: int) -> set[str]:
        """A comparison's verdict, and whose result is wrong."""
        c = self.report["comparisons"][comparison]
        return {c["verdict"]} | {f"{which} wrong" for which in ("ours", "other") if self.row(c, which)["wrong"]}

    def row(self, comparison: Report, which: str) -> Report:
        found: Report = self.report["rows"][row_of(self.report, comparison, which)]
        return found

    def distinct(self, table: str, key: str) -> Iterable[tuple[str, str]]:
        """Each value of a column, with the first place that has it."""
        seen = set()
        for i, item in enumerate(self.report[table]):
            if item[key] not in seen:
                seen.add(item[key])
                yield item[key], f"{table}/{i}/{key}"
