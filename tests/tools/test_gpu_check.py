"""`make gpu-check` on a CPU, with tiny shapes: what it finds and refuses, and how it reports failures and hangs."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

import fdkernels as fdk
from tools.gpu_check import __main__ as check
from tools.gpu_check import bench, children, profiling, sanitize, small_cases, suite
from tools.gpu_check.children import ROOT, Done
from tools.gpu_check.stage import PLAN, Stage

CONFTEST = "from tests.conftest import *\nfrom tests.conftest import _usable, _small_programs\n"
FINE = """
import pytest
from tests.cases import make

@pytest.mark.contract("exactness")
@pytest.mark.backends("native")
def test_small(backend):
    make((4, 3, 8, 8)).check(backend)

def test_without_a_backend():
    pass
"""


@pytest.fixture
def write_tests(tmp_path):
    """A folder of test files, under the project's own conftest."""

    def write(**files):
        folder = tmp_path / "suite"
        folder.mkdir()
        (folder / "conftest.py").write_text(CONFTEST)
        for name, text in files.items():
            (folder / f"test_{name}.py").write_text(text)
        return str(folder)

    return write


def script(path: Path, text: str) -> str:
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return str(path)


def test_all_stages_but_build(tmp_path, write_tests):
    """The command of `make gpu-check`. It is no failure that compute-sanitizer and ncu are missing."""
    out = tmp_path / "out"
    arguments = ["--out", out, "--device", "cpu", "--stages", "test,sanitize,bench,profile"]
    run = subprocess.run(
        [sys.executable, "-m", "tools.gpu_check", *arguments, "--tests", write_tests(fine=FINE)],
        cwd=ROOT, env={**os.environ, "PATH": "", "CUDA_HOME": "/nowhere", "FDKERNELS_COMMIT": "c0ffee"},
        capture_output=True, text=True,
    )  # fmt: skip
    assert run.returncode == 0, run.stdout + run.stderr
    found = {name: json.loads((out / f"{name}.json").read_text()) for name in ("test", "sanitize", "bench", "profile")}
    statuses = {name: result["status"] for name, result in found.items()}
    assert statuses == {"test": "ok", "sanitize": "refused", "bench": "ok", "profile": "refused"}, run.stdout
    assert all(result["setting"]["commit"] == "c0ffee" for result in found.values())
    assert all(
        "s   parts:" in line for line in run.stdout.splitlines() if line.startswith(tuple(found)) and "," in line
    )

    passed = {"passed": 1}
    assert found["test"]["totals"] == dict.fromkeys(("native", "none"), passed)
    assert found["test"]["contracts"] == {"exactness": {"native": passed}}
    parts = {part["name"]: part for part in found["sanitize"]["parts"]}
    assert parts["cases, native"]["right"] == parts["cases, triton"]["right"] == len(sanitize.CPU_CASES)
    assert parts["compute-sanitizer"]["status"] == "refused"
    rows = {name: json.loads((out / file).read_text())["rows"] for name, file in found["bench"]["reports"].items()}
    assert {name: {row["variant"] for row in of} for name, of in rows.items()} == {
        "own": {"native"}, "peers": {"native", "fastgen eager", "dmd2 eager"}, "compiled": {"native", "fastgen eager"},
    }  # fmt: skip
    rows = [row for of in rows.values() for row in of]
    assert all(row["low_us"] <= row["time_us"] <= row["high_us"] and not row["wrong"] for row in rows)
    profiled, ncu = found["profile"]["parts"]
    assert any("fdiv_native" in event["name"] for event in profiled["kernels"]) and ncu["status"] == "refused"
    assert "##### sanitize: cases, native" in (out / "log.txt").read_text()


def test_a_file_that_cannot_be_imported(write_tests, stage):
    found = stage(tests=[write_tests(torn="import nothing_of_that_name\n")])
    suite.run(found)
    assert found.status == "failed" and any("nothing_of_that_name" in part.get("text", "") for part in found.parts)


def test_no_process_for_what_is_skipped(write_tests, stage, tmp_path):
    skipped = "import pytest\n\n@pytest.mark.gpu\ndef test_on_a_gpu():\n    pass\n"
    found = suite.collect(stage(tests=[write_tests(fine=FINE, skipped=skipped)]), tmp_path)
    assert {Path(file).name for file, _, _ in found} == {"test_fine.py"}


def broken_stage(_):
    raise RuntimeError("the stage itself")


@pytest.mark.parametrize(
    ("name", "run", "status", "code"),
    [
        ("build", lambda stage: stage.add("build_ext", "failed"), "failed", 1),
        ("sanitize", broken_stage, "failed", 1),
        ("test", lambda stage: stage.add("a file", "timed out"), "timed out", 0),
        ("test", lambda stage: stage.add("a file", "not run"), "timed out", 0),
        ("sanitize", lambda stage: stage.add("memcheck", "refused"), "refused", 0),
        ("bench", lambda stage: stage.add("a row", "failed"), "failed", 0),
        ("profile", lambda stage: stage.add("ncu", "ok"), "ok", 0),
    ],
)
def test_exit_codes(name, run, status, code, tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(check.KNOWN, name, run)
    monkeypatch.setattr(children, "run", lambda *_, **__: Done(0, 0.0, '{"commit": "c0ffee"}'))
    assert check.main(["--out", str(tmp_path), "--device", "cpu", "--stages", name]) == code
    assert json.loads((tmp_path / f"{name}.json").read_text())["status"] == status
    assert f"{name:9} {status}" in capsys.readouterr().out


def test_nothing_runs_after_a_failed_build(tmp_path, monkeypatch, capsys):
    """Neither in the same call nor in a later one with the same folder, until a build succeeds."""
    begun, builds = [], {"status": "failed"}
    monkeypatch.setitem(check.KNOWN, "build", lambda stage: stage.add("build_ext", builds["status"]))
    monkeypatch.setitem(check.KNOWN, "test", lambda stage: (begun.append("test"), stage.add("a file", "ok")))
    monkeypatch.setattr(children, "run", lambda *_, **__: Done(0, 0.0, '{"commit": "c0ffee"}'))
    call = ["--out", str(tmp_path), "--device", "cpu", "--stages"]
    assert check.main([*call, "build,test"]) == 1
    assert check.main([*call, "test"]) == 1
    assert begun == [] and not (tmp_path / "test.json").exists()
    assert "test      not run    the build failed" in capsys.readouterr().out
    builds["status"] = "ok"
    assert check.main([*call, "build,test"]) == 0
    assert check.main([*call, "test"]) == 0
    assert begun == ["test", "test"]


@pytest.mark.parametrize(("report", "ended", "runs"), [("failed", False, True), ("ok", True, False)])
def test_what_blocks_after_a_build(report, ended, runs, tmp_path, monkeypatch):
    """A build that was ended blocks, even after an earlier good one. A failed report of a good build does not block."""
    begun, status = [], iter(("ok", report))

    def build(stage):
        if (tmp_path / "ended").exists():
            raise SystemExit(143)
        stage.add("build_ext", "ok")
        stage.add("python -m fdkernels", next(status))

    monkeypatch.setitem(check.KNOWN, "build", build)
    monkeypatch.setitem(check.KNOWN, "bench", lambda stage: (begun.append("bench"), stage.add("a row", "ok")))
    monkeypatch.setattr(children, "run", lambda *_, **__: Done(0, 0.0, '{"commit": "c0ffee"}'))
    call = ["--out", str(tmp_path), "--device", "cpu", "--stages"]
    assert check.main([*call, "bench"]) == 0, "built by hand"
    assert check.main([*call, "build,bench"]) == 0
    begun.clear()
    if ended:
        (tmp_path / "ended").touch()
        with pytest.raises(SystemExit):
            check.main([*call, "build"])
    else:
        check.main([*call, "build"])
    assert check.main([*call, "bench"]) == (0 if runs else 1)
    assert begun == ["bench"] * runs


def test_what_has_ended_is_on_disk(stage):
    """Parts are on disk however the call ends: the machine is rented."""
    found = stage("sanitize")
    for status in ("ok", "refused"):
        found.add(f"a part, {status}", status)
        on_disk = json.loads((found.options.out / "sanitize.json").read_text())
        assert on_disk["status"] == status and not on_disk["finished"] and on_disk["parts"] == found.parts
    assert found.finish()["finished"] and json.loads((found.options.out / "sanitize.json").read_text())["finished"]


def test_no_backend_waits_for_the_others():
    files = [(file, backend, 3) for backend in ("none", "native", "reference", "triton") for file in ("b", "a")]
    order = suite.interleaved([*files, ("a", "unknown", 1)])
    assert [file for file, _, _ in order] == ["b"] * 4 + ["a"] * 4
    assert [backend for _, backend, _ in order] == ["triton", "native", "none", "reference"] * 2


@pytest.mark.skipif(shutil.which("make") is None, reason="no make")
def test_the_command_for_a_bare_machine_names_the_commit():
    make = ["make", "-s", "gpu-command", "OUT=a folder", "STAGES=own", "BUDGET=540", "PYTHON=python3"]
    variables = {name: value for name, value in os.environ.items() if not name.startswith(("MAKE", "FDKERNELS_COMMIT"))}
    run = subprocess.run(make, cwd=ROOT, env=variables, capture_output=True, text=True, check=True)
    commit, python, *arguments = shlex.split(run.stdout)
    assert re.fullmatch(r"FDKERNELS_COMMIT=[0-9a-f]{40}(-dirty)?", commit)
    assert [python, *arguments] == [
        "python3", "-m", "tools.gpu_check",
        "--out", "a folder", "--device", "cuda", "--stages", "own", "--budget", "540",
    ]  # fmt: skip


def test_a_child_is_ended_with_its_own_children(tmp_path):
    pid = tmp_path / "pid"
    start = time.monotonic()
    done = children.run(["/bin/sh", "-c", f"sleep 60 & echo $! > {pid}; echo begun; wait"], 2.0, {})
    assert time.monotonic() - start < 10
    assert (done.stopped, done.status, done.output) == ("its own", "failed", "begun\n")
    stat = Path(f"/proc/{pid.read_text().strip()}/stat")
    deadline = time.monotonic() + 5
    while stat.exists() and stat.read_text().split()[2] != "Z" and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not stat.exists() or stat.read_text().split()[2] == "Z"
    assert children.run(["/nowhere/at-all"], 1.0, {}).code == 127


CLEAN, DIRTY = "========= ERROR SUMMARY: 0 errors", "========= ERROR SUMMARY: 3 errors (1 suppressed)"
RACES = "========= RACECHECK SUMMARY: 2 hazards displayed (1 error, 1 warning)"
NO_RACES = "========= RACECHECK SUMMARY: 0 hazards displayed (0 errors, 0 warnings)"
TERMINATED = "========= Error: Target application terminated before first instrumented API call"


@pytest.mark.parametrize(
    ("output", "code", "stopped", "status"),
    [
        (CLEAN, 0, None, "ok"),
        (NO_RACES, 0, None, "ok"),
        (DIRTY, 99, None, "failed"),
        (RACES, 99, None, "failed"),
        (f"case CIFAR: wrong: 2 ulp\n{CLEAN}", 1, None, "failed"),
        (TERMINATED, 255, None, "refused"),
        ("case CIFAR: ok", -9, "the stage's", "timed out"),
    ],
)
def test_verdicts_of_compute_sanitizer(output, code, stopped, status):
    assert sanitize.status_of(Done(code, 1.0, output, stopped)) == status


@pytest.mark.parametrize(("said", "sees"), [(DIRTY, True), (CLEAN, False), (TERMINATED, False)])
def test_a_tool_that_misses_a_planted_fault_is_refused(said, sees, stage, tmp_path):
    found, tool = stage("sanitize"), script(tmp_path / "compute-sanitizer", f"echo '{said}'")
    assert sanitize.sees(found, tool, "memcheck", tmp_path / "planted") is sees
    assert [part["status"] for part in found.parts] == ([] if sees else ["refused"])


def test_an_error_under_a_tool_fails_the_stage(stage, tmp_path):
    found, tool = stage("sanitize"), script(tmp_path / "compute-sanitizer", f"echo \"$@\"; echo '{DIRTY}'; exit 99")
    sanitize.sanitized(found, tool, "racecheck", sanitize.Subject("native", "cluster:4"))
    (part,) = found.parts
    assert (part["status"], part["code"], part["summary"]) == ("failed", 99, DIRTY.removeprefix("========= "))
    log = (tmp_path / "log.txt").read_text()
    assert "--tool racecheck" in log and f"{PLAN}=cluster:4" in log and "--backend native" in log


@pytest.mark.filterwarnings("ignore:normalize_weight over", "ignore:alpha, sigma")
@pytest.mark.parametrize("name", small_cases.CASES)
def test_small_cases(name):
    assert small_cases.verdict(name, "native", "cpu") == "ok"


@pytest.mark.filterwarnings("ignore:normalize_weight over")
def test_a_wrong_result_is_noticed(monkeypatch):
    right = fdk.fused_fdiv_loss

    def off(*tensors, **options):
        loss, stats = right(*tensors, **options)
        return loss * 1.02, stats

    def impossible(*_, **__):
        raise RuntimeError("no allowed schedule can hold this sample on this device")

    assert small_cases.verdict("guided", "reference", "cpu") == "ok"
    monkeypatch.setattr(fdk, "fused_fdiv_loss", off)
    assert small_cases.verdict("CIFAR", "reference", "cpu").startswith("wrong: gradient")
    monkeypatch.setattr(fdk, "fused_fdiv_loss", impossible)
    assert small_cases.verdict("CIFAR", "reference", "cpu").startswith("wrong: RuntimeError")
    monkeypatch.setenv(PLAN, "cluster:1")
    assert small_cases.verdict("CIFAR", "reference", "cpu").startswith("not possible: RuntimeError")


NCU = """==PROF== Connected to process 1
elements: 1000
==PROF== Disconnected
"ID","Process ID","Kernel Name","gpu__time_duration.sum","dram__bytes_read.sum","dram__bytes_write.sum"
"","","","ns","byte","byte"
"0","1","fdiv_fwd_kernel","5,120","6,000","2,016"
"""


def test_what_ncu_measured(stage, tmp_path):
    found, tool = stage("profile"), script(tmp_path / "ncu", f"cat <<'END'\n{NCU}END")
    assert profiling.profiled(found, tool, "each kernel", profiling.Subject("native", "CIFAR"))
    (row,) = found.parts[0]["kernels"]
    assert row == {
        "kernel": "fdiv_fwd_kernel", "nanoseconds": 5120.0, "dram_bytes_read": 6000.0, "dram_bytes_written": 2016.0,
        "dram_bytes_an_element": 8.016,
    }  # fmt: skip


def test_an_ncu_that_refuses_is_asked_once_a_backend(stage, tmp_path, monkeypatch):
    refusal = "==ERROR== ERR_NVGPUCTRPERM - The user does not have permission to access NVIDIA GPU Performance Counters"
    monkeypatch.setattr(children, "tool", lambda _: script(tmp_path / "ncu", f"echo '{refusal}'; exit 1"))
    monkeypatch.setattr(profiling, "traced", lambda *_: True)
    found = stage("profile", device="cuda")
    profiling.run(found)
    assert [part["status"] for part in found.parts] == ["refused"] * 2 * len(profiling.NCU)
    assert all("ERR_NVGPUCTRPERM" in part["text"] for part in found.parts) and found.finish()["status"] == "refused"


def benched(found, report, monkeypatch):
    """Run the stage with a benchmark that writes this report and has exit code 0."""

    def benchmarks(name, *arguments, **options):
        Path(arguments[arguments.index("--json") + 1]).write_text(json.dumps(report))
        return Done(0, 1.0, "")

    monkeypatch.setattr(found, "python", benchmarks)
    bench.run_alone("own")(found)
    assert json.loads((found.options.out / found.details["reports"]["own"]).read_text()) == report


def skipped(what, kind, ours=True):
    return {"what": what, "why": f"because of {what}", "kind": kind, "ours": ours}


def test_what_the_benchmark_skipped(stage, monkeypatch):
    row = {
        "op": "fused_fdiv_loss", "shape_name": "sdxl", "dtype": "bf16", "formula": "fastgen", "variant": "native",
        "ours": True, "time_us": 8.0, "percent_of_ceiling": 81.5, "call_us": 25.4,
    }  # fmt: skip
    weight = {**row, "op": "fdiv_weight", "formula": "weight", "percent_of_ceiling": None, "call_us": None}
    same = {key: row[key] for key in ("op", "shape_name", "dtype", "formula")} | {"ours": "native"}
    compared = [{**same, "other": "fastgen eager", "ratio": 7.0}, {**same, "other": "broken", "ratio": None}]
    compared.append({**compared[0], "op": "fdiv_weight", "formula": "weight"})
    parts = [
        skipped("triton", "unavailable"), skipped("native", "failed"), skipped("compile", "failed", ours=False),
        skipped("pixels", "no time"), skipped("wan", "stopped"),
    ]  # fmt: skip
    found = stage("bench")
    benched(found, {"rows": [row, weight], "comparisons": compared, "skipped": parts}, monkeypatch)
    assert [(part["name"], part["status"]) for part in found.parts] == [
        ("own", "timed out"), ("own: triton", "refused"), ("own: native", "failed"), ("own: compile", "refused"),
        ("own: wan", "refused"),
    ]  # fmt: skip
    assert found.parts[0]["text"] == "no time for pixels" and found.parts[2]["text"] == "because of native"
    assert found.summary == [
        "own: fastgen sdxl bf16 native: 8 µs, 82 % of the ceiling, 25 µs a call on the host; "
        "7.00 × fastgen eager, broken not compared",
        "own: weight sdxl bf16 native: 8 µs; 7.00 × fastgen eager",
    ]


def test_a_peer_that_fails_is_no_fault(stage, monkeypatch):
    found = stage("bench")
    benched(found, {"rows": [], "comparisons": [], "skipped": [skipped("compile", "failed", ours=False)]}, monkeypatch)
    assert found.finish()["status"] == "refused"


def test_a_failure_a_hang_and_what_comes_after_it(write_tests, stage, monkeypatch):
    files = {
        "broken": "def test_fine():\n    pass\n\ndef test_broken():\n    assert 1 == 2, 'one is not two'\n",
        "hangs": "import time\n\ndef test_hangs():\n    time.sleep(300)\n",
        "later": "def test_later():\n    pass\n",
    }
    monkeypatch.setattr(os, "cpu_count", lambda: 1)  # one file at a time
    # Enough time for the first file, some for the second, none for the third.
    monkeypatch.setattr(Stage, "left", lambda self: (100.0, 12.0, 0.0)[len(self.parts)])
    found = stage(tests=[write_tests(**files)])
    suite.run(found)
    broken, hangs, later = found.parts
    assert (broken["status"], broken["passed"], broken["failed"]) == ("failed", 1, 1)
    assert hangs["status"] == "timed out" and "test_hangs" in hangs["text"].splitlines()[-1]
    assert later["status"] == "not run" and later["tests"] == 1
    (failure,) = found.details["failures"]
    assert "test_broken" in failure["test"] and "one is not two" in failure["text"]
    on_disk = json.loads((found.options.out / "test.json").read_text())
    assert on_disk["failures"] == [failure] and on_disk["totals"]["none"]["not run"] == 1
    assert not on_disk["finished"] and found.finish()["finished"] and found.status == "failed"
