"""How every op launches: what a launch is, the device it runs on, and the tickets that programs of one launch draw."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable
from typing import Any, NamedTuple

import torch
from torch import Tensor

CAPTURED_TICKETS = 4096


class Launch(NamedTuple):
    """A kernel with everything it is started with; on meta tensors, what `make check-kernels` compiles."""

    kernel: Any
    programs: int
    arguments: tuple[Any, ...]
    options: dict[str, Any]
    """Compile-time arguments, and num_warps."""


def on(device: torch.device) -> contextlib.AbstractContextManager[Any]:
    """Make `device` the current one, as Triton's launches and capturing want it; costs nothing where it is."""
    if device.type == "cuda" and device.index != torch.cuda.current_device():
        return torch.cuda.device(device)
    return contextlib.nullcontext()


def start(launches: Iterable[Launch]) -> None:
    """Start kernels, one after the other, on the current stream of the current device."""
    for launch in launches:
        launch.kernel[(launch.programs,)](*launch.arguments, **launch.options)


_eager: dict[tuple[torch.device, int], Tensor] = {}
_captured: dict[torch.device, list[Tensor]] = {}


def ticket(device: torch.device) -> Tensor:
    """An int32 zero that the programs of one launch count up, and whose last one sets back to zero.

    Launches that may overlap never share one: each stream has its own, and so has each call that a CUDA graph captures,
    since a graph replays on any stream. Those come from a pool that the first eager call on the device zeroes; a
    capture before it, or beyond the pool's size, zeroes its ticket as part of the graph. `device` is the current one.
    """
    if device.type == "meta":
        return torch.empty(1, dtype=torch.int32, device=device)
    if device.type == "cuda" and torch.cuda.is_current_stream_capturing():
        free = _captured.get(device)
        return free.pop() if free else torch.zeros(1, dtype=torch.int32, device=device)
    key = (device, torch.cuda.current_stream(device).cuda_stream if device.type == "cuda" else 0)
    found = _eager.get(key)
    if found is None:
        found = _eager[key] = torch.zeros(1, dtype=torch.int32, device=device)
        if device not in _captured:
            # 16 bytes apart: a pointer's alignment is part of what a kernel is compiled for.
            pool = torch.zeros((CAPTURED_TICKETS, 4), dtype=torch.int32, device=device)
            _captured[device] = list(pool.unbind(0)) if device.type == "cuda" else []
    return found
