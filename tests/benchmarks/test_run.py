"""All cases of a run: what stops it, what is reported of the rest, and the report that grows meanwhile."""

from __future__ import annotations

import dataclasses
import json
from types import SimpleNamespace

import pytest

import benchmarks.measure.run as module
from benchmarks.cases.formulas import FORMULAS
from benchmarks.measure.rows import Options, Skipped
from tests.benchmarks.made_up import measured, row

CASES = [FORMULAS[name].tiny() for name in ("fastgen", "dmd2_pixel", "dmd2_latent", "weight")]
NAMES = [str(case) for case in CASES]


@pytest.fixture
def measuring(monkeypatch):
    """Timing a case takes a second, and so does counting it; `stop_at` is interrupted, `fails` fails."""
    made = SimpleNamespace(now=1000.0, log=[], stop_at=None, fails=None)

    def measure(formula, case, options):
        made.log.append(("timed", case.formula))
        made.now += 1.0
        if made.stop_at == made.log[-1]:
            raise KeyboardInterrupt
        if made.fails == case.formula:
            raise RuntimeError("no memory")
        return measured(case, row(case, gradient_error=float("nan")), row(case, "peer eager"))

    def count_later(found, formula, case, options, compiled):
        made.log.append(("compiled" if compiled else "counted", case.formula))
        made.now += 1.0
        found.rows[:] = [dataclasses.replace(each, launches=7) for each in found.rows]

    monkeypatch.setattr(module, "measure", measure)
    monkeypatch.setattr(module, "count_later", count_later)
    monkeypatch.setattr(module, "time", SimpleNamespace(monotonic=lambda: made.now))
    return made


def report_of(device="cpu", say=lambda text: None, **more):
    return module.run(CASES, Options(device, ["native"], ["eager"]), {"kind": device}, say=say, **more)


def counts(names, compiled=False):
    return [f"{name}{', compiled' if compiled else ''}: launches and memory" for name in names]


def test_a_whole_run_whose_report_grows(measuring, tmp_path):
    file, seen = tmp_path / "report.json", []
    report = report_of(file=file, say=lambda text: seen.append(len(json.loads(file.read_text())["rows"])))
    assert json.loads(file.read_text()) == report and seen == [2, 4, 6, 8]
    assert [each["formula"] for each in report["rows"]] == [case.formula for case in CASES for _ in range(2)]
    assert len(report["comparisons"]) == 4 and report["skipped"] == []
    assert report["rows"][0]["gradient_error"] is None  # JSON has no NaN
    assert report["ceiling"]["gb_per_s"] == pytest.approx(2**20 / 1e-3 / 1e9)
    assert report["ceiling"]["low"] == pytest.approx(2**20 / 2e-3 / 1e9)
    report_of("cuda")
    assert measuring.log[4:] == [(what, case.formula) for what in ("timed", "counted", "compiled") for case in CASES]


@pytest.mark.parametrize(
    ("device", "seconds", "rows", "counted", "rest"),
    [
        ("cpu", 0.5, 2, 0, NAMES[1:]),
        ("cpu", 100.0, 8, 0, []),
        # A quarter of the seconds is kept for counting; compiled variants are counted last.
        ("cuda", 5.5, 8, 4, [*counts(NAMES[2:]), *counts(NAMES, compiled=True)]),
        ("cuda", 1.9, 4, 0, [*NAMES[2:], *counts(NAMES[:2]), *counts(NAMES[:2], compiled=True)]),
    ],
)
def test_after_its_seconds_nothing_is_begun(measuring, tmp_path, device, seconds, rows, counted, rest):
    file = tmp_path / "report.json"
    report = report_of(device, file=file, seconds=seconds)
    assert json.loads(file.read_text()) == report and len(report["rows"]) == rows
    assert sum(each["launches"] == 7 for each in report["rows"]) == counted
    assert [each["what"] for each in report["skipped"]] == rest
    assert {each["kind"] for each in report["skipped"]} <= {"no time"}
    assert all(each["ours"] != (", compiled:" in each["what"]) for each in report["skipped"])


def test_an_interrupt_leaves_the_report_of_what_is_done(measuring, tmp_path):
    measuring.stop_at = ("timed", "dmd2_latent")
    with pytest.raises(KeyboardInterrupt):
        report_of(file=tmp_path / "report.json")
    assert len(json.loads((tmp_path / "report.json").read_text())["rows"]) == 4


def test_a_case_that_fails_is_skipped_as_a_fault(measuring):
    measuring.fails = "dmd2_pixel"
    report = report_of("cuda", unavailable=[Skipped("triton", "unavailable: none", "unavailable")])
    found = [(each["what"], each["kind"], each["ours"]) for each in report["skipped"]]
    assert found == [("triton", "unavailable", True), (NAMES[1], "failed", True)] and len(report["rows"]) == 6
