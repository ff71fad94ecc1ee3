"""What a call does beside taking time: launches, host syncs, tensor bytes, peak memory."""

from __future__ import annotations

import json
import math
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile, record_function
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from benchmarks.measure.gpu_timing import wait_for

RANGE = "counted call"
WORK = ("kernel", "gpu_memcpy", "gpu_memset")


class Trace(NamedTuple):
    work: list[dict[str, Any]]  # the kernels, copies and fills that ran on the GPU, in their order: {name, us} each
    syncs: int  # times that the host waited for the GPU
    peak_bytes: int  # peak of the host memory that the call allocated


def trace(function: Callable[[], object], device: str) -> Trace:
    """What torch.profiler and the allocator see of a call.

    On a GPU, trace only after all timing: the first trace leaves hooks in the process that slow later launches.
    """
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if device == "cuda" else [])]
    wait_for(device)
    with profile(activities=activities, profile_memory=True) as found:
        with record_function(RANGE):
            function()
        wait_for(device)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "trace.json"
        found.export_chrome_trace(str(path))
        return summarized(json.loads(path.read_text(encoding="utf-8"))["traceEvents"])


def summarized(events: list[dict[str, Any]]) -> Trace:
    """From the events of a Chrome trace."""
    events = sorted((event for event in events if "ts" in event), key=lambda event: event["ts"])
    # The GPU has a range of the same name; it includes our own wait.
    ranges = [event for event in events if event.get("name") == RANGE and event.get("cat") == "user_annotation"]
    start = min((event["ts"] for event in ranges), default=float("-inf"))
    stop = max((event["ts"] + event["dur"] for event in ranges), default=float("inf"))
    work = [{"name": event["name"], "us": event["dur"]} for event in events if event.get("cat") in WORK]
    syncs = peak = held = 0
    for event in events:
        if not start <= event["ts"] <= stop:
            continue
        if event.get("cat") in ("cuda_runtime", "cuda_driver") and "Synchronize" in event["name"]:
            syncs += 1
        if event.get("name") == "[memory]" and event["args"].get("Device Type") == 0:
            held += event["args"]["Bytes"]
            peak = max(peak, held)
    return Trace(work, syncs, peak)


# The host waits for these on a GPU, and for indexing by a mask: their result, or its size, depends on values.
WAITING = ("_local_scalar_dense", "nonzero", "bincount", "masked_select", "_unique2", "equal")
SCALES = ("scale_native_", "scale_triton_")


class Traffic(NamedTuple):
    ops: int  # that touch memory
    bytes: int  # that they read and write
    syncs: int  # ops for which the host would wait for a GPU


class Counted(TorchDispatchMode):
    """Counts ops that touch memory, and the bytes of their operands' own storage.

    A fused op counts like any other, by what it has to read and write.
    """

    def __init__(self) -> None:
        super().__init__()
        self.found = Traffic(0, 0, 0)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if not func.is_view and "detach" not in func.name() and "empty" not in func.name():
            name = func.name().split("::")[1].split(".")[0]
            mutated = [
                a for a, b in zip(args, func._schema.arguments, strict=False) if b.alias_info and b.alias_info.is_write
            ]
            read, written = args, mutated if result is None else result
            # These write their result without reading their first operand.
            if name in ("copy_", "fill_", "zero_", "normal_", "uniform_") or name.endswith("_like"):
                read = args[1:]
            # Ours neither reads nor writes gradients whose upstream is 1.
            elif name in SCALES and bool((args[1] == 1).all()) and not any(v.numel() for v in args[2]):
                read, written = args[1:], ()
            moved = sum(_own_elements(v) * v.element_size() for v in _tensors((read, kwargs, written)))
            by_mask = name.startswith("index") and any(v.dtype == torch.bool for v in _tensors(args[1]))
            ops, bytes_, syncs = self.found
            self.found = Traffic(ops + 1, bytes_ + moved, syncs + (by_mask or name in WAITING))
        return result


def _tensors(tree: Any) -> list[Tensor]:
    return [v for v in tree_leaves(tree) if isinstance(v, Tensor)]


def _own_elements(v: Tensor) -> int:
    """Elements of a tensor's own storage: an expanded one is read from cache after the first time."""
    return math.prod(size for size, stride in zip(v.shape, v.stride(), strict=True) if stride != 0)


def tensor_traffic(function: Callable[[], object]) -> Traffic:
    """What PyTorch dispatches in a call. Compiled code is not dispatched, so it is not counted."""
    with Counted() as counted:
        function()
    return counted.found


class _Unread(Tensor):
    __torch_function__ = torch._C._disabled_torch_function_impl  # type: ignore[assignment]


def unread(v: Any) -> Any:
    """Data whose noise levels no check reads on the host, as on a GPU."""
    levels = {name: getattr(v, name, None) for name in ("t", "real_t", "alpha", "sigma")}
    return v._replace(**{name: level.as_subclass(_Unread) for name, level in levels.items() if level is not None})


def extra_memory(function: Callable[[], object]) -> int:
    """Peak bytes that a call allocates on the GPU beside what is there already."""
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    function()
    return torch.cuda.max_memory_allocated() - before
