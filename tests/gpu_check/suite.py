"""Stage test: the contract suite and the GPU tests, each file and backend in a process of its own.

Cold compilations make Triton's tests the slowest, so they come last.
"""

from __future__ import annotations

import functools
import importlib.util
import json
import os
import tempfile
from collections import Counter, defaultdict
from pathlib import Path
from typing import Any

from tests.gpu_check.children import ROOT, Done
from tests.gpu_check.stage import SHORTEST, Stage

PASSES = ("native", "none", "reference", "triton")
FILE_SECONDS = 300  # of one file and backend; beyond it something hangs
TEST_SECONDS = 100  # of one test, after which the log gets every thread's stack
MOST_FAILURES = 100  # whose texts are kept
WORST = ("failed", "skipped", "passed", "unfinished")


def run(stage: Stage) -> None:
    with tempfile.TemporaryDirectory() as folder:
        collected = collect(stage, Path(folder))
        cores = os.cpu_count() or 1
        for backend in PASSES:
            files = [(file, tests) for file, of, tests in collected if of == backend]
            # A file's tests are compiled by several processes where they are Triton's; elsewhere starting them costs
            # more than they save.
            workers = 4 if backend == "triton" and cores >= 4 and importlib.util.find_spec("xdist") else 0
            width = max(1, cores // (workers or 2))
            threads = max(1, cores // width)
            jobs = [
                functools.partial(run_file, stage, file, backend, tests, workers, threads, Path(folder))
                for file, tests in files
            ]
            stage.together(jobs, width)
    finish(stage)


def pytest(stage: Stage, name: str, record: Path, *arguments: str, **options: Any) -> Done:
    return stage.python(
        name, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "tests.gpu_check.record",
        "--device", stage.options.device, "--record", str(record),
        "-o", f"faulthandler_timeout={TEST_SECONDS}", *arguments, **options,
    )  # fmt: skip


def collect(stage: Stage, folder: Path) -> list[tuple[str, str, int]]:
    """(file, backend, number of tests) of everything asked for."""
    record = folder / "collected"
    done = pytest(stage, "collect", record, "--collect-only", *stage.options.tests, limit=120)
    if done.status != "ok":
        stage.add("collect", done.status, done.seconds, done.tail())
    found = [(name(line["file"]), line["backend"], line["tests"]) for line in lines(record)]
    for file, backend, tests in found:
        if backend not in PASSES:
            text = f"{tests} tests of {backend!r}, which is in no pass"
            stage.add(f"{file}, {backend}", "failed", text=text, file=file, backend=backend, tests=tests)
    return found


def name(path: str) -> str:
    return str(Path(path).relative_to(ROOT)) if Path(path).is_relative_to(ROOT) else path


def lines(record: Path) -> list[dict[str, Any]]:
    """What a run has recorded, but for a line that its end has cut off."""
    found = record.read_text().splitlines() if record.exists() else []
    return [json.loads(line) for line in found if line.endswith("}")]


def run_file(stage: Stage, file: str, backend: str, tests: int, workers: int, threads: int, folder: Path) -> None:
    title = f"{file}, {backend}"
    of: dict[str, Any] = {"file": file, "backend": backend, "tests": tests}
    if stage.left() < SHORTEST:
        stage.add(title, "not run", **of)
        return
    record = folder / title.replace("/", "-")
    done = pytest(
        stage, title, record, "--only", backend, *(("-n", str(workers)) if workers else ()), file,
        limit=FILE_SECONDS, environment={"OMP_NUM_THREADS": str(threads)},
    )  # fmt: skip
    outcomes = outcomes_of(lines(record))
    counts = Counter(outcome["outcome"] for outcome in outcomes.values())
    unfinished = [test for test, outcome in outcomes.items() if outcome["outcome"] == "unfinished"]
    status = "failed" if counts["failed"] else done.status
    text = "" if status == "ok" else done.tail()
    if unfinished and status != "ok":
        text += f"\nwas in {', '.join(unfinished[:4])}"
    figures = {outcome: counts[outcome] for outcome in ("passed", "failed", "skipped")}
    stage.add(title, status, done.seconds, text, **of, **figures, outcomes=outcomes)


def outcomes_of(found: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Each test's worst line: a test may pass and then fail as it is torn down."""
    worst: dict[str, dict[str, Any]] = {}
    for line in found:
        before = worst.get(line["test"])
        if before is None or WORST.index(line["outcome"]) < WORST.index(before["outcome"]):
            worst[line["test"]] = line
    return worst


def finish(stage: Stage) -> None:
    """Totals by backend, the table of contracts, and the failures' texts."""
    totals: dict[str, Counter[str]] = defaultdict(Counter)
    contracts: dict[str, dict[str, Counter[str]]] = defaultdict(lambda: defaultdict(Counter))
    failures = []
    for part in stage.parts:
        for test, line in part.pop("outcomes", {}).items():
            totals[part["backend"]][line["outcome"]] += 1
            if line.get("contract"):
                contracts[line["contract"]][part["backend"]][line["outcome"]] += 1
            if line["outcome"] == "failed":
                failures.append({"test": test, "text": line["text"]})
        if part["status"] == "not run":
            totals[part["backend"]]["not run"] += part["tests"]
    if not any(counts["passed"] for counts in totals.values()):
        stage.add("any test at all", "failed", text="no test passed")
    stage.details |= {"totals": totals, "contracts": contracts, "failures": failures[:MOST_FAILURES]}
    for backend, counts in totals.items():
        stage.summary.append(f"{backend:10} " + ", ".join(f"{n} {outcome}" for outcome, n in counts.items()))
    stage.summary += [f"failed: {failure['test']}: {failure['text'][:200]}" for failure in failures[:20]]
