"""Stage test: the contract suite and the GPU tests, each file and backend in its own process.

A file runs on every backend before the next file starts, so that all backends are equally far when time runs out.
"""

from __future__ import annotations

import functools
import json
import os
import shutil
from collections import Counter, defaultdict
from pathlib import Path
from typing import Any

from tests import contracts
from tools.gpu_check.children import ROOT, Done
from tools.gpu_check.stage import Stage

# In this order for each file: cold compilations make Triton the slowest, so it starts first.
BACKENDS = ("triton", "native", "none", "reference")
FILE_SECONDS = 300  # for one file and backend; a longer run hangs
TEST_SECONDS = 100  # for one test; after that the log gets every thread's stack
MOST_FAILURES = 100  # whose texts are kept
WORST = ("failed", "skipped", "passed", "unfinished")


def run(stage: Stage) -> None:
    records = stage.options.out / "records"
    shutil.rmtree(records, ignore_errors=True)
    records.mkdir()
    cores = os.cpu_count() or 1
    width = max(1, cores // 2)
    threads = max(1, cores // width)
    totals = Totals()
    found = interleaved(collect(stage, records))
    stage.together(
        (functools.partial(run_file, stage, *each, threads, records / str(i), totals) for i, each in enumerate(found)),
        width,
    )
    if not any(counts["passed"] for counts in totals.by_backend.values()):
        stage.add("any test at all", "failed", text="no test passed")
    for backend, counts in totals.by_backend.items():
        stage.summary.append(f"{backend:10} " + ", ".join(f"{n} {outcome}" for outcome, n in counts.items()))
    stage.summary += [f"failed: {failure['test']}: {failure['text'][:200]}" for failure in totals.failures[:20]]


class Totals:
    """Totals of all files so far: outcomes by backend, the table of contracts, the failures' texts."""

    def __init__(self) -> None:
        self.by_backend: dict[str, Counter[str]] = defaultdict(Counter)
        self.contracts: dict[str, dict[str, Counter[str]]] = defaultdict(lambda: defaultdict(Counter))
        self.failures: list[dict[str, str]] = []

    def add(self, stage: Stage, backend: str, outcomes: dict[str, dict[str, Any]], not_run: int) -> None:
        with stage.lock:
            for test, line in outcomes.items():
                self.by_backend[backend][line["outcome"]] += 1
                if line.get("contract"):
                    self.contracts[line["contract"]][backend][line["outcome"]] += 1
                if line["outcome"] == "failed":
                    self.failures.append({"test": test, "text": line["text"]})
            if not_run:
                self.by_backend[backend]["not run"] += not_run
            stage.details |= {
                "totals": self.by_backend, "contracts": self.contracts, "failures": self.failures[:MOST_FAILURES],
            }  # fmt: skip
            stage.write(finished=False)  # a part that is not run was recorded before it is counted here


def interleaved(found: list[tuple[str, str, int]]) -> list[tuple[str, str, int]]:
    """Sorted by file in their order, within a file by backend."""
    files = list(dict.fromkeys(file for file, _, _ in found))
    known = [each for each in found if each[1] in BACKENDS]
    return sorted(known, key=lambda each: (files.index(each[0]), BACKENDS.index(each[1])))


def pytest(stage: Stage, name: str, record: Path, *arguments: str, **options: Any) -> Done:
    return stage.python(
        name, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "tools.gpu_check.record",
        "--device", stage.options.device, "--record", str(record),
        "-o", f"faulthandler_timeout={TEST_SECONDS}", *arguments, **options,
    )  # fmt: skip


def collect(stage: Stage, folder: Path) -> list[tuple[str, str, int]]:
    """(file, backend, number of tests) of all requested tests."""
    record = folder / "collected"
    done = pytest(stage, "collect", record, "--collect-only", *stage.options.tests, limit=120)
    if done.status != "ok":
        stage.add("collect", done.status, done.seconds, done.tail())
    # The software device's column needs only a CPU and has its own run; this stage leaves it out.
    found = [
        (name(line["file"]), line["backend"], line["tests"])
        for line in lines(record)
        if contracts.column(line["backend"]) != contracts.SOFTWARE
    ]
    for file, backend, tests in found:
        if backend not in BACKENDS:
            text = f"{tests} tests of {backend!r}, which is none of them"
            stage.add(f"{file}, {backend}", "failed", text=text, file=file, backend=backend, tests=tests)
    return found


def name(path: str) -> str:
    return str(Path(path).relative_to(ROOT)) if Path(path).is_relative_to(ROOT) else path


def lines(record: Path) -> list[dict[str, Any]]:
    """The lines that a run has recorded, without a line that was cut off."""
    found = record.read_text().splitlines() if record.exists() else []
    return [json.loads(line) for line in found if line.endswith("}")]


def run_file(stage: Stage, file: str, backend: str, tests: int, threads: int, record: Path, totals: Totals) -> None:
    title = f"{file}, {backend}"
    of: dict[str, Any] = {"file": file, "backend": backend, "tests": tests}
    if not stage.has_time(title, **of):
        totals.add(stage, backend, {}, tests)
        return
    done = pytest(
        stage, title, record, "--only", backend, file, limit=FILE_SECONDS,
        environment={"OMP_NUM_THREADS": str(threads)},
    )  # fmt: skip
    outcomes = outcomes_of(lines(record))
    counts = Counter(outcome["outcome"] for outcome in outcomes.values())
    unfinished = [test for test, outcome in outcomes.items() if outcome["outcome"] == "unfinished"]
    status = "failed" if counts["failed"] else done.status
    text = "" if status == "ok" else done.tail()
    if unfinished and status != "ok":
        text += f"\nwas in {', '.join(unfinished[:4])}"
    totals.add(stage, backend, outcomes, max(0, tests - len(outcomes)))
    figures = {outcome: counts[outcome] for outcome in ("passed", "failed", "skipped")}
    stage.add(title, status, done.seconds, text, **of, **figures)


def outcomes_of(found: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Each test's worst line: a test may pass and then fail in its teardown."""
    worst: dict[str, dict[str, Any]] = {}
    for line in found:
        before = worst.get(line["test"])
        if before is None or WORST.index(line["outcome"]) < WORST.index(before["outcome"]):
            worst[line["test"]] = line
    return worst
