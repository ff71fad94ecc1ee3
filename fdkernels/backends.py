"""Which backends can serve a device, and what "auto" picks.

    cpu    native, else reference
    other  reference

`reference` is eager PyTorch and runs anywhere. A backend asked for by name is used or refused, never replaced. With
FDKERNELS_LOG=1 the first use of each (op, device) names its backend and, where a faster one is missing, why.
"""

from __future__ import annotations

import functools
import logging
import os
from pathlib import Path

import torch

BACKENDS = ("reference", "native", "triton")

# Fastest first.
PREFERENCE = {"cpu": ("native", "reference")}

LOGGING = os.environ.get("FDKERNELS_LOG", "") not in ("", "0")

_log = logging.getLogger("fdkernels")
_logged: set[tuple[str, str]] = set()
_chosen: dict[tuple[str, str], str] = {}


@functools.cache
def load_native() -> str | None:
    """Load the C++ op library once. Returns None, or why it can't be used."""
    library = Path(__file__).parent / "libfdkernels_cpu.so"
    if not library.exists():
        return f"{library.name} was not built (run `pip install .` or `make build`)"
    try:
        torch.ops.load_library(str(library))
    except OSError as error:
        return f"{library.name} does not load: {error.__cause__ or error}"  # torch's own text leaves the reason out
    return None


def unavailable(backend: str, device_type: str) -> str | None:
    """Why `backend` can't serve tensors of this device type; None where it can."""
    if backend == "reference":
        return None
    if backend == "native":
        return (
            load_native() if device_type == "cpu" else f"this build has native kernels for cpu, not for {device_type}"
        )
    if backend == "triton":
        return "this version has no Triton kernels"
    raise ValueError(f"backend: expected one of auto, {', '.join(BACKENDS)}, got {backend!r}")


def available(device_type: str) -> dict[str, str | None]:
    """Each backend's name, mapped to None where it can serve the device type, else to why not."""
    return {backend: unavailable(backend, device_type) for backend in BACKENDS}


def choose(requested: str, device_type: str) -> str:
    """The backend that serves a call.

    Raises:
        ValueError: unknown name.
        RuntimeError: a backend asked for by name is not available; says why.
    """
    key = (requested, device_type)
    if key not in _chosen:
        if requested == "auto":
            order = PREFERENCE.get(device_type, ("reference",))
            _chosen[key] = next(b for b in order if unavailable(b, device_type) is None)
        else:
            reason = unavailable(requested, device_type)
            if reason is not None:
                raise RuntimeError(f"backend {requested!r} is not available for {device_type} tensors: {reason}")
            _chosen[key] = requested
    return _chosen[key]


# What torch.compiler.assume_constant_result sets; calling that here would import all of torch._dynamo.
choose._dynamo_marked_constant = True  # type: ignore[attr-defined]


def log_choice(op: str, backend: str, device_type: str) -> None:
    """Name the backend of an op once per device type, where FDKERNELS_LOG=1."""
    if not LOGGING or (op, device_type) in _logged:
        return
    _logged.add((op, device_type))
    skipped = [f"{b}: {why}" for b in PREFERENCE.get(device_type, ()) if (why := unavailable(b, device_type))]
    _log.warning("%s on %s: %s%s", op, device_type, backend, f" ({'; '.join(skipped)})" if skipped else "")
