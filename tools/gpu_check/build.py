"""Stage build: builds the binaries in place, and records what `python -m fdkernels` reports."""

from __future__ import annotations

from tools.gpu_check.stage import Stage


def run(stage: Stage) -> None:
    limit = stage.options.budget - 30
    built = stage.python("build_ext", "setup.py", "build_ext", "--inplace", limit=limit)
    stage.add("build_ext", built.status, built.seconds, "" if built.status == "ok" else built.tail())
    report = stage.python("python -m fdkernels", "-m", "fdkernels")
    stage.add("python -m fdkernels", report.status, report.seconds, "" if report.status == "ok" else report.tail())
    stage.details["report"] = report.output.splitlines()
    stage.summary += report.output.rstrip().splitlines()[-6:]
