"""python -m tools.gpu_check --out FOLDER [--stages build,test,...]: what `make gpu-check` runs.

Exit code 1: a stage that checks correctness failed, or the build did not finish. What the machine refuses (a profiler
without permission, a missing tool) and what no time was left for is recorded and printed, but is no failure. After a
build that failed or was stopped no other stage begins, neither in this call nor in later ones with the same folder.
"""

from __future__ import annotations

import argparse
import json
import signal
import sys
import traceback
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tools.gpu_check import bench, build, children, experiments, profiling, sanitize, suite
from tools.gpu_check.stage import Options, Stage, last_line

STAGES: dict[str, Callable[[Stage], None]] = {
    "build": build.run,
    "test": suite.run,
    "sanitize": sanitize.run,
    "bench": bench.run,
    "profile": profiling.run,
}
# For the first minutes on a GPU, in a call each; they run only if --stages names them.
EXPERIMENTS: dict[str, Callable[[Stage], None]] = {
    "cases": experiments.run_cases,
    "own": bench.run_alone("own"),
    "plans": experiments.run_plans,
    "peers": bench.run_alone("peers"),
}
KNOWN = STAGES | EXPERIMENTS
FATAL = ("build", "test", "sanitize", "cases")
PRINT_SETTING = (
    "import json, sys; from benchmarks.cases.setting import setting; print(json.dumps(setting(sys.argv[1])))"
)
SHOWN = ("device", "driver", "torch", "triton", "cuda", "commit")


def stage_names(text: str) -> list[str]:
    names = text.split(",")
    unknown = [name for name in names if name not in KNOWN]
    if unknown:
        raise argparse.ArgumentTypeError(f"unknown stage {unknown[0]!r}; known: {', '.join(KNOWN)}")
    return [name for name in KNOWN if name in names]


def parse(arguments: list[str] | None) -> tuple[Options, list[str]]:
    parser = argparse.ArgumentParser(prog="python -m tools.gpu_check", description=__doc__)
    parser.add_argument("--out", type=Path, required=True, metavar="FOLDER")
    named = f"of {', '.join(STAGES)} (default: these), {', '.join(EXPERIMENTS)}"
    parser.add_argument("--stages", type=stage_names, default=list(STAGES), metavar="NAME,...", help=named)
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda", help="cpu: a rehearsal with tiny shapes")
    parser.add_argument("--budget", type=float, default=480.0, metavar="SECONDS", help="of each stage: %(default)s")
    parser.add_argument("--tests", nargs="+", default=["tests/gpu", "tests/fdkernels"], metavar="PATH")
    given = parser.parse_args(arguments)
    given.out.mkdir(parents=True, exist_ok=True)
    asked = children.run([sys.executable, "-c", PRINT_SETTING, given.device], 120, {})
    if asked.status != "ok":
        parser.error(f"{sys.executable} cannot serve --device {given.device}:\n{asked.tail()}")
    setting = json.loads(asked.output[asked.output.index("{") :])
    out = given.out.resolve()
    return Options(out, given.device, given.budget, sys.executable, tuple(given.tests), setting), given.stages


def run_stage(name: str, options: Options) -> tuple[dict[str, Any], list[str]]:
    """Returns (the stage's JSON, its lines of the summary)."""
    print(f"{name}:", flush=True)
    stage = Stage(name, options)
    stage.write(finished=False)  # replaces an earlier call's file, in case this call is killed
    try:
        KNOWN[name](stage)
    except Exception:
        stage.add("the check itself", "failed", text=traceback.format_exc())
    return stage.finish(), stage.summary


def build_failed(out: Path) -> bool:
    """Whether the build failed in this call, or in an earlier one with this folder. No record: people built by hand."""
    file = out / "build.json"
    if not file.exists():
        return False
    build = json.loads(file.read_text())
    return not build["finished"] or not any((p["name"], p["status"]) == ("build_ext", "ok") for p in build["parts"])


def main(arguments: list[str] | None = None) -> int:
    options, names = parse(arguments)
    print(", ".join(f"{key}: {options.setting.get(key)}" for key in SHOWN))
    found: list[tuple[dict[str, Any], list[str]]] = []
    skipped: list[str] = []
    for name in names:
        if name != "build" and build_failed(options.out):
            skipped.append(name)
        else:
            found.append(run_stage(name, options))
    print("\n" + ", ".join(f"{key}: {options.setting.get(key)}" for key in SHOWN))
    for result, summary in found:
        parts = Counter(part["status"] for part in result["parts"])
        counts = ", ".join(f"{n} {status}" for status, n in parts.items())
        print(f"{result['stage']:9} {result['status']:10} {result['seconds']:6.0f} s   parts: {counts}")
        for line in summary:
            print(f"          {line}")
        for part in result["parts"]:
            if part["status"] not in ("ok", "not run"):
                print(f"          {part['name']}: {part['status']}; {last_line(part.get('text', ''))}")
        not_run = [part["name"] for part in result["parts"] if part["status"] == "not run"]
        if not_run:
            print(f"          no time for {', '.join(not_run[:6])}{', ...' if len(not_run) > 6 else ''}")
    for name in skipped:
        print(f"{name:9} not run    the build failed or was ended: {options.out / 'build.json'}; again: --stages build")
    print(f"{options.out}: {', '.join(['log.txt', *(result['stage'] + '.json' for result, _ in found)])}")
    return 1 if skipped or any(r["stage"] in FATAL and r["status"] == "failed" for r, _ in found) else 0


def _stop(*_: object) -> None:
    raise SystemExit(143)


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, _stop)
    try:
        sys.exit(main())
    finally:
        children.end_all()
