"""Which backends can serve a device, and which one "auto" picks.

    cpu    native, else reference
    cuda   native, else triton, else reference    on a compute capability of `CHECKED`
           triton, else native, else reference    on every other, and on ROCm
    other  reference

On GPUs `native` is CUDA C++. It serves only NVIDIA GPUs, and only those that the library was compiled for. `triton`
serves NVIDIA and ROCm. On NVIDIA both need compute capability 8.0. If a machine has several kinds of GPU, the one that
is current at the first call decides.

The order depends only on the GPU, not on the call: a step keeps its backend, and its bits, when an option changes.

`reference` is eager PyTorch and runs anywhere. If "auto" takes it where a kernel should serve, it warns. A backend
asked for by name is used or refused, never replaced. With FDKERNELS_LOG=1 the first use of each (op, device type) logs
its backend, and why a backend that "auto" prefers is missing.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import importlib.metadata
import importlib.util
import itertools
import logging
import os
import re

import torch

from fdkernels import binaries
from fdkernels._op.checks import shown, warn

BACKENDS = ("reference", "native", "triton")
NATIVE_FIRST, TRITON_FIRST = ("native", "triton", "reference"), ("triton", "native", "reference")

# Compute capabilities on which a GPU passed `make gpu-check`, and the results. The blocks of native's CUDA kernels wait
# for each other, so on hardware where they have not run they could hang a training run. Triton's programs never wait.
# An entry stays while blocks wait as they did when the GPU ran them, even if the kernels compute other things since.
CHECKED = {(9, 0): "benchmarks/results/h100_check.json"}
# The same for earlier kernels, whose blocks waited in another way. A new check moves an entry to CHECKED.
CHECKED_BEFORE: dict[tuple[int, int], str] = {}

OLDEST_TRITON = (3, 6)
OLDEST_CAPABILITY = (8, 0)

LOGGING = os.environ.get("FDKERNELS_LOG", "") not in ("", "0")

_log = logging.getLogger("fdkernels")
_logged: set[tuple[str, str]] = set()
_chosen: dict[tuple[str, str], str] = {}


@functools.cache
def load_native(device_type: str) -> str | None:
    """Load the C++ op library of a device type, "cpu" or "cuda", once. Returns None, or why it can't be used."""
    name = f"libfdkernels_{device_type}.so"
    file, reason = binaries.locate(name)
    if reason is not None:
        return reason
    try:
        torch.ops.load_library(str(file))
    except OSError as error:
        return f"{name} does not load: {error.__cause__ or error}"  # torch's own message leaves the reason out
    return None


def unavailable(backend: str, device_type: str) -> str | None:
    """Why `backend` can't serve tensors of this device type; None if it can."""
    if backend == "reference":
        return None
    if backend == "native":
        return _why_not_native(device_type)
    if backend == "triton":
        return _why_not_triton(device_type)
    raise ValueError(f"backend: expected one of auto, {', '.join(BACKENDS)}, got {shown(backend)}")


def _why_not_native(device_type: str) -> str | None:
    if device_type == "cpu":
        return load_native("cpu")
    if device_type != "cuda":
        return f"there are native kernels for cpu and cuda, not for {device_type}"
    if torch.version.hip is not None:
        return "the CUDA library is for NVIDIA's GPUs; this is ROCm"
    return _why_not_gpu() or load_native("cuda") or _why_not_compiled(torch.cuda.get_device_capability())


def _why_not_gpu() -> str | None:
    if not torch.cuda.is_available():
        return "torch finds no CUDA or ROCm device"
    if torch.version.hip is None and torch.cuda.get_device_capability() < OLDEST_CAPABILITY:
        return f"compute capability {torch.cuda.get_device_capability()}; {OLDEST_CAPABILITY} or later is needed"
    return None


def _why_not_compiled(capability: tuple[int, int]) -> str | None:
    """Why the CUDA library has no code for a GPU, or why this machine's driver can't run that code; None if it can."""
    try:
        from fdkernels import _core
    except ImportError as error:
        return f"fdkernels._core, which knows what the CUDA library was built for, does not load: {error}"
    info = _core.build_info()
    serving = [arch for arch in info["cuda_archs"] if serves(arch, capability)]
    if not serving:
        held = ", ".join(info["cuda_archs"]) or "nothing"
        return f"the CUDA library was compiled for {held}; this GPU has compute capability {capability}"
    built = tuple(int(number) for number in info["cuda"].split("."))
    # A driver runs machine code of any CUDA up to its own major version, but compiles PTX only up to its exact version.
    needed = built if all(arch.endswith("+PTX") for arch in serving) else built[:1]
    driver = _driver_version()
    if driver < needed:
        return f"the CUDA library was built with CUDA {info['cuda']}; the driver is for {'.'.join(map(str, driver))}"
    return None


def serves(arch: str, capability: tuple[int, int]) -> bool:
    """Whether a GPU can run code compiled for an architecture, as in "90" (machine code) or "90+PTX" (PTX)."""
    compiled = divmod(int(arch.removesuffix("+PTX")), 10)
    same_kind = arch.endswith("+PTX") or compiled[0] == capability[0]
    return same_kind and compiled <= capability


def _driver_version() -> tuple[int, int]:
    """The latest version of CUDA that the driver knows."""
    version = ctypes.c_int()
    ctypes.CDLL("libcuda.so.1").cuDriverGetVersion(ctypes.byref(version))
    return version.value // 1000, version.value % 1000 // 10


@functools.cache
def _installed_triton() -> str | None:
    """Triton's version, found without importing Triton. torch's ROCm builds install it under another name."""
    if importlib.util.find_spec("triton") is None:
        return None
    for name in ("triton", "pytorch-triton", "pytorch-triton-rocm", "triton-rocm"):
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            return importlib.metadata.version(name)
    return "0"


def _why_not_triton(device_type: str) -> str | None:
    version = _installed_triton()
    if version is None:
        return "triton is not installed (torch's CUDA and ROCm builds bring it; else `pip install triton`, on Linux)"
    found = tuple(int(number) for number in re.findall(r"\d+", version)[:2])
    if found < OLDEST_TRITON:
        return f"triton {version} is installed; {'.'.join(map(str, OLDEST_TRITON))} or later is needed"
    if device_type == "cpu":
        interpreted = os.environ.get("TRITON_INTERPRET", "") not in ("", "0")
        return None if interpreted else "Triton compiles for GPUs (TRITON_INTERPRET=1 interprets on CPU, for tests)"
    if device_type != "cuda":
        return f"this version has no Triton kernels for {device_type}"
    return _why_not_gpu()


def available(device_type: str) -> dict[str, str | None]:
    """Maps each backend's name to None if it can serve the device type, else to the reason why not."""
    return {backend: unavailable(backend, device_type) for backend in BACKENDS}


def preference(device_type: str) -> tuple[tuple[str, ...], str]:
    """(the backends that "auto" tries on a device type, in order; why). On "cuda" the current GPU decides."""
    if device_type == "cpu":
        return ("native", "reference"), "native is faster"
    if device_type != "cuda":
        return ("reference",), f"there are kernels for cpu and cuda, not for {device_type}"
    if torch.version.hip is not None:  # ROCm's capabilities are not CUDA's: an MI200 reports (9, 0), like an H100
        return TRITON_FIRST, "native is for NVIDIA's GPUs"
    if not torch.cuda.is_available():
        return TRITON_FIRST, "no GPU is here"
    major, minor = torch.cuda.get_device_capability()
    if (major, minor) in CHECKED:
        return NATIVE_FIRST, f"native passed its checks on compute capability {major}.{minor} ({CHECKED[major, minor]})"
    since = " since its blocks wait in another way" if (major, minor) in CHECKED_BEFORE else ""
    return TRITON_FIRST, f"native has not been checked on compute capability {major}.{minor}{since}"


def choose(requested: str, device_type: str) -> str:
    """The backend that serves a call.

    Raises:
        ValueError: unknown name.
        RuntimeError: a backend asked for by name is not available; the message says why.
    """
    if not isinstance(requested, str):
        raise ValueError(f"backend: expected one of auto, {', '.join(BACKENDS)}, got {shown(requested)}")
    key = (requested, device_type)
    if key not in _chosen:
        if requested == "auto":
            order, _ = preference(device_type)
            _chosen[key] = next(b for b in order if unavailable(b, device_type) is None)
            _warn_of_fallback(_chosen[key], order, device_type)
        else:
            reason = unavailable(requested, device_type)
            if reason is not None:
                raise RuntimeError(f"backend {requested!r} is not available for {device_type} tensors: {reason}")
            _chosen[key] = requested
    return _chosen[key]


def _warn_of_fallback(chosen: str, order: tuple[str, ...], device_type: str) -> None:
    """Warn if "auto" falls back to eager PyTorch, or skips native because its library exists but does not fit."""
    skipped = order[: order.index(chosen)]
    if skipped and (chosen == "reference" or binaries.misfit(f"libfdkernels_{device_type}.so")):
        reasons = "; ".join(f"{backend}: {unavailable(backend, device_type)}" for backend in skipped)
        what = "eager PyTorch, which is slow" if chosen == "reference" else chosen
        more = f"`python -m fdkernels` says more; backend={chosen!r} asks for it."
        message = f"fdkernels serves {device_type} tensors with {what}. {reasons}. {more}"
        warn(message, RuntimeWarning)


def log_choice(op: str, backend: str, device_type: str) -> None:
    """Log the backend of an op once per device type, if FDKERNELS_LOG=1."""
    if not LOGGING or (op, device_type) in _logged:
        return
    _logged.add((op, device_type))
    preferred = itertools.takewhile(lambda other: other != backend, preference(device_type)[0])
    skipped = [f"{b}: {why}" for b in preferred if (why := unavailable(b, device_type))]
    _log.warning("%s on %s: %s%s", op, device_type, backend, f" ({'; '.join(skipped)})" if skipped else "")


# The mark that torch.compiler.assume_constant_result sets: both functions run once, when a call is traced. Calling
# assume_constant_result here would import all of torch._dynamo.
choose._dynamo_marked_constant = True  # type: ignore[attr-defined]
log_choice._dynamo_marked_constant = True  # type: ignore[attr-defined]
