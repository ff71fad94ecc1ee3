"""All cases of a run: what stops it, what is said of the rest, and the report that grows meanwhile."""

from __future__ import annotations

import dataclasses
import json
from types import SimpleNamespace

import pytest

import benchmarks.run as module
from benchmarks.measure import Options, Skipped
from benchmarks.run import run
from tests.benchmarks.tiny import measured, row, tiny

CASES = [tiny(name) for name in ("fastgen", "dmd2_pixel", "dmd2_latent", "weight")]
NAMES = [str(case) for case in CASES]


@pytest.fixture
def measuring(monkeypatch):
    """Cases take a second each, as does counting one; `stop_at` is interrupted."""
    made = SimpleNamespace(now=1000.0, log=[], stop_at=None, fails=None)

    def measure(formula, case, options):
        made.log.append(("timed", case.formula))
        made.now += 1.0
        if made.stop_at == ("timed", case.formula):
            raise KeyboardInterrupt
        if made.fails == case.formula:
            raise RuntimeError("no memory")
        return measured(case, row(case), row(case, "peer eager"))

    def count_later(found, formula, case, options, compiled):
        made.log.append(("compiled" if compiled else "counted", case.formula))
        made.now += 1.0
        if made.stop_at == made.log[-1]:
            raise KeyboardInterrupt
        if not compiled:
            found.rows[:] = [dataclasses.replace(each, launches=7) for each in found.rows]

    monkeypatch.setattr(module, "measure", measure)
    monkeypatch.setattr(module, "count_later", count_later)
    monkeypatch.setattr(module, "time", SimpleNamespace(monotonic=lambda: made.now))
    return made


def report_of(device="cpu", cases=CASES, said=None, **more):
    say = [].append if said is None else said.append
    return run(cases, Options(device, ["native"], ["eager"]), {"kind": device}, say=say, **more)


def counts(names, compiled=False):
    return [f"{name}{', compiled' if compiled else ''}: launches and memory" for name in names]


def skipped_of(report, kind):
    assert {each["kind"] for each in report["skipped"]} <= {kind}
    return [each["what"] for each in report["skipped"]]


def test_a_whole_run(measuring, tmp_path):
    said, file = [], tmp_path / "report.json"
    report = report_of(file=file, said=said)
    assert json.loads(file.read_text()) == report
    assert [each["formula"] for each in report["rows"]] == [case.formula for case in CASES for _ in range(2)]
    assert len(said) == len(report["comparisons"]) == 4 and report["skipped"] == []
    assert set(report["formulas"]) == {case.formula for case in CASES}
    assert report["ceiling"]["gb_per_s"] == pytest.approx(2**20 / 1e-3 / 1e9)
    assert report["ceiling"]["low"] == pytest.approx(2**20 / 2e-3 / 1e9)


@pytest.mark.parametrize(("seconds", "done"), [(0.5, 1), (2.5, 3), (3.5, 4), (100.0, 4)])
def test_no_case_is_begun_after_its_time(measuring, seconds, done):
    report = report_of(seconds=seconds)
    assert len(measuring.log) == done == len(report["rows"]) // 2
    assert skipped_of(report, "no time") == NAMES[done:]
    assert all(each["why"] == f"no time: {seconds:g} s were over" for each in report["skipped"])


def test_a_gpu_times_everything_before_it_counts(measuring):
    report = report_of("cuda")
    assert measuring.log == [(what, case.formula) for what in ("timed", "counted", "compiled") for case in CASES]
    assert [each["launches"] for each in report["rows"]] == [7] * 8 and report["skipped"] == []


def test_counts_of_a_gpu_that_there_is_no_time_for(measuring):
    """A quarter of the seconds is kept for counting, what has to be compiled last."""
    report = report_of("cuda", seconds=5.5)
    assert [each["launches"] for each in report["rows"]] == [7] * 4 + [None] * 4
    assert skipped_of(report, "no time") == [*counts(NAMES[2:]), *counts(NAMES, compiled=True)]
    assert [each["ours"] for each in report["skipped"]] == [True] * 2 + [False] * 4
    report = report_of("cuda", seconds=1.9)
    assert [each["launches"] for each in report["rows"]] == [None] * 4
    assert skipped_of(report, "no time") == [*NAMES[2:], *counts(NAMES[:2]), *counts(NAMES[:2], compiled=True)]
    report = report_of("cuda", seconds=8.5)
    assert skipped_of(report, "no time") == counts(NAMES[1:], compiled=True)


@pytest.mark.parametrize(
    ("device", "stop_at", "rows", "rest"),
    [
        ("cpu", ("timed", "fastgen"), 0, NAMES),
        ("cpu", ("timed", "dmd2_latent"), 4, NAMES[2:]),
        ("cuda", ("timed", "weight"), 6, [NAMES[3], *counts(NAMES[:3]), *counts(NAMES[:3], compiled=True)]),
        ("cuda", ("counted", "dmd2_pixel"), 8, [*counts(NAMES[1:]), *counts(NAMES, compiled=True)]),
        ("cuda", ("compiled", "dmd2_pixel"), 8, counts(NAMES[1:], compiled=True)),
    ],
)
def test_an_interrupt_keeps_what_is_done_and_names_the_rest(measuring, tmp_path, device, stop_at, rows, rest):
    measuring.stop_at, file = stop_at, tmp_path / "report.json"
    report = report_of(device, file=file)
    assert json.loads(file.read_text()) == report and len(report["rows"]) == rows
    assert skipped_of(report, "stopped") == rest


def test_a_case_that_fails_is_skipped_as_a_fault(measuring):
    measuring.fails = "dmd2_pixel"
    report = report_of(unavailable=[Skipped("triton", "unavailable: none", "unavailable")])
    assert [(each["what"], each["kind"], each["ours"]) for each in report["skipped"]] == [
        ("triton", "unavailable", True), (NAMES[1], "failed", True),
    ]  # fmt: skip
    assert len(report["rows"]) == 6


def test_the_report_is_there_while_the_run_goes_on(measuring, tmp_path, monkeypatch):
    file, seen = tmp_path / "report.json", []
    report_of(file=file, said=SimpleNamespace(append=lambda _: seen.append(len(json.loads(file.read_text())["rows"]))))
    assert seen == [2, 4, 6, 8]


def test_an_error_that_is_no_number_is_null(measuring, monkeypatch):
    monkeypatch.setattr(
        module, "measure", lambda formula, case, options: measured(case, row(case, gradient_error=float("nan")))
    )
    assert report_of()["rows"][0]["gradient_error"] is None
