"""python -m tests.check_kernels [--all | TARGET ...]: one table, exit code 1 where a claim fails."""

from __future__ import annotations

import argparse
import sys

from tests.check_kernels.cases import launches
from tests.check_kernels.claims import expected_accesses, failures
from tests.check_kernels.compiled import TARGETS, compile_for

IN_CI = ("sm_90", "gfx942")
COLUMNS = "{:40} {:19} {:7} {:>9} {:>5} {:>6} {:>7} {:>9} {:>9} {:>7}  {}"
HEADER = (
    "case", "kernel", "target", "registers", "warps", "shared", "spilled", "128 loads", "128 stores", "atomics",
    "verdict",
)  # fmt: skip


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.check_kernels", description=__doc__)
    parser.add_argument("targets", nargs="*", metavar="TARGET", help=f"of {', '.join(TARGETS)}; {', '.join(IN_CI)}")
    parser.add_argument("--all", action="store_true", help="every target")
    options = parser.parse_args()
    targets = tuple(TARGETS) if options.all else tuple(options.targets) or IN_CI
    unknown = [name for name in targets if name not in TARGETS]
    if unknown:
        parser.error(f"unknown target {unknown[0]!r}; known: {', '.join(TARGETS)}")
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
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
