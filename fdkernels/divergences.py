"""The f-divergences and their weights h(r) = r² f''(r), written as log h of the log ratio L = log r.

Sources: f-distill (arXiv 2502.15681), Table 1, with the exact constants of r² f''(r). In the log domain every entry is
affine in L and softplus(L), so nothing overflows or cancels at any finite L. `csrc/fdiv/divergences.h` and
`_triton/divergences.py` hold the same table for the kernels; tests compare them.
"""

from __future__ import annotations

import functools
import inspect
import math
import os
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from types import FunctionType
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from fdkernels._op.checks import check_number, did_you_mean, shown
from fdkernels._op.floats import is_constant

LOG_2 = math.log(2.0)


def softplus(x: Tensor) -> Tensor:
    """log(1 + e^x), exact to rounding in both tails. torch's own drops e^-x beyond x = 20: 2e-9 of h in float64."""
    return -logsigmoid(-x)


@dataclass(frozen=True)
class Divergence:
    """An f-divergence, given by its weight h(r) = r² f''(r).

    Args:
        name: the name that `divergence=` takes.
        log_weight: maps L = log r, a float64 tensor of any shape, to log h(e^L), elementwise and differentiable or not.
        aliases: other names that `divergence=` takes.

    A built-in divergence also has `kernel`, its row in the kernels' tables, and Amari's has `alpha`, its parameter. A
    user's divergence has neither: its `log_weight` runs in PyTorch.

    Raises:
        TypeError: a name or alias that is not a string, or a log_weight that can't be called.

    Example:
        >>> tempered = fdk.Divergence("tempered_kl", lambda log_ratio: 0.5 * log_ratio)  # h(r) = sqrt(r)
        >>> fdk.fdiv_weight(torch.tensor([0.0, 2.0]), divergence=tempered, normalize_weight=False)
        tensor([1.0000, 2.7183])
    """

    name: str
    log_weight: Callable[[Tensor], Tensor] = field(repr=False)
    aliases: tuple[str, ...] = ()
    kernel: str | None = field(default=None, init=False)
    alpha: float | None = field(default=None, init=False)

    def __post_init__(self) -> None:
        if not isinstance(self.aliases, tuple) or not all(isinstance(name, str) for name in (self.name, *self.aliases)):
            raise TypeError(
                f"Divergence: expected a str name and a tuple of str aliases, got {shown(self.name)}, "
                f"{shown(self.aliases)}"
            )
        if not callable(self.log_weight):
            raise TypeError(f"log_weight: expected a function of log r, got {type(self.log_weight).__name__}")

    def __reduce__(self) -> Any:
        # A built-in divergence is pickled by name, because pickle can't store its lambda. So is a registered one whose
        # function pickle can't find.
        if self.kernel is not None or (_registry.get(self.name) is self and not _is_importable(self.log_weight)):
            return resolve, (self.name,)
        return Divergence, (self.name, self.log_weight, self.aliases)


def _is_importable(function: Callable[..., Any]) -> bool:
    """Whether pickle can find a function, by its name in its module or as an object."""
    function = _unwrapped(function)
    return not isinstance(function, FunctionType) or "<" not in function.__qualname__


def _unwrapped(function: Any) -> Any:
    while isinstance(function, functools.partial):
        function = function.func
    return function


def _builtin(
    name: str,
    log_weight: Callable[[Tensor], Tensor],
    *aliases: str,
    row: str | None = None,
    alpha: float | Tensor | None = None,
) -> Divergence:
    divergence = Divergence(name, log_weight, aliases)
    object.__setattr__(divergence, "kernel", row or name)
    object.__setattr__(divergence, "alpha", alpha)
    return divergence


_BUILTINS = (
    _builtin("rkl", torch.zeros_like, "reverse_kl"),
    _builtin("kl", lambda L: L, "forward_kl"),
    _builtin("js", logsigmoid, "jensen_shannon"),
    _builtin("softened_rkl", lambda L: logsigmoid(-L), "sf"),
    _builtin("squared_hellinger", lambda L: 0.5 * L - 2 * LOG_2, "sh"),
    _builtin("jeffreys", softplus, "jf"),
    _builtin("neyman", lambda L: LOG_2 - L),
    _builtin("pearson", lambda L: LOG_2 + 2 * L),
    _builtin("le_cam", lambda L: 3 * LOG_2 + 2 * L - 3 * softplus(L)),
)

_registry: dict[str, Divergence] = {d.name: d for d in _BUILTINS}
_by_alias: dict[str, Divergence] = {name: d for d in _BUILTINS for name in (d.name, *d.aliases)}

_ALPHA_CALL = re.compile(r"alpha\(\s*([^()]+?)\s*\)")
_TOTAL_VARIATION = frozenset({"tv", "total_variation"})


def alpha(a: float) -> Divergence:
    """Amari's alpha family: f''(r) = r^(a-2), so h(r) = r^a.

    a = 0, 1, 2, -1, 1/2 are rkl, kl, pearson, neyman and squared Hellinger up to a constant factor of h, which
    `normalize_weight` cancels. Also spelled `divergence="alpha(0.5)"`.

    Raises:
        ValueError: a is not finite.

    Example:
        >>> fdk.fdiv_weight(torch.tensor([0.0, 2.0]), divergence=fdk.alpha(0.5), normalize_weight=False)
        tensor([1.0000, 2.7183])
    """
    a = check_number("alpha", a)
    name = f"alpha({a!r})" if is_constant(a) else "alpha"  # a torch.compile symbol has no value to put into the name
    return _builtin(name, lambda L: a * L, row="alpha", alpha=a)


def divergences() -> dict[str, Divergence]:
    """Every registered divergence by its name. `alpha(a)` is a family, made on demand, and is not listed.

    Example:
        >>> [name for name, divergence in fdk.divergences().items() if divergence.kernel]  # the built-in ones
        ['rkl', 'kl', 'js', 'softened_rkl', 'squared_hellinger', 'jeffreys', 'neyman', 'pearson', 'le_cam']
    """
    return dict(_registry)


def register_divergence(divergence: Divergence) -> Divergence:
    """Make a divergence of your own available by name.

    On every backend its weight runs in PyTorch (`log_weight` on a float64 tensor), followed by the fused kernel. A name
    that is registered again from the same place, as when a notebook cell runs twice, replaces the earlier divergence.
    All cells count as one place, where functions are told apart by name only: under one divergence name, lambdas of two
    cells replace each other.

    Raises:
        TypeError: not a `Divergence`.
        ValueError: a name or alias is taken, by a built-in divergence or by a function from another place.

    Example:
        >>> registered = fdk.register_divergence(fdk.Divergence("square_root", lambda log_ratio: 0.5 * log_ratio))
        >>> fdk.fdiv_weight(torch.tensor([0.0, 2.0]), divergence="square_root", normalize_weight=False)
        tensor([1.0000, 2.7183])
    """
    if not isinstance(divergence, Divergence):
        raise TypeError(f"register_divergence: expected a Divergence, got {type(divergence).__name__}")
    names = (divergence.name, *divergence.aliases)
    earlier = [_by_alias[name] for name in names if name in _by_alias]
    for name in names:
        owner = _by_alias.get(name)
        replaces = owner is None or (
            owner.kernel is None and owner.name in names and _place(owner) == _place(divergence)
        )
        if not replaces or name in _TOTAL_VARIATION or _ALPHA_CALL.fullmatch(name):
            raise ValueError(f"register_divergence: the name {shown(name)} is taken")
    for owner in earlier:
        _registry.pop(owner.name, None)
        for name in (owner.name, *owner.aliases):
            _by_alias.pop(name, None)
    _registry[divergence.name] = divergence
    _by_alias.update(dict.fromkeys(names, divergence))
    return divergence


def _place(divergence: Divergence) -> Any:
    """Where its function was written. It stays the same when a cell, a reload or a repeated call defines it again."""
    function = _unwrapped(divergence.log_weight)
    function = inspect.unwrap(getattr(function, "__func__", function))
    if isinstance(function, FunctionType):
        name, code = (function.__module__, function.__qualname__), function.__code__
        # A cell's file name changes with its text. No such file exists, unless ipykernel's debugger wrote it.
        from_cell = not os.path.exists(code.co_filename) or "ipykernel_" in code.co_filename
        return name if from_cell or "<lambda>" not in name[1] else (*name, code.co_filename, code.co_firstlineno)
    kind = type(function)
    is_of_the_user = kind.__module__.partition(".")[0] not in ("builtins", "torch", "numpy")
    return (kind.__module__, kind.__qualname__) if is_of_the_user else id(function)


def from_kernel(row: str, alpha_parameter: float | Tensor) -> Divergence:
    """The divergence of a row in the kernels' tables, as ops name it. Alpha's parameter may be a 0-d tensor."""
    if row == "alpha":
        return _builtin("alpha", lambda L: alpha_parameter * L, row=row, alpha=alpha_parameter)
    return _registry[row]


def resolve(divergence: str | Divergence) -> Divergence:
    """The divergence of a name or alias; a `Divergence` is returned as it is."""
    if isinstance(divergence, str):
        found = _by_alias.get(divergence)
        return found if found is not None else _resolve_unlisted(divergence)
    if isinstance(divergence, Divergence):
        return divergence
    raise TypeError(f"divergence: expected a name or a Divergence, got {type(divergence).__name__}")


def _resolve_unlisted(name: str) -> Divergence:
    call = _ALPHA_CALL.fullmatch(name)
    if call:
        try:
            return alpha(float(call[1]))
        except ValueError:
            raise ValueError(f"divergence: expected alpha(a) with a finite number a, got {shown(name)}") from None
    if name in _TOTAL_VARIATION:
        raise ValueError(
            "divergence: total variation has f''(r) = 0 almost everywhere, so its weight is zero and gives no gradient"
        )
    raise ValueError(f"divergence: unknown name {shown(name)}{did_you_mean(name, [*_by_alias, 'alpha(a)'])}")
