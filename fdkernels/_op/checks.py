"""Checks of user input that several ops share. Each error names the argument, what was expected and what was given."""

from __future__ import annotations

import difflib
import itertools
import math
import numbers
import sys
import warnings
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch._ops import _len_torch_dispatch_stack_pre_dispatch
from torch.utils._python_dispatch import _get_current_dispatch_mode_stack

FLOATS = (torch.float32, torch.bfloat16, torch.float16, torch.float64)

_transforms_are_active = torch._C._are_functorch_transforms_active

warned: set[str] = set()  # keys of the warnings that this process has given

LONGEST = 200  # characters of a user's value in a message


def check_tensor(name: str, value: Any) -> None:
    """A dense tensor outside of any torch.func transform."""
    check_dense(name, value)
    if _transforms_are_active() and torch._C._functorch.is_functorch_wrapped_tensor(value):
        raise TypeError(
            f"{name}: expected a plain tensor, got one inside a torch.func transform (vmap, grad, jvp, ...)"
        )


def check_dense(name: str, value: Any) -> None:
    """A strided tensor, also inside a torch.func transform. A DTensor is refused: its shard would pass as the whole."""
    if not isinstance(value, Tensor):
        raise TypeError(f"{name}: expected a tensor, got {type(value).__name__}")
    if value.is_nested:
        raise TypeError(f"{name}: expected a dense tensor, got a nested one; pad it and pass a mask")
    if value.layout is not torch.strided:
        raise TypeError(f"{name}: expected a dense tensor, got layout {value.layout}")
    if type(value) is not Tensor and type(value).__name__ == "DTensor":
        raise TypeError(
            f"{name}: expected a local tensor, got a DTensor; pass {name}.to_local() if it is sharded along the batch"
        )


def check_real(name: str, value: Tensor) -> None:
    if value.is_complex() or value.dtype == torch.bool or value.is_quantized:
        raise ValueError(f"{name}: expected a real dtype, got {value.dtype}")


def is_readable(value: Tensor) -> bool:
    """Whether the host may read a tensor's values: it is a plain CPU tensor, and nothing traces or fakes its ops.

    Otherwise a read costs a device sync, bakes one value into a graph, or raises.
    """
    return (
        not is_traced()
        and type(value) in (Tensor, nn.Parameter)
        and value.device.type == "cpu"
        and not torch._C._functorch.is_functorch_wrapped_tensor(value)
    )


def is_traced() -> bool:
    """Whether ops are recorded or faked rather than run: torch.compile, export, make_fx, jit.trace, FakeTensorMode."""
    if torch.compiler.is_compiling() or torch.jit.is_tracing() or _len_torch_dispatch_stack_pre_dispatch() > 0:
        return True
    # Modes with a key trace or fake ops. FlopCounterMode and a user's own modes run them.
    return torch._C._len_torch_dispatch_stack() > 0 and any(
        getattr(mode, "_mode_key", None) is not None for mode in _get_current_dispatch_mode_stack()
    )


def check_number(name: str, value: Any) -> float:
    """A finite real number as a float; NumPy scalars are accepted."""
    number = as_float(value) if isinstance(value, numbers.Real) and not isinstance(value, bool) else math.nan
    if number - number != 0.0:  # not finite; torch.compile cannot trace math.isfinite of a float that varies
        raise ValueError(f"{name}: expected a finite number, got {shown(value)}")
    return number


def check_positive(name: str, value: Any) -> float:
    number = check_number(name, value)
    if number <= 0:
        raise ValueError(f"{name}: expected a positive number, got {shown(value)}")
    return number


def as_float(value: Any) -> float:
    """float(value), but infinite where an int or a fraction is too large for a float."""
    try:
        return float(value)
    except OverflowError:
        return math.copysign(math.inf, 1 if value > 0 else -1)


def check_samples(name: str, value: Any) -> None:
    """An N-sized tensor with the batch first."""
    check_tensor(name, value)
    if value.dtype not in FLOATS:
        raise ValueError(f"{name}: expected a floating dtype (float16, bfloat16, float32, float64), got {value.dtype}")
    if value.dim() == 0:
        raise ValueError(f"{name}: expected shape (B, ...), got ()")
    if value.numel() == 0 and 0 in value.shape[1:]:
        raise ValueError(f"{name}: expected at least one element a sample, got shape {tuple(value.shape)}")


def check_like(name: str, value: Any, first: Tensor, of: str = "student") -> None:
    """An N-sized tensor of the shape and on the device of the first one, which is named `of`."""
    check_tensor(name, value)
    if value.shape != first.shape:
        raise ValueError(f"{name}: expected shape {tuple(first.shape)} like {of}, got {tuple(value.shape)}")
    if value.dtype not in FLOATS:
        raise ValueError(f"{name}: expected a floating dtype (float16, bfloat16, float32, float64), got {value.dtype}")
    if value.device != first.device:
        raise ValueError(f"{name}: expected device {first.device} like {of}, got {value.device}")


def check_per_sample(name: str, value: Any, batch: int, device: torch.device, *, heads: bool = False) -> None:
    """A real tensor (B,), or (B, H) where several heads are allowed."""
    check_tensor(name, value)
    fits = value.dim() == 1 or (heads and value.dim() == 2 and value.shape[1] > 0)
    if not fits or value.shape[0] != batch:
        expected = f"({batch},) or ({batch}, heads)" if heads else f"({batch},)"
        raise ValueError(f"{name}: expected shape {expected}, got {tuple(value.shape)}")
    check_real(name, value)
    if value.device != device:
        raise ValueError(f"{name}: expected device {device}, got {value.device}")


def one_per_sample(name: str, value: Any, batch: int, device: torch.device) -> Tensor:
    """A real tensor of one number per sample, (B,) or (B, 1, ...), or of one for all, () or (1, ...), as (B,)."""
    check_tensor(name, value)
    if any(size != 1 for size in value.shape[1:]) or (value.dim() and value.shape[0] not in (1, batch)):
        raise ValueError(
            f"{name}: expected one number a sample, of shape ({batch},) or ({batch}, 1, ...), or one for all, got "
            f"{tuple(value.shape)}"
        )
    if value.dim() != 1 or value.shape[0] != batch:
        value = value.reshape(-1).expand(batch)
    check_per_sample(name, value, batch, device)
    return value


def check_constant(name: str, value: Any) -> None:
    """No tensor that would silently get no gradient."""
    if isinstance(value, Tensor) and value.requires_grad and torch.is_grad_enabled():
        raise ValueError(f"{name}: expected a tensor without gradient, which it would not get; pass {name}.detach()")


def did_you_mean(name: Any, known: Iterable[str]) -> str:
    """The end of an unknown-name error: the nearest known name, if one is near, then all known names."""
    known = list(known)
    by_lower = {k.lower(): k for k in known}
    written = name[:LONGEST].lower() if isinstance(name, str) else ""
    near = difflib.get_close_matches(written, by_lower, n=1, cutoff=0.4)
    hint = f"; did you mean {by_lower[near[0]]!r}?" if near else "."
    return f"{hint} Known: {', '.join(known)}"


def check_choice(name: str, value: Any, choices: tuple[str, ...]) -> None:
    if not isinstance(value, str) or value not in choices:
        raise ValueError(f"{name}: expected one of {', '.join(map(repr, choices))}, got {shown(value)}")


def warn(message: str, category: type[Warning] = UserWarning) -> None:
    """Warn at the line outside of fdkernels and torch that called the library."""
    frame, level = sys._getframe(1), 2
    while frame.f_back is not None and frame.f_globals.get("__name__", "").partition(".")[0] in ("fdkernels", "torch"):
        frame, level = frame.f_back, level + 1
    warnings.warn(message, category, stacklevel=level)


def warn_once(key: str, message: str) -> None:
    if key not in warned:
        warned.add(key)
        warn(message)


def shown(value: Any) -> str:
    """A user's value for a message: like repr, but short and fast, and it never raises."""
    try:
        text = _abridged(value, 3)
    except Exception:  # from the __repr__ or __len__ of a user's class
        text = f"a value of type {type(value).__name__}"
    return text if len(text) <= LONGEST else f"{text[:LONGEST]}..."


def _abridged(value: Any, depth: int) -> str:
    """Numbers, strings and the first elements of containers; only the type of anything else.

    The repr of an arbitrary object may not end, for example that of nested YAML aliases.
    """
    if isinstance(value, (str, bytes)):
        return repr(value) if len(value) <= LONGEST else f"{value[:LONGEST]!r}..."
    if isinstance(value, int) and value.bit_length() > 128:
        return f"a whole number of {value.bit_length()} bits"
    if value is None or isinstance(value, (numbers.Number, torch.dtype, torch.device)):
        return repr(value)
    if isinstance(value, type):
        return f"the class {value.__name__}"
    left, right = _BRACKETS.get(type(value), ("", ""))
    if not left:
        return f"a value of type {type(value).__name__}"
    if not depth:
        return f"{left}...{right}"
    if isinstance(value, dict):
        first = itertools.islice(value.items(), 6)
        parts = [f"{_abridged(key, depth - 1)}: {_abridged(part, depth - 1)}" for key, part in first]
    else:
        parts = [_abridged(part, depth - 1) for part in itertools.islice(value, 6)]
    if len(value) > 6:
        parts.append("...")
    comma = "," if isinstance(value, tuple) and len(value) == 1 else ""
    return f"{left}{', '.join(parts)}{comma}{right}"


_BRACKETS: dict[type, tuple[str, str]] = {
    list: ("[", "]"), tuple: ("(", ")"), dict: ("{", "}"), set: ("{", "}"), frozenset: ("{", "}"),
}  # fmt: skip
