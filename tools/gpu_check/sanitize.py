"""Stage sanitize: tools.gpu_check.small_cases by itself, then under each tool of compute-sanitizer.

A tool first has to see a fault that is planted for it (planted.cu). If it does not, its silence about our kernels means
nothing, and the tool is recorded as refused. A missing compute-sanitizer is recorded as refused too.
"""

from __future__ import annotations

import functools
import os
import re
import tempfile
from dataclasses import dataclass
from pathlib import Path

from tools.gpu_check import children
from tools.gpu_check.children import ROOT, Done
from tools.gpu_check.stage import PLAN, UNAVAILABLE, Stage

TOOLS = {
    "memcheck": ("--report-api-errors", "no"),  # PyTorch handles its own API errors; our launches are checked
    "racecheck": (),
    "initcheck": (),
    "synccheck": (),
}
ERROR_CODE = 99
RUN_SECONDS = 240
# "": the planned schedule; the others force one.
NATIVE_PLANS = ("", "cluster:1", "cluster:4", "cluster:16", "grid:1", "grid:2")
CPU_CASES = ("CIFAR", "guided", "count", "bad samples")
# Without PyTorch's pool every tensor is its own allocation, whose bounds a tool sees.
ALONE = {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}
SUMMARY = re.compile(r"(?:ERROR SUMMARY: (\d+) error|RACECHECK SUMMARY: \d+ hazards? displayed \((\d+) error).*")


@dataclass(frozen=True)
class Subject:
    backend: str
    plan: str = ""

    def __str__(self) -> str:
        return f"{self.backend} {self.plan}".strip()


def subjects(stage: Stage) -> list[Subject]:
    plans = NATIVE_PLANS if stage.is_gpu else ("",)
    return [*(Subject("native", plan) for plan in plans), Subject("triton")]


def run(stage: Stage) -> None:
    width = max(1, (os.cpu_count() or 1) // 4)
    usable: list[Subject] = []
    stage.together((functools.partial(plainly, stage, subject, usable) for subject in subjects(stage)), width)
    tool = children.tool("compute-sanitizer")
    if tool is None:
        stage.add("compute-sanitizer", "refused", text="there is none on PATH, nor with CUDA")
        return
    with tempfile.TemporaryDirectory() as folder:
        planted = compile_planted(stage, Path(folder) / "planted")
        seeing = [name for name in TOOLS if sees(stage, tool, name, planted)]
    jobs = [functools.partial(sanitized, stage, tool, name, subject) for name in seeing for subject in usable]
    stage.together(jobs, width)
    clean = [part for part in stage.parts if part["status"] == "ok" and "tool" in part]
    stage.summary.append(f"{len(clean)} of {len(TOOLS) * len(subjects(stage))} runs under compute-sanitizer clean")


def cases(stage: Stage, subject: Subject) -> list[str]:
    options = ["--backend", subject.backend, "--device", stage.options.device]
    return [
        stage.options.python, "-m", "tools.gpu_check.small_cases", *options,
        *(() if stage.is_gpu else ("--cases", *CPU_CASES)),
    ]  # fmt: skip


def counted(output: str) -> dict[str, int]:
    found = re.findall(r"^case .*?: (ok|wrong|not possible)", output, re.MULTILINE)
    return {"right": found.count("ok"), "wrong": found.count("wrong"), "not possible": found.count("not possible")}


def plainly(stage: Stage, subject: Subject, usable: list[Subject]) -> None:
    """Run the cases without a tool: only results are checked."""
    if not stage.has_time(f"cases, {subject}"):
        return
    done = stage.child(f"cases, {subject}", cases(stage, subject), limit=RUN_SECONDS, environment={PLAN: subject.plan})
    status = "refused" if done.code == UNAVAILABLE else done.status
    text = "" if status == "ok" else done.tail(30)
    stage.add(f"cases, {subject}", status, done.seconds, text, **counted(done.output))
    if status == "ok":
        usable.append(subject)


def compile_planted(stage: Stage, program: Path) -> Path | None:
    source = ROOT / "tools/gpu_check/planted.cu"
    nvcc = children.tool("nvcc") or "nvcc"
    done = stage.child("compile planted.cu", [nvcc, "-arch=native", "-o", str(program), str(source)], limit=60)
    if done.status != "ok":
        stage.add("planted.cu", "refused", done.seconds, done.tail())
    return program if done.status == "ok" else None


def command(tool: str, name: str, *program: str) -> list[str]:
    return [
        tool, "--tool", name, "--error-exitcode", str(ERROR_CODE), "--target-processes", "application-only",
        "--print-limit", "20", *TOOLS[name], *program,
    ]  # fmt: skip


def errors(output: str) -> int | None:
    """Errors that the tool counted; None if it printed no summary."""
    found = SUMMARY.search(output)
    return None if found is None else int(found[1] or found[2])


def sees(stage: Stage, tool: str, name: str, planted: Path | None) -> bool:
    """Whether the tool finds the fault planted for it; True if the faults could not be compiled."""
    if planted is None:
        return True
    done = stage.child(f"{name}, planted fault", command(tool, name, str(planted), name), limit=60)
    if errors(done.output):
        return True
    said = next((line for line in done.output.splitlines() if "rror" in line), "no word of an error")
    text = f"{done.tail()}\ndid not see the fault planted for it: {said.lstrip('= ')}"
    stage.add(name, "refused", done.seconds, text)
    return False


def sanitized(stage: Stage, tool: str, name: str, subject: Subject) -> None:
    title = f"{name}, {subject}"
    if not stage.has_time(title, tool=name):
        return
    done = stage.child(
        title, command(tool, name, *cases(stage, subject)), limit=RUN_SECONDS,
        environment={PLAN: subject.plan, **ALONE},
    )  # fmt: skip
    summary = SUMMARY.search(done.output)
    status = status_of(done)
    text = "" if status == "ok" else report(done)
    stage.add(
        title, status, done.seconds, text, tool=name, code=done.code, summary=summary[0] if summary else None,
        **counted(done.output),
    )  # fmt: skip


def status_of(done: Done) -> str:
    found = errors(done.output)
    if found:
        return "failed"
    if done.stopped:
        return "timed out"
    return "refused" if found is None else done.status


def report(done: Done) -> str:
    """The tool's own lines and those of wrong cases, 40 at most, then the end of the output."""
    lines = [line for line in done.output.splitlines() if line.startswith("=========") or "wrong" in line]
    return "\n".join(lines[:40])[:4000] + f"\n{done.tail(3)}"
