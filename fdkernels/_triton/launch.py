"""How every op launches: what a launch is, the device it runs on, and the tickets that programs of one launch draw."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import torch
from torch import Tensor

TICKETS = 4096  # of a device: one for each stream, and one for each call that is captured


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


def _zeros(device: torch.device) -> tuple[Tensor, torch.cuda.Event]:
    """The tickets, and when they are zero."""
    with torch.cuda.device(device):
        # 16 bytes apart: a pointer's alignment is part of what a kernel is compiled for.
        memory = torch.zeros((TICKETS, 4), dtype=torch.int32, device=device)
        zeroed = torch.cuda.Event()
        zeroed.record()
    return memory, zeroed


class _Tickets:
    """A device's tickets: zeros that outlive every stream and graph that counts in them."""

    def __init__(self, device: torch.device) -> None:
        self.by_stream: dict[int, Tensor] = {}
        # In a thread of its own: what the calling one allocates may belong to graphs that Inductor is about to record.
        with ThreadPoolExecutor(1) as maker:
            self.memory, self.zeroed = maker.submit(_zeros, device).result()
        self.free = list(self.memory.unbind(0))

    def take(self, device: torch.device) -> Tensor:
        return self.free.pop() if self.free else torch.zeros(4, dtype=torch.int32, device=device)


_on_cpu = torch.zeros(4, dtype=torch.int32)
_devices: dict[torch.device, _Tickets] = {}
_first_call = threading.Lock()


def ticket(device: torch.device) -> Tensor:
    """An int32 zero that the programs of one launch count up, and whose last one sets back to zero.

    Launches that may overlap never share one: each stream has its own, and so has each call that a CUDA graph captures,
    since a graph replays on any stream. All come from memory that the first eager call on the device zeroes; a capture
    before it, or beyond `TICKETS`, zeroes its own as part of the graph. `device` is the current one.
    """
    if device.type != "cuda":
        return torch.empty(4, dtype=torch.int32, device=device) if device.type == "meta" else _on_cpu
    capturing = torch.cuda.is_current_stream_capturing()
    tickets = _devices.get(device)
    if tickets is None:
        if capturing:
            return torch.zeros(4, dtype=torch.int32, device=device)
        with _first_call:
            tickets = _devices[device] = _devices.get(device) or _Tickets(device)
    if capturing:
        return tickets.take(device)
    stream = torch.cuda.current_stream(device)
    found = tickets.by_stream.get(stream.cuda_stream)
    if found is None:
        stream.wait_event(tickets.zeroed)
        found = tickets.by_stream[stream.cuda_stream] = tickets.take(device)
    return found
