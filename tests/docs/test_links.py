"""Links of the Markdown pages lead to files, and to headings in them; every page says for whom it is."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGES = [*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").glob("*.md"))]
LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")


def without_code(text: str) -> str:
    return re.sub(r"^```.*?^```$|`[^`\n]+`", lambda code: re.sub(r"[^\n`]", "x", code[0]), text, flags=re.M | re.S)


def anchors(page: Path) -> set[str]:
    """The headings' names in links, as GitHub makes them."""
    headings = re.findall(
        r"^#+ (.+)$", re.sub(r"^```.*?^```$", "", page.read_text(encoding="utf-8"), flags=re.M | re.S), re.M
    )
    names: list[str] = []
    for heading in headings:
        name = re.sub(r"[^\w\- ]", "", re.sub(r"\]\([^)]*\)", "", heading).lower()).replace(" ", "-")
        names.append(f"{name}-{names.count(name)}" if name in names else name)
    return set(names)


def dead(text: str, page: Path) -> list[str]:
    """The links of a page's text that lead nowhere. Addresses of the web are not followed."""
    found = []
    for link in LINK.findall(without_code(text)):
        if re.match(r"[a-z]+:", link):
            continue
        path, _, anchor = link.partition("#")
        target = page.parent / path if path else page
        if not target.exists() or (anchor and (target.suffix != ".md" or anchor not in anchors(target))):
            found.append(link)
    return found


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links(page: Path) -> None:
    assert dead(page.read_text(encoding="utf-8"), page) == []


def test_dead_links_are_found() -> None:
    text = (
        "[a](docs/index.md#api-reference) [b](docs/none.md) [c](docs/index.md#none) [d](#speed-and-memory) [e](#none) "
        "[f](https://example.org/none) `[g](none.md)` ![h](docs/images/none.png) [i](LICENSE#none)\n"
        "```\n[j](none.md)\n```\n"
    )
    wanted = ["docs/none.md", "docs/index.md#none", "#none", "docs/images/none.png", "LICENSE#none"]
    assert dead(text, ROOT / "README.md") == wanted


@pytest.mark.parametrize("page", sorted((ROOT / "docs").glob("*.md")), ids=lambda page: page.name)
def test_a_page_says_for_whom_it_is_and_the_index_has_it(page: Path) -> None:
    title, blank, line = page.read_text(encoding="utf-8").split("\n")[:3]
    assert title.startswith("# ") and not blank and line.startswith("*For "), "line 3: *For people who ...*"
    assert page.name == "index.md" or f"({page.name})" in (ROOT / "docs/index.md").read_text(encoding="utf-8")
