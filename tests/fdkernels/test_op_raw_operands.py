"""Every raw op, called past the public API, refuses an argument that does not fit by name; it never reads past it."""

from typing import NamedTuple

import pytest
import torch

from fdkernels import backends
from fdkernels._op import operands, registry
from fdkernels._op.arguments import ArgumentList, Edges, Logits, MaskTable, PerSample, Samples, State, Table
from tests import device, refusals
from tests.device import place
from tests.ops import OPS

pytestmark = [pytest.mark.contract("raw operands"), pytest.mark.backends("native", "triton")]


def raw(op, backend, name=None):
    """The loaded op, or another one of that name."""
    assert device.on_software or backends.choose(backend, device.name()) == backend
    return registry.kernels[f"{name or op.name}_{backend}"]


def test_the_call_that_others_spoil(op, backend):
    for changes in ({}, *op.raw_beside.values()):
        result, *_ = raw(op, backend)(*op.arguments.operands(op.raw(**changes)))
        assert result.isfinite().all()


def test_refused(op, backend, spoiled):
    name = spoiled.partition(":")[0]
    call = op.raw(**op.raw_beside.get(name, {}))
    values = op.arguments.operands(call)
    names = op.arguments.names
    states = [values[names.index(entry.name)] for entry in op.arguments.entries if entry.kind == "state"]
    states = [state for state in states if state is not None]
    before = [state.clone() for state in states]
    assert refusals.is_refused(raw(op, backend), refusals.spoiled(op.arguments, call, spoiled), name)
    assert all(map(torch.equal, states, before))


@pytest.mark.host_code("the software device's memory is the host's")
def test_refused_elsewhere(op, backend):
    """Call the kernel of the first argument's device itself: PyTorch takes the fake if an operand is a meta tensor."""
    raw(op, backend)  # loads the op
    kernel = getattr(torch.ops.fdkernels, f"{op.name}_{backend}").default
    key = torch._C.DispatchKeySet(getattr(torch._C.DispatchKey, device.name().upper()))
    may_be_elsewhere = () if device.name() == "cpu" else ("scalar",)  # on the CPU beside samples on a GPU
    for entry in op.arguments.entries[1:]:
        if entry.kind not in refusals.TENSORS or entry.kind in may_be_elsewhere:
            continue
        bad = refusals.spoiled(op.arguments, op.raw(**op.raw_beside.get(entry.name, {})), f"{entry.name}: elsewhere")
        assert refusals.is_refused(lambda *given: kernel.redispatch(key, *given), bad, entry.name), entry.name


# Rules of fdiv that the kinds of its arguments do not state.
RULES = {
    "weight": {"weight": torch.ones(4)},
    "divisor": {"divisor": torch.tensor(50.0), "reduction": "none"},
    "edges": {"ratio_mean": None, "update": False},
    "t": {"t": None},
}


@pytest.mark.parametrize("name", RULES)
def test_what_excludes_or_needs_another(backend, name):
    op = OPS["fdiv"]
    assert refusals.is_refused(raw(op, backend), op.arguments.operands(op.raw(**RULES[name])), name)


UNSCALE = {
    "expanded": torch.tensor([2.0]).expand(4),
    "bfloat16": torch.full((4,), 2.0, dtype=torch.bfloat16),
    "float64": torch.full((4,), 2.0, dtype=torch.float64),
    "strided": torch.tensor([2.0, 0.0] * 4)[::2],
}


@pytest.mark.parametrize("unscale", UNSCALE)
def test_scale_reads_unscale_as_it_is(backend, unscale):
    ones = place(torch.ones(4, 3))
    (gradient,) = raw(OPS["fdiv"], backend, "scale")([ones], ones[:, 0].clone(), [place(UNSCALE[unscale])])
    assert torch.equal(gradient, 2 * ones)


@pytest.mark.parametrize("name", ("scale", "scale_"))
def test_scale_refuses_before_it_writes(backend, name):
    ones, none = place({0: torch.ones(5, 3), 1: torch.ones(0)}).values()
    in_place = "_" if name.endswith("_") else ""
    scale = registry.kernels[f"scale_{backend}{in_place}"]
    assert refusals.is_refused(scale, [[ones], ones[:, 0], [ones[:3, 0]]], "unscale")
    assert refusals.is_refused(scale, [[ones], ones[:4, 0], [none]], "upstream")
    assert refusals.is_refused(scale, [[ones, ones[:3]], ones[:, 0], [none, none]], "upstream")
    assert refusals.is_refused(scale, [[ones, ones.int()], ones[:, 0] * 2, [none, none]], "gradient")
    assert refusals.is_refused(scale, [[ones, ones[0, 0]], ones[:1, 0], [none, none]], "upstream|gradient")
    assert refusals.is_refused(scale, [[ones, ones.mT], ones[0, 0] * 2, [none, none]], "gradient")
    assert refusals.is_refused(scale, [[ones, ones], ones[:, 0].cfloat() * 2, [none, none]], "upstream")
    assert refusals.is_refused(scale, [[ones, ones], ones[:, 0], [none]], "unscales")
    assert refusals.is_refused(scale, [[], ones[:, 0], []], "gradients")
    assert (ones == 1).all()


@pytest.mark.parametrize("count", (1, 2, 3, 4, 7))
@pytest.mark.parametrize("each", (False, True))
def test_scale_takes_any_number_of_gradients(backend, count, each):
    """Of any dtypes and sizes, some of them empty, with and without unscale; out of place and in place."""
    generator = torch.Generator().manual_seed(count)
    dtypes = (torch.float32, torch.float16, torch.float64, torch.bfloat16)
    shapes = ((5, 3), (5, 7, 300), (5, 0), (5,), (5, 2, 2, 2), (5, 1031), (5, 1))
    gradients = [
        torch.randn(shapes[n], generator=generator, dtype=torch.float64).to(dtypes[n % 4]) for n in range(count)
    ]
    upstream = torch.tensor([0.5, 1.0, -3.0, 0.0, 2.0]) if each else torch.tensor(-1.5)
    unscales = [upstream.abs() + 0.25 if n % 2 else torch.ones(0) for n in range(count)]
    expected = [registry.scaled(*given) for given in zip(gradients, [upstream] * count, unscales, strict=True)]
    given = [place(v) for v in gradients], place(upstream), [place(v) for v in unscales]
    found = raw(OPS["fdiv"], backend, "scale")(*given)
    assert all(torch.equal(a.cpu(), b) and a.dtype == b.dtype for a, b in zip(found, expected, strict=True))
    registry.kernels[f"scale_{backend}_"](*given)
    assert all(torch.equal(a.cpu(), b) for a, b in zip(given[0], expected, strict=True))


class ToyArguments(NamedTuple):
    x: Samples
    y: Samples
    t: PerSample
    logits: Logits
    mean: State
    edges: Edges | None
    mask: MaskTable


TOY = ArgumentList(ToyArguments)
# Kept: torch.ops goes on listing the ops of a library that is gone, which breaks Inductor's import in torch 2.11.
TOY_LIBRARY = torch.library.Library("fdkernels_toy", "FRAGMENT")
TOY_CALL = ToyArguments(
    torch.ones(4, 3, 5), torch.ones(4, 3, 5), torch.ones(4), torch.ones(4, 2), torch.ones(5),
    torch.ones(4, dtype=torch.float64), Table(torch.ones(4, 3) > 0, 5),
)  # fmt: skip


@pytest.mark.backends("native")
@pytest.mark.host_code("what the tests above are able to see")
@pytest.mark.parametrize("forgotten", (None, *TOY.names[:-1]))
def test_a_check_that_an_op_forgets_is_seen(backend, forgotten):
    """An op that checks all arguments but one refuses all faults but those of that one. The list alone is enough."""

    def toy(*given):
        call = TOY.call(*given)
        operands.check(TOY, call if forgotten is None else call._replace(**{forgotten: getattr(TOY_CALL, forgotten)}))
        return (call.x.clone(),)

    op = registry.Op(f"toy_{forgotten}", "toy", TOY, "Tensor result", lambda call: (call.x,), lambda call: (call.x,))
    registry.define(TOY_LIBRARY, op, backend)
    TOY_LIBRARY.impl(f"{op.name}_{backend}", toy, "CPU")
    run = getattr(torch.ops.fdkernels_toy, f"{op.name}_{backend}")
    unseen = [
        fault
        for fault in refusals.of_list(TOY)
        if not refusals.is_refused(run, refusals.spoiled(TOY, TOY_CALL, fault), fault.partition(":")[0])
    ]
    assert unseen == [fault for fault in refusals.of_list(TOY) if fault.startswith(f"{forgotten}:")]
