"""A page as a reader, and a program, find it: a tree of its elements, and whether a text says what its source does."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from html.parser import HTMLParser
from typing import Any

UNITS = {"µs": 1, "ms": 1e3, "s": 1e6, "B": 1, "kB": 1e3, "MB": 1e6, "GB": 1e9, "TB": 1e12}
VARIANTS = {"compile default": "compile", "compile max-autotune-no-cudagraphs": "max-autotune"}
VOID = {"meta", "input", "br", "img", "link"}


@dataclass
class Element:
    tag: str
    attributes: dict[str, str]
    parent: Element | None
    children: list[Element | str] = field(default_factory=list)

    def __getitem__(self, name: str) -> str:
        return self.attributes[name]

    def get(self, name: str) -> str:
        return self.attributes.get(name, "")

    @property
    def classes(self) -> list[str]:
        return self.get("class").split()

    @property
    def text(self) -> str:
        return "".join(child if isinstance(child, str) else child.text for child in self.children)

    def all(self, tag: str = "", with_class: str = "", having: str = "") -> Iterator[Element]:
        """Elements within this one."""
        for child in self.children:
            if isinstance(child, Element):
                fits = (not tag or child.tag == tag) and (not having or having in child.attributes)
                if fits and (not with_class or with_class in child.classes):
                    yield child
                yield from child.all(tag, with_class, having)

    def within(self) -> Iterator[Element]:
        """This element and those around it, from the inside."""
        element: Element | None = self
        while element is not None:
            yield element
            element = element.parent

    @property
    def sourced(self) -> list[tuple[str, str]]:
        """(source, text) of all parts."""
        found = []
        for element in self.all(having="data-from"):
            sources = element["data-from"].split(" | ")
            texts = element.text.split(" · ") if len(sources) > 1 else [element.text]
            found += list(zip(sources, texts, strict=True))
        return found


class Parser(HTMLParser):
    def __init__(self, html: str) -> None:
        super().__init__()
        self.root = self.open = Element("", {}, None)
        self.feed(html)
        assert self.open is self.root, "elements left open"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_startendtag(tag, attrs)
        if tag not in VOID:
            self.open = self.open.children[-1]  # type: ignore[assignment]

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.open.children.append(Element(tag, {name: value or "" for name, value in attrs}, self.open))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.tag == tag
        self.open = self.open.parent  # type: ignore[assignment]

    def handle_data(self, data: str) -> None:
        self.open.children.append(data)


def read(html: str) -> Element:
    return Parser(html).root


def embedded(page: Element) -> dict[str, Any]:
    (script,) = (each for each in page.all("script") if each.get("type") == "application/json")
    found: dict[str, Any] = json.loads(script.text, parse_constant=lambda name: 1 / 0)
    return found


def value_at(report: dict[str, Any], place: str) -> Any:
    found: Any = report
    for key in place.split("/"):
        found = found[int(key)] if isinstance(found, list) else found.get(key)
    return found


def row_of(report: dict[str, Any], comparison: dict[str, Any], which: str) -> int:
    case = ("op", "shape_name", "dtype", "formula")
    (i,) = (
        i
        for i, row in enumerate(report["rows"])
        if row["variant"] == comparison[which] and all(row[key] == comparison[key] for key in case)
    )
    return i


def source_value(report: dict[str, Any], source: str) -> Any:
    """What a source stands for, as benchmarks/reader.py describes it."""
    if source.startswith("count "):
        what, among = source.removeprefix("count ").split(" among ")
        comparisons = [value_at(report, place) for place in among.split()]
        if what.endswith(" wrong"):
            return sum(report["rows"][row_of(report, c, what.split()[0])]["wrong"] for c in comparisons)
        return sum(c["verdict"] == what for c in comparisons)
    kind, _, place = source.partition(" ")
    if kind in ("name", "key"):
        keys, _, last = place.rpartition("/")
        assert last in value_at(report, keys)
        return place.partition("/")[2] if kind == "name" else place.rpartition("/")[2]
    if kind == "product":
        return math.prod(value_at(report, place))
    over, _, under = source.partition(" over ")
    value = value_at(report, over)
    if not under:
        return value
    return None if value is None else value / value_at(report, under)


def number_of(text: str) -> float:
    """With its unit, as microseconds or bytes."""
    found = re.fullmatch(r"([-\d.,]+(?:e[+-]?\d+)?)(?: (µs|ms|s|B|kB|MB|GB|TB|GB/s|×|%))?", text.replace("\u00a0", " "))
    assert found, text
    return float(found[1].replace(",", "")) * UNITS.get(found[2], 1)


def agrees(text: str, value: Any, source: str = "") -> bool:
    """Whether a reader takes the value from the text: numbers to the half of their third digit."""
    text = text.removeprefix("predicted ")
    if value is None:
        return text == "–"
    if isinstance(value, bool):
        return text == ("yes" if value else "no")
    if isinstance(value, list):
        return text in ("×".join(map(str, value)), ", ".join(map(str, value)))
    if source.startswith("name "):
        return text == value.replace("_", " ").replace("/", ", ")
    if source == "setting/commit":
        hash_, _, dirty = value.partition("-")
        return text in (value, hash_[:7] + ("-" + dirty if dirty else ""))
    if source == "setting/date":
        return text in (value, value.partition("T")[0])
    if isinstance(value, str):
        mode = next((mode for mode in VARIANTS if value.endswith(mode)), None)
        return text in (value, value.removesuffix(mode) + VARIANTS[mode] if mode else value)
    return math.isclose(number_of(text), value, rel_tol=0.051 if "e" in text else 0.0051)
