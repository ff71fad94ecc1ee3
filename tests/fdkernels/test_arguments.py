"""An op's argument list is the same in Python and C++, and a call converts to operands and back."""

import pytest
import torch

from fdkernels import _core
from fdkernels._op.arguments import Table
from fdkernels._op.registry import KERNELS, ops
from fdkernels.prediction import KINDS
from tests.ops import raw_fdiv

pytestmark = pytest.mark.cpu_only("lists")


def test_python_and_cpp_have_the_same_list(op):
    entries = op.arguments.entries
    listed = [(f"{entry.kind}_or_none" if entry.optional else entry.kind, entry.name) for entry in entries]
    assert listed == _core.arguments(op.name)
    with pytest.raises(ValueError, match="op: expected .*fdiv"):
        _core.arguments(f"{op.name}s")


@pytest.mark.parametrize("kernels", KERNELS)
def test_the_registered_schema_is_the_list(op, kernels):
    schema = getattr(torch.ops.fdkernels, f"{op.name}_{kernels}").default._schema
    assert [argument.name for argument in schema.arguments] == [*op.arguments.names, "numbers"]


def test_the_kinds_of_predictions_are_those_of_the_table():
    for name in ("fdiv", "noising", "denoising"):
        kinds = next(entry.choices for entry in ops[name].arguments.entries if entry.name == "prediction")
        assert list(kinds) == list(KINDS)


def test_there_and_back():
    arguments, call = ops["fdiv"].arguments, raw_fdiv(multiplier=Table(torch.ones(4, 3), 30))
    operands = arguments.operands(call)
    assert len(operands) == len(arguments.names) + 1 and operands[-1] is None
    again = arguments.call(*operands)
    assert again.weighting == call.weighting and again.multiplier == call.multiplier
    assert all(one is other for one, other in zip(arguments.flat(again), arguments.flat(call), strict=True))


def test_floats_that_are_no_constants_travel_in_numbers():
    arguments = ops["fdiv"].arguments
    call = raw_fdiv()._replace(eps=torch.tensor(0.25))
    *operands, numbers = arguments.operands(call)
    at = dict(zip(arguments.names, operands, strict=True))
    assert all(at[name] == 0.0 for name in arguments.numbers)
    assert arguments.call(*operands, numbers).eps == 0.25
    assert arguments.call(*operands, numbers).guidance_scale == call.guidance_scale
    assert arguments.traced(call).eps == 0.25 and arguments.traced(raw_fdiv()).eps == 1e-6
