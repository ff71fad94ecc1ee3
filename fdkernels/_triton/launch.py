"""How every op launches: the launch itself, its device, and the tickets that the programs of one launch draw."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import torch
from torch import Tensor

TICKETS = 4096  # per device: one for each stream, and one for each captured call


class Launch(NamedTuple):
    """A kernel and all its arguments. `make check-kernels` compiles launches on meta tensors."""

    kernel: Any
    programs: int
    arguments: tuple[Any, ...]
    options: dict[str, Any]
    """Arguments by name: numbers, compile-time options, num_warps."""


def on(device: torch.device) -> contextlib.AbstractContextManager[Any]:
    """Make `device` the current device, as Triton's launches and captures need; free if it already is."""
    if device.type == "cuda" and device.index != torch.cuda.current_device():
        return torch.cuda.device(device)
    return contextlib.nullcontext()


def start(launches: Iterable[Launch]) -> None:
    """Start kernels, one after the other, on the current stream of the current device."""
    for launch in launches:
        launch.kernel[(launch.programs,)](*launch.arguments, **launch.options)


def _zeros(device: torch.device) -> tuple[Tensor, torch.cuda.Event]:
    """(the tickets, the event after which they are zero)"""
    with torch.cuda.device(device):
        # 16 bytes apart, because Triton compiles a kernel for the alignment of its pointers.
        memory = torch.zeros((TICKETS, 4), dtype=torch.int32, device=device)
        zeroed = torch.cuda.Event()
        zeroed.record()
    return memory, zeroed


class _Tickets:
    """A device's tickets: zeros that outlive every stream and graph that uses them."""

    def __init__(self, device: torch.device) -> None:
        self.by_stream: dict[int, Tensor] = {}
        # Allocate in another thread: this thread's allocations may belong to a graph that Inductor is about to record.
        with ThreadPoolExecutor(1) as maker:
            self.memory, self.zeroed = maker.submit(_zeros, device).result()
        self.free = list(self.memory.unbind(0))

    def take(self, device: torch.device) -> Tensor:
        return self.free.pop() if self.free else torch.zeros(4, dtype=torch.int32, device=device)


_on_cpu = torch.zeros(4, dtype=torch.int32)
_devices: dict[torch.device, _Tickets] = {}
_first_call = threading.Lock()


def ticket(device: torch.device) -> Tensor:
    """An int32 zero. The programs of one launch count it up, and the last program sets it back to zero.

    Launches that may overlap never share a ticket. Each stream has one, and so has each call that a CUDA graph
    captures, because a graph replays on any stream. The first eager call on a device zeroes the memory of all tickets.
    A capture before that call, or beyond `TICKETS`, zeroes its own ticket inside the graph. `device` is the current
    device.
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
