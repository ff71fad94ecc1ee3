"""What an op has to refuse, from the kinds of its arguments: a good call, one argument of which is spoiled."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

from fdkernels._op.arguments import Argument, ArgumentList, Table


def _gaps(v: Tensor) -> Tensor:
    return torch.stack((v, v), -1)[..., 0]


def _complex(v: Tensor) -> Tensor:
    return v.to(torch.complex64)


def _with(entries: Callable[[Tensor], Tensor]) -> Callable[[Table], Table]:
    return lambda table: Table(entries(table.entries), table.inner)


def _runs(inner: int) -> Callable[[Table], Table]:
    return lambda table: Table(table.entries, inner)


_TABLE = {
    "another batch": _with(lambda v: v[:-1]),
    "another rank": _with(lambda v: v[0]),
    "no entries": _with(lambda v: v[:, :0]),
    "another dtype": _with(lambda v: v.half()),
    "gaps": _with(_gaps),
    **{f"runs of {inner}": _runs(inner) for inner in (0, -1, 7, 1 << 62, (1 << 63) - 1)},
}
# By kind: fault -> from a good operand to a bad one.
RAW: dict[str, dict[str, Callable[[Any], Any]]] = {
    "samples": {
        "another shape": lambda v: v[..., :-1].contiguous(),
        "another batch": lambda v: v[:-1],
        "another rank": lambda v: v.flatten(1),
        "integers": Tensor.int,
        "complex": _complex,
        "gaps": _gaps,
        "expanded": lambda v: v[..., :1].expand(v.shape),
    },
    "per_sample": {
        "another batch": lambda v: v[:-1],
        "one for all": lambda v: v[:1],
        "another rank": lambda v: v[:, None],
        "complex": _complex,
    },
    "logits": {
        "another batch": lambda v: v[:-1],
        "rank 3": lambda v: v[..., None],
        "no heads": lambda v: v[:, :0],
        "integers": Tensor.int,
        "complex": _complex,
    },
    "scalar": {"two values": lambda v: torch.stack((v, v)), "complex": _complex},
    "state": {
        "no bins": lambda v: v[:0],
        "another rank": lambda v: v[None],
        "another dtype": Tensor.double,
        "gaps": _gaps,
    },
    "edges": {
        "one too many": lambda v: torch.cat((v, v[-1:])),
        "another rank": lambda v: v[None],
        "another dtype": Tensor.float,
        "gaps": _gaps,
    },
    "table": _TABLE,
    "mask": {**_TABLE, "another dtype": _with(Tensor.float)},
    "choice": {"unknown": lambda v: f"{v}?"},
    "number": {"not finite": lambda v: torch.inf},
    "flag": {},
}
# Of a tensor that nothing comes before: the others have to fit to it, so its own shape is wrong in these ways alone.
FIRST = {"no batch": lambda v: v.flatten()[0], "nothing in a sample": lambda v: v[..., :0]}
BESIDE_OTHERS = ("another shape", "another batch", "another rank")
TENSORS = ("samples", "per_sample", "logits", "scalar", "state", "edges", "table", "mask")


def _faults(entry: Argument, first: bool) -> dict[str, Callable[[Any], Any]]:
    faults = dict(RAW[entry.kind])
    if first:
        faults = {fault: of for fault, of in faults.items() if fault not in BESIDE_OTHERS} | FIRST
    if entry.kind in ("samples", "per_sample", "logits") and (first or not entry.optional):
        faults["missing"] = lambda v: None
    return faults


def of_list(arguments: ArgumentList) -> list[str]:
    """'argument: fault', for each argument of a raw op and each fault of its kind."""
    entries = enumerate(arguments.entries)
    return [f"{entry.name}: {fault}" for at, entry in entries for fault in _faults(entry, at == 0)]


def spoiled(arguments: ArgumentList, call: Any, what: str) -> list[Any]:
    """The operands of a call with one of those faults."""
    name, _, fault = what.partition(": ")
    at = next(i for i, entry in enumerate(arguments.entries) if entry.name == name)
    return _replaced(arguments, call, name, _faults(arguments.entries[at], at == 0)[fault])


def elsewhere(arguments: ArgumentList, call: Any, name: str) -> list[Any]:
    """The operands of a call, a tensor of which is on a device without memory, or on the CPU beside those on a GPU."""

    def moved(value: Any) -> Any:
        return Table(moved(value.entries), value.inner) if isinstance(value, Table) else value.to(device)

    device = "meta" if arguments.flat(call)[0].device.type == "cpu" else "cpu"
    return _replaced(arguments, call, name, moved)


def _replaced(arguments: ArgumentList, call: Any, name: str, change: Callable[[Any], Any]) -> list[Any]:
    operands, at = arguments.operands(call), arguments.names.index(name)
    if name in arguments.numbers:  # a graph computes them: those that it was called with are checked before
        numbers = [operands[arguments.names.index(each)] for each in arguments.numbers]
        numbers[arguments.numbers.index(name)] = change(operands[at])
        operands[-1] = torch.tensor(numbers, dtype=torch.float64)
    elif f"{name}_inner" in arguments.names:
        operands[at : at + 2] = change(Table(*operands[at : at + 2]))
    else:
        assert operands[at] is not None, f"{name}: the call to be spoiled has none"
        operands[at] = change(operands[at])
    return operands


def is_refused(run: Callable[..., Any], operands: list[Any], name: str) -> bool:
    """Whether a RuntimeError names the argument, in our words or in PyTorch's."""
    try:
        run(*operands)
    except Exception as error:
        return isinstance(error, RuntimeError) and re.search(rf"\b{name}: |'{name}'", str(error)) is not None
    return False


# The same of a public call: kind -> fault -> (from a good tensor to a bad one, what the message says has come).
def _shape(v: Tensor) -> str:
    return str(tuple(v.shape))


def _dtype(v: Tensor) -> str:
    return str(v.dtype)


_Public = dict[str, tuple[Callable[[Tensor], Any], Callable[[Any], str]]]
_ANY: _Public = {
    "complex": (_complex, _dtype),
    "booleans": (Tensor.bool, _dtype),
    "elsewhere": (lambda v: v.to("meta"), lambda v: "meta"),
    "sparse": (Tensor.to_sparse, lambda v: "layout torch.sparse_coo"),
    "a list": (Tensor.tolist, lambda v: "list"),
    "one for all": (lambda v: v[:1], _shape),
    "another batch": (lambda v: v[:-1], _shape),
}
PUBLIC: dict[str, _Public] = {
    "samples": {
        **_ANY,
        "integers": (Tensor.int, _dtype),
        "another shape": (lambda v: v[..., :-1], _shape),
        "another rank": (lambda v: v.flatten(1), _shape),
    },
    "logits": {
        **_ANY,
        "integers": (Tensor.int, _dtype),
        "another rank": (lambda v: v.reshape(len(v), -1, 1), _shape),
        "no heads": (lambda v: v.reshape(len(v), -1)[:, :0], _shape),
    },
    "per_sample": {**_ANY, "another rank": (lambda v: v[:, None], _shape)},
}  # fmt: skip
_OF_FIRST = ("complex", "booleans", "sparse", "a list", "integers", "no heads")


def of_tensors(entries: Iterable[Argument]) -> list[str]:
    """'argument: fault', for the tensors of a public call."""
    return [
        f"{entry.name}: {fault}"
        for at, entry in enumerate(entries)
        for fault in PUBLIC[entry.kind]
        if at > 0 or fault in _OF_FIRST
    ]


def misused(entry: Argument, fault: str, tensor: Tensor) -> tuple[Any, str]:
    """(what to pass in place of a tensor, a pattern of the message)."""
    spoil, came = PUBLIC[entry.kind][fault]
    bad, shape = spoil(tensor), str(tuple(tensor.shape)) if entry.kind == "samples" else f"({len(tensor)},"
    expected = re.escape(shape) if came is _shape else ""
    return bad, rf"^{entry.name}: expected .*{expected}.*got {re.escape(came(bad))}"
