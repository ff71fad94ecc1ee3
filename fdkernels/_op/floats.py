"""The float options of the raw ops: constants of a graph, or data where they change between calls of a compiled graph.

Do not pass a symbol to an op. torch.compile turns a float that changes from call to call into a symbol. Where the graph
computes with it (`1 + w`), Inductor keeps the first value, and later calls get old numbers. One tensor that holds all
floats, `numbers`, is right under every compiler.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

_SYMBOLS = (torch.SymFloat, torch.SymInt)


def carried(options: Sequence[float | Tensor]) -> Tensor | None:
    """None if all options are constants, else `numbers`: float64 on the CPU, where launchers read it."""
    if not torch.compiler.is_compiling() and {*map(type, options)} <= {float}:
        return None  # the fast path of an eager call
    if all(map(is_constant, options)):
        return None
    cpu = torch.device("cpu")
    parts = [v.detach().reshape(1).double() if isinstance(v, Tensor) else filled((1,), v, cpu) for v in options]
    return torch.cat(parts)


def is_constant(option: float | Tensor) -> bool:
    if isinstance(option, Tensor):
        return False
    if torch.compiler.is_compiling():
        return torch.fx.experimental.symbolic_shapes.has_static_value(option)
    return not isinstance(option, _SYMBOLS)


def filled(shape: tuple[int, ...], value: float, device: torch.device) -> Tensor:
    """A float64 tensor filled with one value, which may be a symbol."""
    if is_constant(value):
        return torch.full(shape, value, dtype=torch.float64, device=device)
    # A product keeps the symbol. torch.full, torch.tensor and the math module read its value, and each new value then
    # compiles a new graph.
    return torch.ones(shape, dtype=torch.float64, device=device) * value


def float16_power(divisor: Tensor) -> Tensor:
    """2^k with k = floor(log2 N), times which a float16 gradient is stored: g / N alone would underflow."""
    return torch.ldexp(torch.ones_like(divisor), torch.frexp(divisor).exponent - 1)


def logarithm(value: float) -> float | Tensor:
    return math.log(value) if is_constant(value) else filled((), value, torch.device("cpu")).log()


def checked(numbers: Tensor, names: Sequence[str]) -> list[float]:
    """The values of a raw op's `numbers`, checked here because a graph computed them after the public checks."""
    if numbers.shape != (len(names),) or numbers.dtype != torch.float64 or numbers.device.type != "cpu":
        raise RuntimeError(
            f"numbers: expected float64 ({len(names)},) on the CPU, got {tuple(numbers.shape)}, {numbers.dtype} on "
            f"{numbers.device}"
        )
    values = numbers.tolist()
    for name, value in zip(names, values, strict=True):
        if not math.isfinite(value):
            raise RuntimeError(f"{name}: expected a finite number, got {value}")
    return values
