"""python -m tools.machine_code [--all | TARGET ...]: a table of Triton's kernels, and one of the CUDA library's.

Triton's kernels are compiled for the targets. The built CUDA library is inspected for all its architectures, or for
those that are named. Exit code 1: a claim fails.
"""

from __future__ import annotations

import argparse
import sys
from collections import Counter

from tools.machine_code import cuda_claims
from tools.machine_code.cases import launches
from tools.machine_code.claims import expected_accesses, failures
from tools.machine_code.compiled import TARGETS, compile_for, kernel_for
from tools.machine_code.cuda_library import LIBRARY, ROOT, architectures, kernels

IN_CI = ("sm_90", "gfx942")
COLUMNS = "{:40} {:19} {:7} {:>9} {:>5} {:>6} {:>7} {:>9} {:>9} {:>7}  {}"
HEADER = (
    "case", "kernel", "target", "registers", "warps", "shared", "spilled", "128 loads", "128 stores", "atomics",
    "verdict",
)  # fmt: skip
CUDA_COLUMNS = "{:47} {:7} {:>9} {:>5} {:>6} {:>7} {:>17} {:>9} {:>28} {:>14} {:>7} {:>8} {:>7} {:>12}  {}"
CUDA_HEADER = (
    "kernel of the CUDA library", "target", "registers", "warps", "shared", "spilled", "loads", "in flight", "stores",
    "to, from chip", "cluster", "prefetch", "atomics", "instructions", "verdict",
)  # fmt: skip


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tools.machine_code", description=__doc__)
    parser.add_argument("targets", nargs="*", metavar="TARGET", help=f"of {', '.join(TARGETS)}; {', '.join(IN_CI)}")
    parser.add_argument("--all", action="store_true", help="every target")
    parser.add_argument("--only", choices=("triton", "cuda"), help="the kernels of one of them")
    parser.add_argument("--compile", action="store_true", help="only compile Triton's kernels: the claims are"
        " about the Triton of constraints.txt")  # fmt: skip
    options = parser.parse_args()
    targets = tuple(TARGETS) if options.all else tuple(options.targets) or IN_CI
    unknown = [name for name in targets if name not in TARGETS]
    if unknown:
        parser.error(f"unknown target {unknown[0]!r}; known: {', '.join(TARGETS)}")
    if options.compile:
        compiled = [kernel_for(launch, TARGETS[target]) for _, launch, *_ in launches() for target in targets]
        print(f"{len(compiled)} kernels compiled for {', '.join(targets)}")
        return 0
    failed = 0
    if options.only != "cuda":
        failed += check_triton(targets)
    if options.only != "triton":
        failed += check_library(() if options.all else tuple(options.targets))
    return 1 if failed else 0


def check_triton(targets: tuple[str, ...]) -> int:
    """Prints the table; returns how many kernels break a claim."""
    print(COLUMNS.format(*HEADER))
    failed = count = 0
    for name, launch, read, written in launches():
        for target in targets:
            compiled = compile_for(launch, TARGETS[target])
            expected = expected_accesses(launch, read, written, TARGETS[target].warp_size)
            broken = failures(compiled, expected)
            failed, count = failed + bool(broken), count + 1
            row = (
                name, compiled.kernel, target, compiled.registers, compiled.resident, compiled.shared,
                compiled.spilled, f"{compiled.wide_loads}/{expected.loads}",
                f"{compiled.wide_stores}/{expected.stores}",
                f"{compiled.integer_atomics}i {compiled.float_atomics}f", "; ".join(broken) or "ok",
            )  # fmt: skip
            print(COLUMNS.format(*row), flush=True)
    print(f"{count} kernels for {', '.join(targets)}: {count - failed} as claimed, {failed} not")
    return failed


def check_library(named: tuple[str, ...]) -> int:
    """The same for the CUDA library's kernels; one line if there is no library."""
    where = LIBRARY.relative_to(ROOT)
    if not LIBRARY.exists():
        print(f"no {where}: built without nvcc, so there are Triton's kernels alone")
        return 0
    archs = [arch for arch in architectures() if not named or f"sm_{arch}" in named]
    if not archs:
        print(f"{where} holds no machine code for {', '.join(named)}")
        return 0
    print(CUDA_COLUMNS.format(*CUDA_HEADER))
    found = kernels(LIBRARY, archs)
    failed = 0
    for k in found:
        broken = cuda_claims.failures(k)
        failed += bool(broken)
        row = (
            k.title, f"sm_{k.arch}", k.registers, k.resident, k.shared, k.spilled, _widths(k.loads), k.in_flight,
            _widths(k.stores), f"{k.kept[128]}, {k.recalled[128]}", f"{k.barriers}b {k.distributed}s", k.prefetches,
            f"{k.integer_atomics}i {k.float_atomics}f", k.instructions, "; ".join(broken) or "ok",
        )  # fmt: skip
        print(CUDA_COLUMNS.format(*row))
    broken = cuda_claims.library_failures(found)
    for failure in broken:
        print(f"{where}: {failure}")
    names = ", ".join(f"sm_{arch}" for arch in archs)
    print(f"{len(found)} kernels of {where} for {names}: {len(found) - failed} as claimed, {failed} not")
    return failed + len(broken)


def _widths(accesses: Counter[int]) -> str:
    return " ".join(f"{count}x{bits}" for bits, count in sorted(accesses.items(), reverse=True)) or "-"


if __name__ == "__main__":
    sys.exit(main())
