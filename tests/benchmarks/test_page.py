"""Every number on the benchmark's page is the report's; the page needs no network, no scripts and no colours."""

from __future__ import annotations

import json
import math
import re
import statistics
from pathlib import Path
from typing import Any

from benchmarks import page, shown
from tests.benchmarks.reading import Element, agrees, embedded, read, row_of, source_value
from tests.benchmarks.synthetic import REPORTS, one_row, synthetic

Report = dict[str, Any]


def test_the_report_is_embedded(tree: Element, report: Report) -> None:
    assert embedded(tree) == report


def test_every_number_shown_is_the_reports(tree: Element, report: Report) -> None:
    assert len(tree.sourced) > 10 * len(report["rows"])
    for source, text in tree.sourced:
        value = source_value(report, source)
        assert agrees(text, value, source), f"{source}: {text!r}, {value!r}"


def test_no_number_is_without_source(tree: Element) -> None:
    for element in tree.all():
        if element.tag in ("script", "style") or any("tick" in each.classes for each in element.within()):
            continue
        if any("data-from" in each.attributes for each in element.within()):
            continue
        texts = [child for child in element.children if isinstance(child, str)]
        texts += [element.get(name) for name in ("aria-label", "title", "placeholder", "data-label", "alt")]
        assert not [text for text in texts if re.search(r"\d", text)], element


def test_what_belongs_to_a_row_comes_from_it(tree: Element, report: Report) -> None:
    for element in tree.all(having="data-from"):
        around = (each for each in element.within() if {"data-row", "data-comparison"} & set(each.attributes))
        where = next(around, None)
        if where is None:
            continue
        rows = [where.get("data-row")]
        if "data-comparison" in where.attributes:
            comparison = report["comparisons"][int(where["data-comparison"])]
            rows = [str(row_of(report, comparison, which)) for which in ("ours", "other")]
            assert all(line["data-row"] == rows[1] for line in around)
        allowed = tuple(f"rows/{row}/" for row in rows) + (f"comparisons/{where.get('data-comparison')}/",)
        for part in re.split(r" \| | over ", element["data-from"]):
            assert part.removeprefix("product ").startswith(allowed), (part, where)


def test_the_table_sorts_by_what_it_shows(tree: Element, report: Report) -> None:
    (table,) = tree.all("table", having="id")
    head, *lines = table.all("tr")
    titles = [each.text.strip() for each in head.all("th")]
    keys = {column.title: column.key for column in (page.TIME, *page.COLUMNS)}
    assert [int(line["data-row"]) for line in lines] == list(range(len(report["rows"])))
    for line in lines:
        row = report["rows"][int(line["data-row"])]
        cells = [child for child in line.children if isinstance(child, Element)]
        assert cells[0]["data-value"] == row["variant"]
        for title, cell in zip(titles[1:], cells[1:], strict=True):
            if title.endswith(" is"):
                place = cell.get("data-comparison")
                found = report["comparisons"][int(place)] if place else {"ratio": None}
                assert not place or title in ("ours is", f"{found['ours']} is")
                assert cell["data-value"] == ("" if found["ratio"] is None else str(found["ratio"]))
                continue
            assert cell["data-column"] == keys[title]
            first, _ = cell.sourced[0]
            assert f"rows/{line['data-row']}/{keys[title]}" in first
            value = source_value(report, first)
            assert cell["data-value"] == ("" if value is None else str(value))


def test_nothing_of_the_report_is_left_out(tree: Element, report: Report) -> None:
    places = {part for source, _ in tree.sourced for part in re.split(" over |product ", source)}
    assert {f"ceiling/{key}" for key in report["ceiling"]} <= places
    assert {f"setting/{key}" for key, value in report["setting"].items() if not isinstance(value, dict)} <= places
    assert {f"method/{i}" for i in range(len(report.get("method", ())))} <= places
    assert {f"formulas/{name}" for name in report.get("formulas", ())} <= places
    said = {"ours", "backend", "mode", "wrong"}  # by typeface, by the variant's name, and in words
    once = {  # where every row has the same
        key for key, value in report["rows"][0].items() if all(row[key] == value for row in report["rows"])
    } & {place.partition("rows/0/")[2] for place in places}
    for i, row in enumerate(report["rows"]):
        missing = {key for key in row if f"rows/{i}/{key}" not in places and row[key] is not None}
        assert not missing - said - once, i
    for i, comparison in enumerate(report["comparisons"]):
        assert f"comparisons/{i}/ratio" in places or comparison["verdict"] == "wrong"


def test_the_check_of_numbers_sees_a_false_one() -> None:
    right = synthetic()["rows"][0]["time_us"]
    assert agrees(shown.duration(right), right)
    assert not agrees(shown.duration(right * 1.02), right)
    assert not agrees(shown.duration(right).replace("µs", "ms"), right)
    assert not agrees("3.1e-08", 3.5e-8)
    assert not agrees("7d6a2e0", "7d6a2e0c51a3f9e2b7d8c4a6e1f05b93d27a8c64-dirty", "setting/commit")


def test_verdicts_are_words_with_their_interval_and_say_whose_result_is_wrong(tree: Element, report: Report) -> None:
    shown_at = list(tree.all(having="data-comparison"))
    bars = [each for each in shown_at if "bar" in each.classes]
    assert [int(bar["data-comparison"]) for bar in bars] and len(bars) == len(report["comparisons"])
    for each in shown_at:
        i = int(each["data-comparison"])
        c = report["comparisons"][i]
        sources = [source for source, _ in each.sourced]
        assert c["verdict"].replace(" ", "-") in each.classes
        if c["verdict"] != "wrong":
            assert c["verdict"] in each.text
            assert {f"comparisons/{i}/{key}" for key in ("ratio", "low", "high")} <= set(sources)
            assert ("by plain calls" in each.text) == (c["timed_by"] == "wall")
            continue
        assert "×" not in each.text.replace(" ×", "") and not list(each.all(with_class="fill"))
        if "bar" in each.classes:
            for which in ("ours", "other"):
                row = row_of(report, c, which)
                assert (f"rows/{row}/wrong_because" in sources) == report["rows"][row]["wrong"]
            assert ("ours is wrong" in each.text) == report["rows"][row_of(report, c, "ours")]["wrong"]


def test_what_the_synthetic_reports_have() -> None:
    for report in (REPORTS["synthetic cpu"], REPORTS["synthetic gpu"]):
        assert {c["verdict"] for c in report["comparisons"]} == set(shown.VERDICTS)
        assert {row["ours"] for row in report["rows"] if row["wrong"]} == {True, False}
        assert len(report["rows"]) > 60
    assert "wall" in {c["timed_by"] for c in REPORTS["synthetic gpu"]["comparisons"]}


def test_the_glance_has_worst_median_and_best(tree: Element, report: Report) -> None:
    (table,) = tree.all("table", with_class="glance")
    _, *lines = table.all("tr")
    rows = report["rows"]
    seen = []

    def moves(comparison: Report, which: str) -> float:
        found: float = rows[row_of(report, comparison, which)]["counted_bytes"]
        return found

    for line in lines:
        name, eager, compiled, ceiling, moved = (each for each in line.children if isinstance(each, Element))
        formula, *ours = (text for _, text in name.sourced)
        assert ours != ["reference"]
        here = [c for c in report["comparisons"] if c["formula"] == formula and c["ours"] == (ours or ["native"])[0]]
        mode = {id(c): rows[row_of(report, c, "other")]["mode"] for c in here}
        against_eager = [c for c in here if mode[id(c)] == "eager"]
        cases: dict[tuple[str, str], list[Report]] = {}
        for c in here:
            if mode[id(c)] != "eager":
                cases.setdefault((c["shape_name"], c["dtype"]), []).append(c)
        better = [min(case, key=lambda c: c["ratio"] or math.inf) for case in cases.values()]
        own = {row_of(report, c, "ours") for c in here}
        expected: list[tuple[Element, list[float | None]]] = [
            (eager, [c["ratio"] for c in against_eager]),
            (compiled, [c["ratio"] for c in better]),
            (ceiling, [rows[i]["percent_of_ceiling"] for i in own if not rows[i]["wrong"]]),
            (moved, [moves(c, "other") / moves(c, "ours") for c in against_eager]),
        ]
        for cell, among in expected:
            values = sorted(value for value in among if value is not None)
            wanted = [min(values), statistics.median_low(values), max(values)] if values else []
            found = [text for source, text in cell.sourced if not source.startswith("count ")]
            wanted = wanted if len(values) > 2 else values
            assert len(found) == len(wanted) and all(map(agrees, found, wanted)), (formula, found, wanted)
        for cell, among in ((eager, against_eager), (compiled, better)):
            counted = [(source, text) for source, text in cell.sourced if source.startswith("count ")]
            counts = {source.split(" among ")[0]: int(text) for source, text in counted}
            for verdict in ("slower", "no difference"):
                assert counts.get(f"count {verdict}", 0) == sum(c["verdict"] == verdict for c in among)
            for which in ("ours", "other"):
                wrong = sum(rows[row_of(report, c, which)]["wrong"] for c in among)
                assert counts.get(f"count {which} wrong", 0) == wrong
        seen.append((formula, *ours))
    wanted_lines = {(c["formula"], c["ours"]) for c in report["comparisons"] if c["ours"] != "reference"}
    assert len(seen) == len(set(seen)) == len(wanted_lines)


def test_no_network_and_names_for_what_is_drawn(tree: Element, report: Report) -> None:
    for element in tree.all():
        for name in ("src", "href", "srcset", "action", "xlink:href"):
            assert (element.get(name) or "#").startswith("#"), element
        if element.tag == "svg":
            assert element.get("aria-hidden") or (element.get("role") == "img" and element.get("aria-labelledby"))
    html = page.render(report)
    assert not re.search(r"url\((?!#)|@import|https?://|fetch\(|XMLHttpRequest", html)
    assert "default-src 'none'" in html
    ids = [element["id"] for element in tree.all(having="id")]
    assert len(ids) == len(set(ids))
    for element in tree.all():
        assert set(element.get("aria-labelledby").split()) <= set(ids)
        assert element.tag not in ("a", "use") or element["href"].removeprefix("#") in ids


def test_colours_have_contrast() -> None:
    def luminance(colour: str) -> float:
        parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
        linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in parts]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    def contrast(a: str, b: str) -> float:
        high, low = sorted((luminance(a), luminance(b)), reverse=True)
        return (high + 0.05) / (low + 0.05)

    marks = dict.fromkeys(("ours", "eager", "compile", "autotune", "even", "field"), 3.0)
    least = {"text": 7, "soft": 4.5, "slow": 4.5, "wrong": 4.5, **marks}
    for scheme in (0, 1):
        colours = {name: both[scheme] for name, both in shown.COLOURS.items()}
        for name, ratio in least.items():
            assert all(contrast(colours[name], colours[ground]) >= ratio for ground in ("card", "page")), name
        # Whiskers and text upon what is filled.
        for ground in ("bar", "bar-slow", "target"):
            assert contrast(colours["text"], colours[ground]) >= 4.5, ground


def test_colours_stand_in_one_place() -> None:
    folder = Path(page.__file__).parent
    for name in ("page.html.in", "page.css", "page.js", "drawings.py"):
        assert not re.search(r"#[0-9a-f]{6}\b", (folder / name).read_text()), name


def test_a_report_may_have_nothing_to_compare_or_predict(tmp_path: Path) -> None:
    report = one_row()
    report["rows"][0]["predicted_us"] = None
    page.write(report, tmp_path / "page.html")
    text = (tmp_path / "page.html").read_text()
    assert "Nothing was predicted" in text and "Nothing was compared" in text


def test_a_report_may_be_empty() -> None:
    report = synthetic()
    for key in ("method", "formulas", "skipped"):
        del report[key]
    report |= {"rows": [], "comparisons": [], "ceiling": dict.fromkeys(report["ceiling"], None)}
    tree = read(page.render(report))
    assert "Nothing was compared" in tree.text
    assert not list(tree.all("form")) and not list(tree.all("svg", with_class="plot"))


def test_a_report_may_be_without_ceiling_times_and_counts() -> None:
    report = synthetic()
    report["ceiling"] |= {"gb_per_s": None, "low": None, "high": None}
    for row in report["rows"][:4]:
        row |= {"time_us": None, "low_us": None, "high_us": None, "gb_per_s": None, "counted_bytes": None}
    tree = read(page.render(report))
    assert all(agrees(text, source_value(report, source), source) for source, text in tree.sourced)
    assert "–, – to –" not in tree.text


def test_the_header_says_what_the_figures_belong_to() -> None:
    for report, wanted in (
        (REPORTS["synthetic cpu"], {"threads"}),
        (REPORTS["synthetic gpu"], {"cuda", "driver", "clocks"}),
    ):
        (header,) = read(page.render(report)).all("header")
        assert wanted | {"device", "torch", "date", "commit"} == {source.split("/")[1] for source, _ in header.sourced}
        assert "7d6a2e0-dirty" in header.text


def test_names_cannot_break_the_page() -> None:
    report = synthetic()
    report["setting"]["device"] = "</script><script>alert(1)</script>"
    assert "<script>alert" not in page.render(report)
    assert json.loads(read(page.render(report)).text and json.dumps(embedded(read(page.render(report))))) == report
