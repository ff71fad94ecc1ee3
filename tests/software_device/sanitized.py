"""python -m tests.software_device.sanitized: the small cases of tools/gpu_check on the software device, compiled with
address and undefined-behavior sanitizers. The first fault ends the run with the sanitizer's report.

Each architecture has its own process, since the sanitizers' runtime has to be loaded before anything else. libstdc++ is
preloaded too: the runtime looks for __cxa_throw when it starts, and Python does not load libstdc++.
"""

from __future__ import annotations

import argparse
import ctypes
import functools
import json
import os
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Iterable
from pathlib import Path

from tests.software_device import build, device
from tests.software_device.settings import PLANS, WAYS, Setting
from tools.gpu_check import small_cases
from tools.gpu_check.stage import UNAVAILABLE

FEW = build.HERE / "few.cu", *build.KERNELS[2:]
MISSING = "no GCC that has libasan.so, libubsan.so and libstdc++.so to preload"
# These cases take a minute each in these plans, with 16,000 blocks for what other plans do with few.
MANY, LARGE = ("many samples", "count, many samples"), ("cluster:8", "cluster:16")
INSIDE = "FDKERNELS_SANITIZED"  # in the environment of a process that has the runtime
# No leak detection: Python itself never frees some of its memory.
OPTIONS = {"ASAN_OPTIONS": "detect_leaks=0", "UBSAN_OPTIONS": "print_stacktrace=1:halt_on_error=1"}


@functools.cache
def runtime() -> str | None:
    """The libraries to preload; None if no compiler has them."""
    found, compiler = [], build.compiler()
    if compiler is None:
        return None
    for name in ("libasan.so", "libubsan.so", "libstdc++.so"):
        command = [compiler, f"-print-file-name={name}"]
        path = Path(subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip())
        if not path.is_absolute() or not path.read_bytes().startswith(b"\x7fELF"):
            return None
        found.append(str(path.resolve()))
    return ":".join(found)


def library(architecture: int, few: bool) -> Path:
    return build.library(architecture, kernels=FEW if few else build.KERNELS, sanitized=True)


def planted_library(source: str) -> Path:
    return build.library(90, kernels=[build.HERE / source], with_ops=False, sanitized=True)


def child(arguments: Iterable[str], capture: bool = False) -> subprocess.CompletedProcess[str]:
    """Run this module again with the runtime. Build the libraries before: the runtime would slow down the compiler."""
    return subprocess.run(
        [sys.executable, "-m", "tests.software_device.sanitized", *arguments],
        env={**os.environ, **OPTIONS, "LD_PRELOAD": runtime() or "", INSIDE: "1"},
        cwd=build.ROOT, text=True, capture_output=capture, check=False,
    )  # fmt: skip


def sanitized(library: Path, namespace: str = "") -> device.Software:
    """Load the library, and let address sanitizer also report which thread has a fault."""
    software = device.Software(library, namespace)
    where = ctypes.cast(software.library.software_say_where, ctypes.c_void_p)
    ctypes.CDLL(None).__sanitizer_set_death_callback(where)
    return software


def run_small_cases(architecture: int, options: argparse.Namespace) -> int:
    """Exit code 1 where a result is wrong."""
    warnings.filterwarnings("ignore", message="normalize_weight over|alpha, sigma")  # few samples, any levels
    software = sanitized(library(architecture, options.few), f"software_sm_{architecture}")
    wrong = 0
    for number, plan in enumerate(options.plans):
        setting = Setting(architecture, plan, device.SCHEDULERS[number % len(device.SCHEDULERS)], number)
        if f"sm_{architecture} {plan}" not in WAYS:
            continue
        for name in options.cases or [n for n in small_cases.CASES if n not in MANY or plan not in LARGE]:
            print(f"{setting}, {name}: ", end="", flush=True)  # a report has to follow its case
            software.begin()
            with setting.in_force(software):
                verdict = small_cases.verdict(name, "native", "cpu")
            try:
                setting.check(software)
            except AssertionError as error:
                verdict = f"wrong: {error}"
            wrong += verdict.startswith("wrong")
            print(verdict, flush=True)
    return 1 if wrong else 0


def run_planted(source: str, names: Iterable[str]) -> dict[str, list[tuple[int, str]]]:
    """For every planted fault, without it and with it: exit code and output of a process that runs the kernel."""
    software = sanitized(planted_library(source))
    software.library.software_planted.restype = ctypes.c_char_p
    software.use(device.SMALL)

    def outcome(name: str, broken: bool) -> tuple[int, str]:
        with tempfile.TemporaryFile() as file:
            process = os.fork()
            if process == 0:
                os.dup2(file.fileno(), 2)
                found = software.library.software_planted(name.encode(), ctypes.c_bool(broken))
                os.write(2, found or b"")
                os._exit(0)
            code = os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])
            file.seek(0)
            return code, file.read().decode()

    return {name: [outcome(name, broken) for broken in (False, True)] for name in names}


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.software_device.sanitized", description=__doc__)
    parser.add_argument(
        "--architectures", nargs="+", type=int, choices=build.ARCHITECTURES, default=build.ARCHITECTURES
    )
    parser.add_argument("--plans", nargs="+", default=PLANS, metavar="PLAN", help=", ".join(PLANS))
    parser.add_argument("--cases", nargs="+", metavar="NAME", help="of tools.gpu_check.small_cases")
    parser.add_argument("--few", action="store_true", help="kernels of float32 alone")
    parser.add_argument("--planted", nargs="+", metavar=("FILE", "FAULT"), help="planted faults instead; prints JSON")
    options = parser.parse_args()
    if runtime() is None:
        print(MISSING, file=sys.stderr)
        return UNAVAILABLE
    if INSIDE in os.environ:
        del os.environ["LD_PRELOAD"]  # its children must not have the runtime
        if options.planted:
            print(json.dumps(run_planted(options.planted[0], options.planted[1:])))
            return 0
        return run_small_cases(options.architectures[0], options)
    if options.planted:
        planted_library(options.planted[0])
        return child(sys.argv[1:]).returncode
    codes = []
    for architecture in options.architectures:
        library(architecture, options.few)
        codes.append(child([*sys.argv[1:], "--architectures", str(architecture)]).returncode)
    return max(map(abs, codes))


if __name__ == "__main__":
    sys.exit(main())
