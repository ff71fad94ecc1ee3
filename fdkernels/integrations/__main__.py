"""`python -m fdkernels.integrations fastgen train.py ...` runs a trainer's script with an adapter applied.

A module: `python -m fdkernels.integrations cosmos -m package.module ...`. Several adapters:
`model_optimizer,model_optimizer_step`. Several processes: `torchrun -m fdkernels.integrations ...`.
"""

from __future__ import annotations

import runpy
import sys
from pathlib import Path

from fdkernels import integrations


def main() -> None:
    known = integrations.adapters()
    is_module = sys.argv[2:3] == ["-m"]
    if len(sys.argv) < 3 + is_module:
        usage = "usage: python -m fdkernels.integrations ADAPTER[,ADAPTER] (SCRIPT | -m MODULE) [...]"
        sys.exit(f"{usage}; adapters: {', '.join(known)}")
    names, sys.argv = sys.argv[1].split(","), sys.argv[2 + is_module :]
    unknown = [name for name in names if name not in known]
    if unknown:
        sys.exit(f"unknown adapter {unknown[0]!r}: expected one of {', '.join(known)}")
    if not is_module:
        sys.path.insert(0, str(Path(sys.argv[0]).resolve().parent))  # as Python does for a script
    for name in names:
        try:
            replaced = known[name].apply()
        except (ImportError, RuntimeError) as error:
            sys.exit(f"{name}: {error}")
        print(f"fdkernels replaces {', '.join(replaced)}", file=sys.stderr)
    if is_module:
        runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
    else:
        runpy.run_path(sys.argv[0], run_name="__main__")


if __name__ == "__main__":
    main()
