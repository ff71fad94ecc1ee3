"""python -m tests.software_device.sanitized: the small cases of tests/gpu_check under address and undefined-behaviour
sanitizers. --planted: of sources with a fault, to see that they notice.

A process of its own: the sanitizers' runtime has to be loaded before anything else.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import warnings
from pathlib import Path

from tests.software_device import build
from tests.software_device.mutations import MUTATIONS, mutated

LOADED = "FDKERNELS_SANITIZED"


def environment() -> dict[str, str]:
    found = subprocess.run(
        [build.compiler(), "-print-file-name=libasan.so"], capture_output=True, text=True, check=True
    ).stdout.strip()
    # Python itself frees little at its end.
    return {**os.environ, "LD_PRELOAD": str(Path(found).resolve()), "ASAN_OPTIONS": "detect_leaks=0", LOADED: "1"}


def main() -> int:
    if LOADED not in os.environ:
        planted = next(m for m in MUTATIONS if m.what == "an element beyond the sample")
        with tempfile.TemporaryDirectory() as folder:
            csrc = mutated(planted, Path(folder)) if "--planted" in sys.argv else build.ROOT / "csrc"
            library = build.library(90, csrc, sanitized=True)  # by a compiler that is not sanitized itself
        command = [sys.executable, "-m", "tests.software_device.sanitized", str(library)]
        return subprocess.run(command, env=environment(), check=False).returncode
    from tests.gpu_check import small_cases
    from tests.gpu_check.stage import PLAN
    from tests.software_device import device

    warnings.filterwarnings("ignore", message="normalize_weight over")
    software = device.Software(Path(sys.argv[1]), "software_sm_90")
    wrong = 0
    with software.serves():
        for number, (plan, limits) in enumerate((
            ("cluster:1", device.SMALL), ("cluster:4", device.SMALL), ("grid", device.SMALL), ("grid:2", device.SMALL),
            ("cluster:16", device.TIGHT_16),
        )):  # fmt: skip
            os.environ[PLAN] = plan
            software.use(limits)
            software.schedule(device.SCHEDULERS[number], number)
            for name in small_cases.CASES:
                found = small_cases.verdict(name, "native", "cpu")
                wrong += found.startswith("wrong")
                print(f"{plan}, {name}: {found}", flush=True)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
