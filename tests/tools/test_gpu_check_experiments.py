"""`make gpu-check`: what is timed on a GPU, in which order, and with which plans. Nothing runs but one rehearsal."""

from __future__ import annotations

import json
import re

from benchmarks import __main__ as command
from benchmarks.cases.shapes import LARGE, PRACTICE
from tools.gpu_check import bench, experiments, plan_times, sanitize
from tools.gpu_check.__main__ import stage_names
from tools.gpu_check.children import ROOT, Done
from tools.gpu_check.stage import PLAN, Stage


def commands(found, monkeypatch, run):
    """What a stage on a GPU would run: the arguments of each benchmark."""
    monkeypatch.setattr(Stage, "is_gpu", True)
    calls = []

    def note(name, *arguments, **options):
        parser = command.command_line()
        given = parser.parse_args(arguments[2:])
        calls.append((given, command.cases_of(given, "cuda", parser.error)))
        return Done(0, 1.0, "")

    monkeypatch.setattr(found, "python", note)
    run(found)
    return calls


def test_the_benchmark_times_us_first_and_compiled_peers_last(stage, monkeypatch):
    (own, cases), (peers, _), (everything, _) = commands(stage("bench"), monkeypatch, bench.run)
    timed = {(case.shape_name, case.dtype) for case in cases if case.op == "fused_fdiv_loss"}
    assert timed >= {(name, dtype) for name in (*PRACTICE, *LARGE) for dtype in ("bf16", "fp32")}
    assert own.baseline == ["none"] and own.backend is None
    assert peers.mode == ["eager"]
    assert everything.mode is everything.baseline is everything.shapes is None
    assert own.seconds + peers.seconds + everything.seconds < 60


def test_every_plan_is_timed(stage, monkeypatch):
    found, calls = stage("plans"), []
    monkeypatch.setattr(Stage, "is_gpu", True)
    monkeypatch.setattr(found, "python", lambda name, *arguments, limit: calls.append(arguments) or Done(0, 1.0, ""))
    experiments.run_plans(found)
    assert [arguments[arguments.index("--group") + 1] for arguments in calls] == ["practice", "large"]
    timed = {(shape, dtype) for _, shape, dtype in (*plan_times.CASES["practice"], *plan_times.CASES["large"])}
    assert timed >= {(name, dtype) for name in PRACTICE for dtype in ("bf16", "fp32")} | {(n, "bf16") for n in LARGE}


def test_a_rehearsal_of_the_plans(stage):
    found = stage("plans")
    experiments.run_plans(found)
    assert [(part["name"], part["status"]) for part in found.parts] == [("rehearsal", "ok")]
    (row,) = json.loads((found.options.out / "plans-rehearsal.json").read_text())
    assert row["case"] == "fastgen tiny bf16" and row["plan"] == "cluster:1"
    assert 0 < row["low_us"] <= row["time_us"] <= row["high_us"] and row["predicted_us"] > 0
    (line,) = found.summary
    assert "planned takes 1.00 of cluster:1" in line


def test_the_first_half_hour_fits():
    """Every stage of a call has its own budget. A call has ten minutes; starts and transfers take time too."""
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
    small = [plan for program, plan in calls if "tools.gpu_check.small_cases" in program and "native" in program]
    assert sorted(small) == sorted(experiments.PLANS) and set(sanitize.NATIVE_PLANS) <= set(experiments.PLANS)
    planned = [program for program, _ in calls if "plan" in program]
    assert len(planned) == len(PRACTICE) and all(program[-1] == "present" for program in planned)
    assert set(found.details["plans"]) == set(PRACTICE) and found.status == "ok"
