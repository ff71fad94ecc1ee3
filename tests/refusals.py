"""Calls that an op has to refuse, made from the kinds of its arguments: a good call with one argument spoiled."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

from fdkernels._op.arguments import Argument, ArgumentList

# Functions from a good tensor to a bad one. The tables below say which of them are faults of which kind of argument.
OF_TENSORS: dict[str, Callable[[Tensor], Any]] = {
    "another shape": lambda v: v[..., :-1].contiguous(),
    "another batch": lambda v: v[:-1],
    "one for all": lambda v: v[:1],
    "one dimension less": lambda v: v.flatten(1) if v.dim() > 2 else v[0],
    "one dimension more": lambda v: v[..., None] if v.dim() > 1 else v[:, None, None],
    "one too many": lambda v: torch.cat((v, v[-1:])),
    "two values": lambda v: torch.stack((v, v)),
    "no batch": lambda v: v.flatten()[0],
    "none": lambda v: v[..., :0],
    "integers": Tensor.int,
    "complex": lambda v: v.to(torch.complex64),
    "booleans": Tensor.bool,
    "another float": lambda v: v.to(torch.float32 if v.dtype == torch.float64 else torch.float64),
    "half": Tensor.half,
    "another integer": Tensor.int,
    "gaps": lambda v: torch.stack((v, v), -1)[..., 0],
    "expanded": lambda v: v[..., :1].expand(v.shape),
    "elsewhere": lambda v: v.to("meta"),
    "sparse": Tensor.to_sparse,
    "a list": Tensor.tolist,
    "missing": lambda v: None,
}
TABLE = ("another batch", "one dimension less", "none", "gaps")
RUNS = {f"runs of {inner}": inner for inner in (0, -1, 7, 1 << 62, (1 << 63) - 1)}
# The faults of each kind. A flag has none.
OF_RAW: dict[str, tuple[str, ...]] = {
    "samples": (
        "another shape", "another batch", "one dimension less", "integers", "complex", "gaps", "expanded", "missing",
    ),
    "per_sample": ("another batch", "one for all", "one dimension more", "complex", "missing"),
    "logits": ("another batch", "one dimension more", "none", "integers", "complex", "missing"),
    "scalar": ("two values", "complex"),
    "seed": ("two values", "another integer", "half"),
    "state": ("none", "two values", "another float", "gaps"),
    "edges": ("one too many", "two values", "another float", "gaps"),
    "table": (*TABLE, "half", *RUNS),
    "mask": (*TABLE, "half", *RUNS),
    "choice": ("unknown",),
    "number": ("not finite",),
    "flag": (),
}  # fmt: skip
ANY = ("one for all", "another batch", "one dimension more", "complex", "booleans", "elsewhere", "sparse", "a list")
OF_PUBLIC = {
    "samples": (*ANY, "another shape", "one dimension less", "integers"),
    "logits": (*ANY, "none", "integers"),
    "per_sample": ANY,
    "table": ("another batch", "complex", "booleans", "elsewhere", "sparse", "a list"),
}
# Faults that the first tensor cannot have: the others must fit it, so the message blames one of them, or nothing.
BESIDE_OTHERS = (
    "another shape",
    "another batch",
    "one for all",
    "one dimension less",
    "one dimension more",
    "elsewhere",
)
TENSORS = tuple(kind for kind in OF_RAW if kind not in ("choice", "number", "flag"))


def _faults(entry: Argument, first: bool) -> Iterable[str]:
    faults = OF_RAW[entry.kind]
    if first:
        return dict.fromkeys((*(fault for fault in faults if fault not in BESIDE_OTHERS), "no batch", "none"))
    return [fault for fault in faults if fault != "missing" or not entry.optional]


def of_list(arguments: ArgumentList) -> list[str]:
    """'argument: fault', for each argument of a raw op and each fault of its kind."""
    entries = enumerate(arguments.entries)
    return [f"{entry.name}: {fault}" for at, entry in entries for fault in _faults(entry, at == 0)]


def of_tensors(entries: Iterable[Argument]) -> list[str]:
    """The same for the tensors of a public call. The others must fit the first tensor."""
    return [
        f"{entry.name}: {fault}"
        for at, entry in enumerate(entries)
        for fault in OF_PUBLIC[entry.kind]
        if at > 0 or fault not in BESIDE_OTHERS
    ]


def spoiled(arguments: ArgumentList, call: Any, what: str) -> list[Any]:
    """The operands of a raw call with one of the faults of `of_list`."""
    name, _, fault = what.partition(": ")
    operands, at = arguments.operands(call), arguments.names.index(name)
    good = operands[at]
    if name in arguments.numbers:  # a graph computes these as it runs; plain floats were checked before
        numbers = [torch.inf if each == name else operands[arguments.names.index(each)] for each in arguments.numbers]
        operands[-1] = torch.tensor(numbers, dtype=torch.float64)
    elif fault in RUNS:
        operands[at + 1] = RUNS[fault]
    elif fault == "elsewhere":
        operands[at] = good.to("meta" if arguments.flat(call)[0].device.type == "cpu" else "cpu")
    else:
        assert good is not None, f"{name}: the call to be spoiled has none"
        operands[at] = f"{good}?" if fault == "unknown" else OF_TENSORS[fault](good)
    return operands


def is_refused(run: Callable[..., Any], operands: list[Any], name: str) -> bool:
    """Whether a RuntimeError names the argument, in our words or in PyTorch's."""
    try:
        run(*operands)
    except Exception as error:
        return isinstance(error, RuntimeError) and re.search(rf"\b{name}: |'{name}'", str(error)) is not None
    return False


def misused(entry: Argument, fault: str, good: Tensor) -> tuple[Any, str]:
    """(the bad value for a public call's tensor, a pattern of the message)."""
    bad, expected = OF_TENSORS[fault](good), ""
    if not isinstance(bad, Tensor):
        came = type(bad).__name__
    elif bad.layout != good.layout:
        came = f"layout {bad.layout}"
    elif bad.device.type == "meta":
        came = "meta"
    elif bad.dtype != good.dtype:
        came = str(bad.dtype)
    else:
        came = str(tuple(bad.shape))
        expected = str(tuple(good.shape)) if entry.kind == "samples" else f"({len(good)},"
    return bad, rf"^{entry.name}: expected .*{re.escape(expected)}.*got {re.escape(came)}"
