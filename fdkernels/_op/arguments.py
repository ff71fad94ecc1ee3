"""An op's argument list: a NamedTuple whose annotations say what each argument is.

The list is written once in Python, in `<op>/arguments.py`, and once in C++, in `csrc/<op>/arguments.h`; a test compares
the two. The list determines the op's schema, the order of its operands and the checks of a raw call.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Annotated, Any, NamedTuple, get_args, get_origin, get_type_hints

from torch import Tensor

from fdkernels._op import floats


class Table(NamedTuple):
    """A small operand: (B or 1, R) entries. Element i of a sample reads entry (i // inner) % R (`views.py`)."""

    entries: Tensor | None = None
    inner: int = 1


Samples = Annotated[Tensor, "samples"]
"""(B, *S), floating: N-sized, batch first, each sample dense in the student's memory order."""
PerSample = Annotated[Tensor, "per_sample"]
"""(B,), real."""
Logits = Annotated[Tensor, "logits"]
"""(B,) or (B, heads), floating."""
Scalar = Annotated[Tensor, "scalar"]
"""One real value, on the samples' device or the CPU."""
Seed = Annotated[Tensor, "seed"]
"""One int64 value on the samples' device."""
State = Annotated[Tensor, "state"]
"""(bins,) float32, contiguous; a call may write it."""
Edges = Annotated[Tensor, "edges"]
"""(bins - 1,) float64, contiguous."""
FloatTable = Annotated[Table, "table"]
"""float32 or float64 entries."""
MaskTable = Annotated[Table, "mask"]
"""bool entries."""
Number = Annotated[float | Tensor, "number"]
"""A finite float. torch.compile can turn it into a tensor (`floats.py`); a launcher always gets a float."""
Flag = Annotated[bool, "flag"]
Choice = Annotated[str, "choice"]
"""One of the names that the annotation lists: Annotated[Choice, "mean", "sum", "none"]."""
Kind = Annotated[Choice, "sample", "epsilon", "v_prediction", "flow_prediction", "edm", "affine"]
"""What a network predicts (`prediction.py`)."""

_SCHEMA = {
    "samples": "Tensor", "per_sample": "Tensor", "logits": "Tensor", "scalar": "Tensor", "seed": "Tensor",
    "state": "Tensor(a!)", "edges": "Tensor", "table": "Tensor?", "mask": "Tensor?", "number": "float",
    "flag": "bool", "choice": "str",
}  # fmt: skip


class Argument(NamedTuple):
    """One entry of a list."""

    name: str
    kind: str
    optional: bool = False
    choices: tuple[str, ...] = ()

    @property
    def operands(self) -> tuple[str, ...]:
        """The argument's names in the schema: a table has two."""
        return (self.name, f"{self.name}_inner") if self.kind in ("table", "mask") else (self.name,)

    @property
    def schema(self) -> str:
        declared = f"{_SCHEMA[self.kind]}{'?' if self.optional else ''} {self.name}"
        return ", SymInt ".join((declared, *self.operands[1:]))


class ArgumentList:
    """The argument list of a NamedTuple class. A field may be another list, whose entries take the field's place."""

    def __init__(self, arguments: type[Any]) -> None:
        self.tuple = arguments
        self.entries: tuple[Argument, ...] = ()
        self._tuples: dict[int, Any] = {}
        """Fields that are themselves tuples, by position: tables and nested lists."""
        for position, (name, hint) in enumerate(get_type_hints(arguments, include_extras=True).items()):
            if isinstance(hint, type):
                self._tuples[position] = ArgumentList(hint)
                self.entries += self._tuples[position].entries
                continue
            entry = _argument(name, hint)
            self.entries += (entry,)
            if entry.kind in ("table", "mask"):
                self._tuples[position] = Table
        self.names = tuple(name for entry in self.entries for name in entry.operands)
        self.numbers = tuple(entry.name for entry in self.entries if entry.kind == "number")
        self._numbers_at = [self.names.index(name) for name in self.numbers]

    @property
    def schema(self) -> str:
        """The schema of an op that takes these arguments."""
        return ", ".join(entry.schema for entry in self.entries) + ", Tensor? numbers=None"

    def flat(self, call: Any) -> list[Any]:
        """A call's entries in the schema's order."""
        values: list[Any] = []
        start = 0
        for position, part in self._tuples.items():
            values += call[start:position]
            # torch 2.11's Dynamo adds no NamedTuple to a list; a slice is a plain tuple.
            values += call[position][:] if part is Table else part.flat(call[position])
            start = position + 1
        values += call[start:]
        return values

    def operands(self, call: Any) -> list[Any]:
        """The op's operands: `flat`, then `numbers`, which carries all floats if some of them are not constants."""
        values = self.flat(call)
        numbers = floats.carried([values[at] for at in self._numbers_at])
        if numbers is not None:
            for at in self._numbers_at:
                values[at] = 0.0
        values.append(numbers)
        return values

    def call(self, *operands: Any) -> Any:
        """The call, rebuilt from an op's operands for a launcher; floats come from `numbers` if it is given."""
        *values, numbers = operands if len(operands) > len(self.names) else (*operands, None)
        return self.build(values if numbers is None else self._with(values, floats.checked(numbers, self.numbers)))

    def build(self, values: Iterable[Any]) -> Any:
        """The call, rebuilt from operands without `numbers`."""
        values = iter(values)  # a nested list continues the same iterator
        fields = []
        for position in range(len(self.tuple._fields)):
            part = self._tuples.get(position)
            if part is None:
                fields.append(next(values))
            else:
                fields.append(Table(next(values), next(values)) if part is Table else part.build(values))
        return self.tuple(*fields)

    def traced(self, call: Any) -> Any:
        """A call for code that a compiler may be tracing: if some floats are not constants, all floats become 0-d
        tensors on the samples' device."""
        *values, numbers = self.operands(call)
        if numbers is None:
            return call
        device = next(value.device for value in values if isinstance(value, Tensor))
        return self.build(self._with(values, numbers.to(device).unbind(0)))

    def _with(self, operands: Iterable[Any], numbers: Any) -> list[Any]:
        values = list(operands)
        for at, number in zip(self._numbers_at, numbers, strict=True):
            values[at] = number
        return values


def _argument(name: str, hint: Any) -> Argument:
    alternatives = get_args(hint) if get_origin(hint) is not Annotated else (hint,)
    kind, *choices = get_args(next(each for each in alternatives if each is not type(None)))[1:]
    return Argument(name, kind, type(None) in alternatives, tuple(choices))
