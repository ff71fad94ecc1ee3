"""The software device: the CUDA library's own sources, run on the host by fibers, with every access checked.

The device's tensors are CPU tensors. A call runs at once, under a scheduler that a test chooses; a fault (a race, an
access out of bounds, a deadlock, ...) is a RuntimeError that says what and where.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import re
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import pytest
import torch
from torch import Tensor

from fdkernels import backends, devices
from fdkernels._op import registry
from fdkernels.fdiv.arguments import FDIV
from tests.software_device import build
from tools.gpu_check.stage import NO_SCHEDULE, PLAN

if TYPE_CHECKING:
    from fdkernels._core import DeviceLimits

SCHEDULERS = ("in order", "reversed", "random", "block first", "held back")
# (name, seed); only "random" and "held back" use the seed.
SEEDED = (*((name, 0) for name in SCHEDULERS), ("random", 1), ("held back", 1))


class Description(NamedTuple):
    """The limits of a device, as its runtime gives them."""

    capability: int
    multiprocessors: int
    shared_per_block: int
    """Bytes that a block may ask for."""
    shared_per_multiprocessor: int
    cache: int
    """Bytes of L2."""
    largest_cluster: int = 16
    granted: int = 0
    """Multiprocessors that the context really has, which its limits do not tell; 0: all."""


# Small enough for small samples to need every schedule.
SMALL = Description(90, 4, 20 << 10, 48 << 10, 64 << 10)
SMALL_80 = SMALL._replace(capability=80, largest_cluster=0)
# One block per multiprocessor, so that clusters pass from sample to sample.
TIGHT = Description(90, 4, 7 << 10, 8 << 10, 64 << 10)
TIGHT_16 = TIGHT._replace(multiprocessors=16)


class Launch(NamedTuple):
    """A launch of a kernel, or a fill."""

    name: str
    blocks: int
    threads: int
    shared_bytes: int
    cluster: int
    cooperative: bool

    def hold(self, op: str, plan: dict[str, Any]) -> None:
        """Check that this launch of an op is the planned one."""
        assert self.name == f"{op}_{plan['schedule']}_kernel"
        assert (self.blocks, self.threads, self.shared_bytes) == (plan["blocks"], plan["threads"], plan["shared_bytes"])
        assert self.cooperative == (plan["schedule"] == "grid")
        assert self.cluster == (1 if self.cooperative else plan["team"])


class Traffic(NamedTuple):
    """Bytes that kernels read and wrote in a run of memory."""

    begin: int
    bytes: int
    read: int
    written: int


@contextlib.contextmanager
def planned(plan: str) -> Iterator[None]:
    """Native kernels take this plan inside. Do not set the plan by a test's own `monkeypatch`: after `Setting.in_force`
    has ended, it restores what it found, the setting's plan, and every later test of the process gets that plan."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(PLAN, plan)
        yield


class Software:
    """A library, and the device that it runs on."""

    def __init__(self, library: Path, namespace: str = "") -> None:
        """`namespace`: that of the library's ops, if it has any."""
        self.path = library
        if namespace:
            _define(namespace)
            self.ops = getattr(torch.ops, namespace)
        self.library = ctypes.CDLL(str(library))
        for name in ("stream", "end_capture"):
            getattr(self.library, f"software_{name}").restype = ctypes.c_void_p
        for name in ("synchronize", "replay", "launches", "traffic", "last_error"):
            getattr(self.library, f"software_{name}").restype = ctypes.c_char_p
        self.devices: dict[Description, int] = {}
        self.index = 0  # of the device in use
        self.count_of_host = False  # whether the loss's count is a host tensor; a caller may have either
        self.fallbacks = 0  # calls that took any plan, since the requested one could not hold a sample
        self._name_symbols()

    def _name_symbols(self) -> None:
        """Tell the library the names of its kernels and shared variables, which only the file's symbol table has."""
        table = subprocess.run(["readelf", "-sWC", str(self.path)], capture_output=True, text=True, check=True).stdout
        rows = re.findall(r"^\s*\d+:\s+([0-9a-f]+)\s+(\w+)\s+(\w+)\s+\w+\s+\w+\s+\d+\s+(.+)$", table, re.MULTILINE)
        known = next(int(at, 16) for at, _, _, name in rows if name == "software_launches")
        base = ctypes.cast(self.library.software_launches, ctypes.c_void_p).value - known  # type: ignore[operator]
        for at, size, kind, name in rows:
            if kind == "OBJECT" and name.endswith("::ticket_memory"):
                self.library.software_name_tickets(ctypes.c_void_p(base + int(at, 16)), ctypes.c_uint64(int(size, 0)))
            if kind == "TLS":
                variable = ctypes.c_uint64(int(at, 16)), ctypes.c_uint64(int(size, 0))
                self.library.software_name_shared(*variable, name.encode())
            kernel = re.search(r"\b(\w+_kernel)(?:<.*>)?\(", name)
            if kind == "FUNC" and kernel and "cudaLaunchKernelEx" not in name and "{lambda" not in name:
                full = name.removeprefix("void ").encode()
                self.library.software_name(ctypes.c_void_p(base + int(at, 16)), kernel[1].encode(), full)
        self.library.software_place_shared()

    def use(self, description: Description) -> None:
        """Later calls run on a device with these limits."""
        if description not in self.devices:
            fields = (ctypes.c_int * len(description))(*description)
            self.devices[description] = self.library.software_add_device(fields)
        self.index = self.devices[description]
        self.library.software_use_device(self.index)

    def limits(self) -> DeviceLimits:
        """The limits of the device in use, as the launcher knows them."""
        return devices.limits_of(self.ops.cuda_limits(self.index))

    def schedule(self, name: str, seed: int = 0) -> None:
        """Who runs next, in the order of SCHEDULERS: threads in turn; in turn from the last; any thread; the first
        block as far as it can; all blocks but one (the seed says which) as far as they can."""
        self.library.software_schedule(SCHEDULERS.index(name), ctypes.c_uint64(seed))

    def begin(self) -> None:
        """Forgets what calls have done so far."""
        self.fallbacks = 0
        self.launches(), self.traffic(), self.last_error()

    def last_error(self) -> str | None:
        """The runtime's error that the library has left for later calls to find."""
        error = self.library.software_last_error()
        return None if error is None else error.decode()

    def launches(self) -> list[Launch]:
        """Launches since the last call of this."""
        lines = (line.split() for line in self.library.software_launches().decode().splitlines())
        return [Launch(name, *map(int, numbers[:-1]), numbers[-1] == "1") for name, *numbers in lines]

    def traffic(self) -> list[Traffic]:
        """Traffic since the last call of this."""
        return [Traffic(*map(int, line.split())) for line in self.library.software_traffic().decode().splitlines()]

    def _call(self, op: Callable[..., Any], *arguments: Any) -> Any:
        """Call an op; if the requested plan can't hold a sample, call it with any plan that can."""
        if torch.compiler.is_compiling():
            return op(*arguments)
        # A call's host tensors: `numbers` (fdkernels/_op/floats.py), and, by count_of_host, the loss's count.
        has_count = len(arguments) > len(FDIV.names) and self.count_of_host
        of_host = (arguments[-1], arguments[FDIV.names.index("divisor")] if has_count else None)
        self.library.software_of_host(
            *(ctypes.c_void_p(each.data_ptr() if isinstance(each, Tensor) else None) for each in of_host)
        )
        try:
            return op(*arguments)
        except ValueError as error:
            if NO_SCHEDULE not in str(error):
                raise
        self.fallbacks += 1
        with planned(""):
            return op(*arguments)

    # ---- streams and graphs

    @contextlib.contextmanager
    def on_stream(self, stream: int | None) -> Iterator[None]:
        """Calls inside go to a stream of `new_stream`."""
        self.library.software_use_stream(ctypes.c_void_p(stream))
        try:
            yield
        finally:
            self.library.software_use_stream(None)

    def new_stream(self) -> int:
        return self.library.software_stream()  # type: ignore[no-any-return]

    @contextlib.contextmanager
    def held_back(self) -> Iterator[None]:
        """Work that is started inside waits for the end, or for `synchronize`. Only then there are results. Streams
        overlap as the scheduler chooses.
        """
        self.library.software_hold_back(ctypes.c_bool(True))
        try:
            yield
            self.synchronize()
        finally:
            self.library.software_hold_back(ctypes.c_bool(False))

    def synchronize(self) -> None:
        _raise(self.library.software_synchronize())

    @contextlib.contextmanager
    def captured(self, stream: int | None = None) -> Iterator[Graph]:
        """Calls inside are captured into a graph, and do not run. They use a new stream if none is given."""
        graph, stream = Graph(self), stream or self.new_stream()
        with self.on_stream(stream):
            self.library.software_capture(ctypes.c_void_p(stream))
            try:
                yield graph
            finally:
                graph.handle = self.library.software_end_capture(ctypes.c_void_p(stream))
        if graph.handle is None:
            raise RuntimeError("the capture was broken by a call that it can't have")

    def use_unused(self, description: Description = SMALL) -> None:
        """Later calls run on a new device, of which nothing is known and on which nothing is loaded."""
        used = self.devices.pop(description, None)
        self.use(description)
        if used is not None:
            self.devices[description] = used

    @contextlib.contextmanager
    def serves(self) -> Iterator[None]:
        """Inside, this library serves the native backend's calls on CPU tensors."""
        with pytest.MonkeyPatch.context() as patch:
            for name in registry.kernels:
                if "native" not in name:
                    continue
                op = registry.below_autograd(getattr(self.ops, name).default)
                planned = not name.startswith("scale")
                patch.setitem(registry.kernels, name, functools.partial(self._call, op) if planned else op)
            patch.setitem(backends._chosen, ("native", "cpu"), "native")
            yield


class Graph:
    """Captured calls, over the tensors that they were captured with."""

    def __init__(self, software: Software) -> None:
        self.software = software
        self.handle: int | None = None

    def replay(self, stream: int | None = None) -> None:
        _raise(self.software.library.software_replay(ctypes.c_void_p(self.handle), ctypes.c_void_p(stream)))

    def __del__(self) -> None:
        self.software.library.software_drop(ctypes.c_void_p(self.handle))


def _raise(error: bytes | None) -> None:
    if error is not None:
        raise RuntimeError(error.decode())


def _define(namespace: str) -> None:
    """Define the native ops in a library's namespace."""
    library = torch.library.Library(namespace, "DEF")
    _libraries.append(library)
    for op in registry.ops.values():
        registry.define(library, op, "native")
    registry.define_scale(library, "native")
    library.define(registry.CUDA_LIMITS)


_libraries: list[torch.library.Library] = []


@functools.cache
def software(architecture: int) -> Software:
    """The library of these sources for an architecture, as in 90."""
    return Software(build.library(architecture), f"software_sm_{architecture}")
