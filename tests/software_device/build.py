"""Builds the CUDA library for the software device, once for every state of its sources.

python -m tests.software_device.build    both architectures
"""

from __future__ import annotations

import concurrent.futures
import fcntl
import functools
import hashlib
import os
import re
import shutil
import subprocess
import time
from collections.abc import Iterable
from pathlib import Path

import torch

ROOT = Path(__file__).parents[2]
HERE = Path(__file__).parent
TORCH = Path(torch.__file__).parent
CACHE = ROOT / "build" / "software_device"
ARCHITECTURES = (80, 90)
KEPT = 14 * 24 * 3600  # seconds

RUNTIME = tuple(sorted(HERE.glob("*.cpp")))
KERNELS = (
    "fdiv/cuda/cluster.cu",
    "fdiv/cuda/grid.cu",
    "fdiv/cuda/small.cu",
    "core/cuda/scale.cu",
    "noising/cuda/noising.cu",
    "denoising/cuda/denoising.cu",
    "adversarial/cuda/adversarial.cu",
    "implicit/cuda/implicit.cu",
)
OPS = (
    "fdiv/cuda/op.cpp",
    "noising/cuda/op.cpp",
    "denoising/cuda/op.cpp",
    "adversarial/cuda/op.cpp",
    "implicit/cuda/op.cpp",
    "torch/shared_cuda.cpp",
)
# No fortification: a fortified longjmp refuses to go to another stack.
COMMON = ("-std=c++20", "-g1", "-fPIC", "-fvisibility=hidden", "-U_FORTIFY_SOURCE", f"-isystem{TORCH / 'include'}")
WARNED, BUILT_ELSEWHERE = ("-Wall", "-Wextra"), ("-w",)
STAND_INS = f"-I{HERE / 'include'}"
LANGUAGE = ("-x", "c++", "-D__CUDACC__", "-include", "cuda_runtime.h")
# Every access of a kernel is a call (instrumentation.cpp). No contraction, since a result must not depend on it.
INSTRUMENTED = (
    "-O1", "-ffp-contract=off", "-mtls-dialect=gnu", "-fsanitize=thread",
    "--param", "tsan-instrument-func-entry-exit=0",
)  # fmt: skip
# Options of sanitized kernels, in place of INSTRUMENTED.
SANITIZERS = "-fsanitize=address,undefined,float-cast-overflow"
SANITIZED = (
    "-O1", "-ffp-contract=off", "-mtls-dialect=gnu", SANITIZERS, "-fno-sanitize-recover=all", "-fno-omit-frame-pointer",
)  # fmt: skip


@functools.cache
def compiler() -> str | None:
    """A GCC that has what this build needs: a type for half precision, and the calls of -fsanitize=thread."""
    for name in filter(None, (os.environ.get("CXX"), shutil.which("c++"), shutil.which("g++"))):
        told = subprocess.run([name, "-dM", "-E", "-x", "c++", os.devnull], capture_output=True, text=True, check=False)
        version = re.search(r"#define __GNUC__ (\d+)", told.stdout)
        if version and int(version[1]) >= 12 and "__clang__" not in told.stdout:
            return name
    return None


def library(
    architecture: int,
    csrc: Path = ROOT / "csrc",
    kernels: Iterable[str | Path] = KERNELS,
    with_ops: bool = True,
    namespace: str = "",
    folder: Path = CACHE,
    sanitized: bool = False,
) -> Path:
    """The library for an architecture, as in 90; built if it is not there. `csrc`: the sources, or a changed copy.

    Its ops are in `namespace`, by default `software_sm_90`. Without ops, `kernels` have their own host code. `folder`:
    where the library and the objects of `csrc` are kept. `sanitized`: compiled with address and undefined-behavior
    sanitizers, for a process that has loaded their runtime before anything else (sanitized.py).
    """
    torch_options = ("-DTORCH_TARGET_VERSION=0x020a000000000000", "-include", str(HERE / "torch_calls.h"))
    host = (*COMMON, *BUILT_ELSEWHERE, STAND_INS, f"-I{csrc}", *(SANITIZED if sanitized else ("-O2",)))
    kernel = (
        *COMMON,
        *BUILT_ELSEWHERE,
        STAND_INS,
        f"-I{csrc}",
        *LANGUAGE,
        *(SANITIZED if sanitized else INSTRUMENTED),
        f"-D__CUDA_ARCH__={architecture}0",
    )
    own = _digest(HERE.rglob("*"))
    all_sources = own + _digest(csrc.rglob("*"))
    objects = [
        *(_object((*COMMON, *WARNED, "-O2", str(source)), source, own) for source in RUNTIME),
        *(
            _object((*host, *options, str(csrc / source)), csrc / source, all_sources, folder)
            for source, options in (*((op, torch_options) for op in OPS), ("core/cuda/device.cu", LANGUAGE))
            if with_ops
        ),
        *(_object((*kernel, str(csrc / source)), csrc / source, all_sources, folder) for source in kernels),
    ]
    text = (
        (HERE / "library.cpp.in")
        .read_text()
        .format(
            architecture=architecture,
            namespace=namespace or f"software_sm_{architecture}",
            sees_accesses=str(not sanitized).lower(),
        )
    )
    CACHE.mkdir(parents=True, exist_ok=True)
    with open(CACHE / "lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # one builder at a time; both architectures use the objects
        target = folder / f"lib{_short(str(objects) + text)}-sm_{architecture}.so"
        if target.exists():
            return target
        for old in CACHE.glob("*.*o"):  # of sources that have changed since; one in use is built again
            if time.time() - old.stat().st_mtime > KEPT:
                old.unlink()
        with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
            list(pool.map(_compile, objects))
        written = folder / f"library-{architecture}.cpp"
        written.write_text(text)
        subprocess.run(
            [compiler(), *COMMON, "-O2", *((SANITIZERS,) if sanitized else ()), "-shared", str(written),
             *(str(o) for o, _ in objects), "-Wl,-Bsymbolic", "-Wl,--no-undefined", "-Wl,--allow-shlib-undefined",
             f"-L{TORCH / 'lib'}", "-ltorch_cpu", "-ldl", "-o", str(target)],
            check=True,
        )  # fmt: skip
    return target


def _digest(files: Iterable[Path]) -> str:
    content = b"".join(file.read_bytes() for file in sorted(files) if file.is_file() and file.suffix[:3] != ".py")
    return hashlib.sha256(content).hexdigest()[:16]


def _short(text: str) -> str:
    return hashlib.sha256(f"{torch.__version__} {_compiler_version()} {text}".encode()).hexdigest()[:16]


@functools.cache
def _compiler_version() -> str:
    return subprocess.run([compiler(), "--version"], capture_output=True, text=True, check=True).stdout


def _object(command: tuple[str, ...], source: Path, digest: str, folder: Path = CACHE) -> tuple[Path, tuple[str, ...]]:
    return folder / f"{source.stem}-{_short(' '.join(command) + digest)}.o", command


def _compile(made: tuple[Path, tuple[str, ...]]) -> None:
    target, command = made
    if not target.exists():
        partial = target.with_suffix(".partial.o")
        subprocess.run([compiler(), *command, "-c", "-o", str(partial)], check=True)
        partial.rename(target)


if __name__ == "__main__":
    for architecture in ARCHITECTURES:
        print(library(architecture))
