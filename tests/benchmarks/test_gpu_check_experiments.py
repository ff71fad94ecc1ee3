"""`make gpu-check`: what is timed on a GPU, in which order, and with which plans. Nothing runs."""

from __future__ import annotations

import re

from benchmarks import __main__ as command
from benchmarks.shapes import LARGE, PRACTICE
from tests.gpu_check import bench, experiments, sanitize
from tests.gpu_check.__main__ import stage_names
from tests.gpu_check.children import ROOT, Done
from tests.gpu_check.stage import PLAN, Stage


def commands(found, monkeypatch, run):
    """What a stage on a GPU would run: the arguments and the plan of each benchmark."""
    monkeypatch.setattr(Stage, "is_gpu", True)
    calls = []

    def note(name, *arguments, environment, **options):
        parser = command.command_line()
        given = parser.parse_args(arguments[2:])
        calls.append((given, command.cases_of(given, "cuda", parser.error), environment))
        return Done(0, 1.0, "")

    monkeypatch.setattr(found, "python", note)
    run(found)
    return calls


def test_the_benchmark_times_us_first_and_compiled_peers_last(stage, monkeypatch):
    (own, cases, _), (peers, _, _), (everything, _, _) = commands(stage("bench"), monkeypatch, bench.run)
    timed = {(case.shape_name, case.dtype) for case in cases if case.op == "fused_fdiv_loss"}
    assert timed >= {(name, dtype) for name in (*PRACTICE, *LARGE) for dtype in ("bf16", "fp32")}
    assert command.flat(own.baseline) == ["none"] and own.backend is None
    assert command.flat(peers.mode) == ["eager"]
    assert everything.mode is everything.baseline is everything.shapes is None
    assert own.seconds + peers.seconds + everything.seconds < 60


def test_every_plan_is_timed_in_a_few_rounds(stage, monkeypatch):
    calls = commands(stage("plans"), monkeypatch, experiments.run_plans)
    assert [environment for _, _, environment in calls] == [{PLAN: plan} for plan in experiments.PLANS]
    assert {"", *sanitize.NATIVE_PLANS, "cluster:8"} <= set(experiments.PLANS)
    for _, cases, _ in calls:
        assert {(case.shape_name, case.dtype) for case in cases} == {(name, "bf16") for name in PRACTICE}


def test_a_plan_that_cannot_hold_a_sample_is_an_answer(stage):
    found = stage("plans")
    no = {
        "what": "wan",
        "why": "RuntimeError: no allowed schedule can hold this sample",
        "kind": "failed",
        "ours": True,
    }
    bench.note(found, "cluster:1", Done(1, 1.0, ""), {"rows": [], "comparisons": [], "skipped": [no]})
    other = {**no, "why": "RuntimeError: something else"}
    bench.note(found, "grid", Done(1, 1.0, ""), {"rows": [], "comparisons": [], "skipped": [no, other]})
    assert [(part["name"], part["status"], part.get("not possible")) for part in found.parts] == [
        ("cluster:1", "ok", 1), ("grid", "failed", 1), ("grid: wan", "failed", None),
    ]  # fmt: skip


def test_the_first_half_hour_fits():
    """Every stage of a call has its own budget; calls are of ten minutes; starts and transfers take time, too."""
    calls = re.findall(r"^\| `STAGES=(\S+) BUDGET=(\d+)`", (ROOT / "CONTRIBUTING.md").read_text(), re.MULTILINE)
    seconds = [len(stage_names(names)) * int(budget) for names, budget in calls]
    assert len(calls) >= 5 and max(seconds) <= 540 and sum(seconds) <= 1600


def test_cases_in_every_plan_and_what_is_planned(stage, monkeypatch):
    monkeypatch.setattr(Stage, "is_gpu", True)
    found, calls = stage("cases", device="cuda"), []

    def run(name, program, **options):
        calls.append((program, options.get("environment", {}).get(PLAN)))
        return Done(0, 1.0, "case CIFAR: ok")

    monkeypatch.setattr(found, "child", run)
    experiments.run_cases(found)
    small = [plan for program, plan in calls if "tests.gpu_check.small_cases" in program and "native" in program]
    assert sorted(small) == sorted(experiments.PLANS)
    planned = [program for program, _ in calls if "plan" in program]
    assert len(planned) == len(PRACTICE) and all(program[-1] == "present" for program in planned)
    assert set(found.details["plans"]) == set(PRACTICE) and found.status == "ok"
