"""python -m tools.check_versions [2.10.0 ...]: what `make check-versions` runs; ends with a table in Markdown.

For each version it makes an environment (build/versions/<name>/environment; an existing one is reused) and builds the
wheel for its Python, with the headers of the torch that runs this tool. It installs the wheel beside the environment's
own torch and runs a core part of the suite, in a folder without the package's sources, so that the tests import the
installed package. Output goes to build/versions/<name>/log.txt. CUDA is compiled if FDKERNELS_CUDA_ARCHS names
architectures.

torch is the CPU build if an index has it. Otherwise it is the CUDA build without its CUDA libraries: stand_ins.py
compiles empty stand-ins for them (with gcc, nm, readelf and ldd), and torch's CPU code runs unchanged.

The core part takes a few minutes on two cores and covers what depends on torch, Python, NumPy or Triton. On native and
reference: results, state, autograd, torch.compile, export, raw ops, errors. In Triton's interpreter: schedules,
weights, state, raw ops. Triton compiles every launch of `make check-kernels` for sm_90.

Exit code 1: a wheel did not build or install, or a test failed.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import sys
from functools import partial
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from typing import TextIO

from tools import wheel
from tools.check_versions import environments
from tools.check_versions.environments import Failed, Version, run

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "build/versions"
TORCH = os.path.dirname(find_spec("torch").origin)
# Each torch with its own Triton and Python; .venv has Python 3.11, torch 2.13 and Triton 3.8.
VERSIONS = (
    Version("2.10.0", "3.10", "3.6.0"),
    Version("2.11.0", "3.11", "3.6.0"),
    Version("2.13.0", "3.12", "3.7.1"),
    Version("2.14.1", "3.13", "3.8.0"),
)
CORE = (
    "op_raw_operands", "op_autograd", "op_compile", "op_bad_input", "state", "autograd", "compiled_floats",
    "checkpoint", "export", "tracing", "exactness", "weights", "count", "stats", "copies", "bad_input", "backends",
)  # fmt: skip
OF_TRITON = ("op_raw_operands", "state", "checkpoint", "weights", "triton_schedules")
WHERE = "import fdkernels; print('from', fdkernels.__file__)"
TOTALS = re.compile(r"^=* ?((?:\d+ \w+,? )+in [\d.]+s)", re.MULTILINE)  # pytest's last line
COUNTS = re.compile(r"\d+ (?:passed|skipped|xfailed)")


def install(python: str, folder: Path, log: TextIO) -> None:
    variables = {"FDKERNELS_TORCH_DIR": TORCH, "FDKERNELS_CUDA_ARCHS": os.environ.get("FDKERNELS_CUDA_ARCHS", "none")}
    shutil.rmtree(folder / "dist", ignore_errors=True)
    built = wheel.build(folder / "dist", python, run=partial(run, log), **variables)
    # --no-deps: for a CUDA build of torch, pip would install the CUDA libraries.
    pip = (python, "-m", "pip", "--disable-pip-version-check", "install", "--force-reinstall", "--no-deps")
    run(log, *pip, str(built), cwd=folder)


def test(python: str, folder: Path, log: TextIO, workers: str) -> str:
    """Run the core tests against the installed package; return pytest's totals."""
    checkout = folder / "checkout"
    shutil.rmtree(checkout, ignore_errors=True)
    for part in ("tests", "tools", "benchmarks/results"):
        shutil.copytree(ROOT / part, checkout / part, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", checkout)
    found = run(log, python, "-c", WHERE, cwd=checkout)
    if f"from {folder / 'environment'}/" not in found:
        raise Failed(f"not the installed package: {found}")
    run(log, python, "-m", "fdkernels", cwd=checkout)
    compiled = run(log, python, "-m", "tools.machine_code", "sm_90", "--compile", cwd=checkout)
    totals = []
    for names, backends in ((CORE, ("native", "reference")), (OF_TRITON, ("triton",))):
        files = [f"tests/fdkernels/test_{name}.py" for name in names]
        chosen = [f"--backend={backend}" for backend in backends]
        output = run(log, python, "-m", "pytest", "-q", "--tb=short", "-n", workers, *chosen, *files, cwd=checkout)
        counts = COUNTS.findall(TOTALS.findall(output)[-1])
        totals.append(f"{' and '.join(backends)}: {', '.join(counts)}")
    return " · ".join([*totals, compiled.strip().splitlines()[-1]])


def check(version: Version, workers: str) -> tuple[str, str]:
    """Returns ("ok" or "failed", text for the table's last column)."""
    folder = FOLDER / version.name
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "log.txt").unlink(missing_ok=True)
    with (folder / "log.txt").open("a") as log:
        try:
            python = environments.make(version, folder / "environment", log)
            install(python, folder, log)
            return "ok", test(python, folder, log, workers)
        except Failed as failure:
            totals = TOTALS.findall(str(failure))
            return "failed", f"{totals[-1] if totals else failure.last_words()}; see {folder / 'log.txt'}"


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tools.check_versions", description=__doc__.split("\n")[0])
    parser.add_argument("torch", nargs="*", help=f"of {', '.join(v.torch for v in VERSIONS)}; default: all")
    parser.add_argument("--workers", default="2", help="of pytest (%(default)s)")
    given = parser.parse_args()
    unknown = set(given.torch) - {version.torch for version in VERSIONS}
    if unknown:
        parser.error(f"torch: expected versions of the table, got {', '.join(sorted(unknown))}")
    rows = []
    for version in VERSIONS:
        if not given.torch or version.torch in given.torch:
            print(f"{version.name} ...", flush=True)
            rows.append((version, *check(version, given.workers)))
            print(f"  {rows[-1][1]}: {rows[-1][2]}", flush=True)
    print(f"\nWheels for {wheel.PLATFORM}, built with torch {metadata.version('torch')}:\n")
    print("| torch | Python | Triton | | core tests |\n|---|---|---|---|---|")
    for version, status, said in rows:
        print(f"| {version.torch} | {version.python} | {version.triton} | {status} | {said} |")
    return 1 if any(status != "ok" for _, status, _ in rows) else 0


if __name__ == "__main__":
    sys.exit(main())
