"""The share of a student step that lies between the networks: measured, and as the docs tell it."""

from __future__ import annotations

import json
import re

import pytest

from benchmarks import share
from benchmarks.report import figures

ROWS = json.loads((figures.RESULTS / "share_cpu.json").read_text(encoding="utf-8"))["rows"]


def test_the_pages_say_what_was_measured() -> None:
    table = share.table(ROWS)
    assert table in figures.PAGE.read_text(encoding="utf-8")
    shares = [line.split(" | ")[i].strip(" |") for line in table.splitlines()[2:] for i in (4, 6)]
    text = " ".join(figures.README.read_text(encoding="utf-8").split())
    said = re.search(
        r"([\d.]+ %) of a student step and here ([\d.]+ %); with 36 M it is ([\d.]+ %) and ([\d.]+ %)", text
    )
    assert said and list(said.groups()) == shares


def test_shares_follow_from_the_times() -> None:
    row = {"network": "made up", "shape": (2, 3), "parameters": 2_000_000, "networks_us": 9e3, "fastgen_us": 1e3,
           "fdkernels_us": 0.0}  # fmt: skip
    line = share.table([row]).splitlines()[2]
    assert line == "| made up, 2 M parameters | 2×3 | 9.00 ms | 1.00 ms | 10.0 % | 0.00 µs | 0.00 % |"


def test_a_measurement() -> None:
    pytest.importorskip("diffusers")
    row = share.measure("digits", "cpu", rounds=1)
    assert row["parameters"] == ROWS[0]["parameters"] and list(row["shape"]) == ROWS[0]["shape"]
    assert row["networks_us"] > row["fastgen_us"] > 0 and row["networks_us"] > row["fdkernels_us"] > 0
