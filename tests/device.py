"""The device of a test run. Tests are written on CPU tensors: `on_device` takes a call to the device and back.

`pytest --device cuda` (or `-m gpu`, which asks for it) runs the same contract tests on an NVIDIA or AMD GPU.
"""

from __future__ import annotations

import copy
import os
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import once_differentiable

import fdkernels as fdk
from fdkernels._op.arguments import Table

VARIABLE = "FDKERNELS_TEST_DEVICE"  # set by tests/conftest.py, inherited by workers and child processes


def name() -> str:
    return os.environ.get(VARIABLE, "cpu")


on_software = False
"""Whether the software device serves a test's native calls (set by tests/conftest.py)."""


def is_slow(backend: str) -> bool:
    """Whether this run interprets the backend's kernels. A call then takes milliseconds, so tests make few."""
    return name() == "cpu" and (backend == "triton" or (backend == "native" and on_software))


def place(value: Any, device: str | torch.device | None = None) -> Any:
    """Put a tensor, table, normalizer, prediction, or dict of them on a device (default: the run's own)."""
    device = torch.device(name() if device is None else device)
    if isinstance(value, Table):
        return Table(place(value.entries, device), value.inner)
    if isinstance(value, dict):
        return {key: place(entry, device) for key, entry in value.items()}
    if isinstance(value, fdk.RatioNormalizer):
        return value if value.mean is None or _is_on(value.mean, device) else copy.deepcopy(value).to(device)
    if isinstance(value, fdk.Prediction):
        return replace(value, **{field: place(getattr(value, field), device) for field in ("noisy", "alpha", "sigma")})
    if not _is_movable(value) or _is_on(value, device):
        return value
    if value.layout != torch.strided:
        return value.to(device)
    return _Move.apply(value, device) if value.requires_grad else _copied(value, device)


def on_device(function: Callable[..., Any]) -> Callable[..., Any]:
    """Run `function` on the run's device; its results return to its first tensor's device. On the CPU: just `function`.

    Gradients travel back too. So does the normalizer's state, also where `function` raises.
    """
    if name() == "cpu":
        return function

    def there_and_back(*args: Any, **kwargs: Any) -> Any:
        home = next((v.device for v in (*args, *kwargs.values()) if _is_movable(v)), torch.device("cpu"))
        normalizer, placed = kwargs.get("normalizer"), place(kwargs)
        state = placed.get("normalizer")
        moved = isinstance(state, fdk.RatioNormalizer) and state is not normalizer
        version = state.mean._version if moved else 0
        try:
            return _back(function(*(place(v) for v in args), **placed), home)
        finally:
            if moved and state.mean._version != version:
                with torch.no_grad():
                    normalizer.mean.copy_(state.mean)

    return there_and_back


def _back(result: Any, home: torch.device) -> Any:
    if isinstance(result, tuple):
        parts = (_back(part, home) for part in result)
        return type(result)(*parts) if hasattr(result, "_fields") else tuple(parts)
    return place(result, home)


def _is_movable(value: Any) -> bool:
    """A plain tensor. Meta tensors and other subclasses are not moved: tests pass them to be refused."""
    return type(value) in (Tensor, torch.nn.Parameter) and not value.is_meta


def _is_on(tensor: Tensor, device: torch.device) -> bool:
    return tensor.device.type == device.type and device.index in (None, tensor.device.index)


def _copied(tensor: Tensor, device: torch.device) -> Tensor:
    """The tensor over a copy of its whole storage: same strides, alignment, and values between its elements."""
    data = torch.empty(0, dtype=torch.uint8, device=tensor.device).set_(tensor.detach().untyped_storage())
    storage = data.to(device, copy=True).untyped_storage()
    copied = torch.empty(0, dtype=tensor.dtype, device=device)
    return copied.set_(storage, tensor.storage_offset(), tensor.shape, tensor.stride())


class _Move(Function):
    """Move a tensor to a device. The gradient comes back with its own strides, a stride of 0 included."""

    @staticmethod
    def forward(ctx: Any, tensor: Tensor, device: torch.device) -> Tensor:
        ctx.home = tensor.device
        return _copied(tensor, device)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return _copied(gradient, ctx.home), None
