"""The page in a browser: it filters, sorts, and fits a phone."""

from __future__ import annotations

import html
import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from benchmarks import page
from tests.benchmarks.synthetic import synthetic

CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
# What the page's own policy forbids.
WATCH = """<script>
window.violations = [];
addEventListener('securitypolicyviolation', event => violations.push(event.violatedDirective));
</script>"""
# In a frame, since a window is 500 pixels wide at least.
WRAPPER = """<!doctype html><iframe width=390 height=800 srcdoc="PAGE"></iframe><pre id="found"></pre><script>
onload = () => {
  const inner = document.querySelector("iframe").contentWindow, page = inner.document, found = {};
  const all = selector => [...page.querySelectorAll(selector)], words = page.getElementById("words");
  const visible = selector => all(selector).filter(element => !element.hasAttribute("hidden")).length;
  const counts = () => [visible(".bar"), visible("#table tbody tr"), visible(".plot [data-row]")];
  const put = (field, value) => {
    field.value = value;
    field.dispatchEvent(new inner.Event("input", {bubbles: true}));
  };
  found.search = Object.fromEntries(SEARCHES.map(text => { put(words, text); return [text, counts()]; }));
  put(words, "");
  found.selects = {};
  for (const select of all("select")) {
    const value = select.options[select.options.length - 1].value;
    put(select, value);
    found.selects[select.dataset.key] = [value, ...counts(), page.getElementById("shown").textContent];
    put(select, "");
  }
  found.sorts = {};
  for (const head of all("#table thead th"))
    found.sorts[head.textContent] = [0, 1, 2].map(() => {
      head.querySelector("button").click();
      return [head.getAttribute("aria-sort"), all("#table tbody tr").map(row => +row.dataset.row)];
    });
  found.width = page.documentElement.scrollWidth;
  const download = page.getElementById("download");
  found.download = [download.hidden, download.href.slice(0, 5)];
  found.violations = inner.violations;
  document.getElementById("found").textContent = JSON.stringify(found);
};
</script>"""
SEARCHES = ("", "slower", "no difference", "wrong", "64×3", "bf16 eager", "max-autotune", "nothing has this")


def browse(report: dict[str, Any], folder: Path) -> dict[str, Any]:
    text = page.render(report).replace("<head>", f"<head>{WATCH}", 1)
    wrapper = WRAPPER.replace("SEARCHES", json.dumps(SEARCHES)).replace("PAGE", html.escape(text))
    (folder / "wrapper.html").write_text(wrapper, encoding="utf-8")
    command = [CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={folder / 'profile'}",
               "--virtual-time-budget=5000", "--dump-dom", (folder / "wrapper.html").as_uri()]  # fmt: skip
    dumped = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True).stdout
    match = re.search(r'<pre id="found">(.*?)</pre>', dumped, re.DOTALL)
    assert match and match[1], "the page's script failed"
    found: dict[str, Any] = json.loads(html.unescape(match[1]))
    return found


@pytest.mark.skipif(CHROMIUM is None, reason="no chromium")
def test_the_page_in_a_browser(tmp_path: Path) -> None:
    report = synthetic("cuda")
    rows, comparisons = report["rows"], report["comparisons"]
    found = browse(report, tmp_path)

    searched = found["search"]
    assert searched[""][:2] == [len(comparisons), len(rows)]
    for verdict in ("slower", "no difference"):
        assert searched[verdict][0] == sum(c["verdict"] == verdict for c in comparisons)
        assert searched[verdict][1] > 0
    wrong = [i for i, row in enumerate(rows) if row["wrong"]]
    assert searched["wrong"][0] == sum(c["verdict"] == "wrong" for c in comparisons)
    assert searched["wrong"][1] >= len(wrong)
    assert searched["64×3"][1] == sum(row["shape"][:2] == [64, 3] for row in rows)
    cifar = [c for c in comparisons if c["shape_name"] == "CIFAR" and c["op"] == "fused_fdiv_loss"]
    assert searched["64×3"][0] == len(cifar)
    assert searched["bf16 eager"][0] == sum(c["dtype"] == "bf16" and c["other"].endswith("eager") for c in comparisons)
    assert searched["max-autotune"][0] == sum("max-autotune" in c["other"] for c in comparisons)
    assert searched["nothing has this"] == [0, 0, 0]

    assert set(found["selects"]) == {"shape_name", "dtype", "formula", "variant", "verdict"}
    for key, (value, bars, lines, points, text) in found["selects"].items():
        fits = [value in (c.get(key), *((c["ours"], c["other"]) if key == "variant" else ())) for c in comparisons]
        assert bars == sum(fits)
        assert text == f"{bars} of {len(comparisons)} comparisons · {lines} of {len(rows)} rows"
        if key != "verdict":
            assert lines == sum(row[key] == value for row in rows)
        assert points <= 2 * lines

    def sorts(title: str) -> list[Any]:
        (clicks,) = (clicks for head, clicks in found["sorts"].items() if head == title)
        return clicks

    for title, key, first in (("time", "time_us", "ascending"), ("bandwidth", "gb_per_s", "descending")):
        (name, order), (other, reverse), (none, back) = sorts(title)
        assert (name, {name, other}, none) == (first, {"ascending", "descending"}, None)
        assert set(order[-len(wrong) :]) == set(reverse[-len(wrong) :]) == set(wrong)
        values = [rows[i][key] for i in order[: -len(wrong)]]
        assert values == sorted(values, reverse=first == "descending")
        values = [rows[i][key] for i in reverse[: -len(wrong)]]
        assert values == sorted(values, reverse=first != "descending")
        assert back == list(range(len(rows)))
    names = [rows[i]["variant"] for i in sorts("variant")[0][1][: -len(wrong)]]
    assert names == sorted(names)

    assert found["width"] <= 390
    assert found["download"] == [False, "blob:"] and found["violations"] == []
