"""Every op under torch.compile, without graph breaks or endless recompiles; opcheck of the raw ops."""

import pytest
import torch
from torch._dynamo.testing import CompileCounterWithBackend

from fdkernels._op import registry
from tests import device
from tests.cases import make, normalizer
from tests.device import place
from tests.ops import OPS

pytestmark = [pytest.mark.contract("compile"), pytest.mark.usefixtures("fresh_compiler")]

SHAPE = (12, 3, 8, 8)


def compiled(case, backend, compiler, **options):
    """A compiled step like a trainer's: something before the op, the op, something after. case: of the op, any or its
    class."""
    function, options = case.function(), place(options)

    def step(first, **others):
        return function(first * 1.0, backend=backend, **others, **options) * 2.0

    return torch.compile(step, backend=compiler, fullgraph=True)


def hold(case, step):
    """Check that the step gives the op's state, and twice its result and gradients."""
    placed, expected = case.on(), case.expected()
    leaves = placed.leaves()
    first, *others = ((name, leaves.get(name, getattr(placed, name))) for name in placed.ORDER)
    result = step(first[1], **dict(others))
    if leaves:
        result.sum().backward()
    outcome = case.outcome(result / 2, [leaf.grad for leaf in leaves.values()])
    case.hold(outcome.cpu(), expected, torch.tensor(2.0) if leaves else None)


def test_fullgraph(op, variant, backend):
    # One dtype for each variant: the dtype does not change a graph.
    dtype = (torch.bfloat16, torch.float32)[list(op.variants).index(variant) % 2]
    case = op.variants[variant](SHAPE, dtype).on()
    hold(case, compiled(case, backend, "aot_eager", **case.options))


def test_inductor(op, backend):
    case = op.variants["state"](SHAPE, torch.float32).on()
    hold(case, compiled(case, backend, "inductor", **case.options))


def test_changing_batch_recompiles_once(op, backend):
    counter = CompileCounterWithBackend("aot_eager")
    step = compiled(op.case, backend, counter, **op.make(SHAPE).options)
    for batch in (16, 12, 9, 8, 10):
        hold(op.make((batch, *SHAPE[1:]), torch.float32, seed=batch), step)
    assert counter.frame_count <= 2


def test_changing_resolution_with_normalizer(backend):
    counter, state = CompileCounterWithBackend("aot_eager"), normalizer(4).eval()
    step = compiled(OPS["fdiv"].case, backend, counter, normalizer=state)
    for size in (8, 12, 10):
        hold(make((9, 3, size, size + 1), seed=size, normalizer=state), step)
    assert counter.frame_count <= 2


def test_state_changes_once_per_compiled_call(op, backend):
    state = op.variants["state"](SHAPE, torch.float32).on()
    step = compiled(op.case, backend, "aot_eager", **state.options)
    for seed in range(3):
        hold(op.make(SHAPE, torch.float32, seed=seed, **state.options), step)


def opcheck(op, arguments, outputs):
    """torch.library.opcheck, which takes NaN (a figure that a call lacks) for a difference: outputs are skipped."""
    tests = ["test_schema", "test_autograd_registration", "test_faketensor"]
    if not any(bool(v.isnan().any()) for v in outputs):
        tests.append("test_aot_dispatch_dynamic")
    torch.library.opcheck(op, arguments, test_utils=tests)


@pytest.mark.parametrize("dtype", (torch.float32, torch.bfloat16, torch.float16, torch.float64), ids=str)
def test_raw_op(op, raw_variant, backend, dtype):
    """A registered op agrees with its schema, fake and mutations; the plain reference agrees with the fake too."""
    changes, registered = op.raw_variants[raw_variant], registry.ops[op.name]
    call = op.raw(dtype, **changes)
    given = op.raw(dtype, **changes)
    inputs = [getattr(given, name) for name, _ in registered.gradients]
    real = registered.run(backend, given, inputs)
    end = 1 + 2 * len(registered.gradients) if op.is_loss else len(real) - 1
    assert not any(v.isnan().any() for v in real[:end])
    for each, fake in zip(real, registered.outputs(call), strict=True):
        assert (each.shape, each.dtype) == (fake.shape, fake.dtype)
    if backend == "reference" or device.on_software:  # their ops are not those registered with PyTorch
        return
    raw = getattr(torch.ops.fdkernels, f"{op.name}_{backend}").default
    opcheck(raw, tuple(op.arguments.operands(call)), real)
    scale, scale_ = (getattr(torch.ops.fdkernels, f"scale_{backend}{end}").default for end in ("", "_"))
    wanted = [n for n in range(1, end, 2) if real[n].numel()] if op.is_loss else []
    if wanted:
        gradients, unscales = [real[n] for n in wanted], [real[n + 1] for n in wanted]
        upstream = torch.full_like(real[0], 2.0)
        opcheck(scale, (gradients, upstream, unscales), gradients)
        opcheck(scale_, ([v.clone() for v in gradients], upstream, unscales), gradients)


@pytest.mark.host_code("what is registered")
def test_every_registered_op_was_checked(op, backend):
    """A registered op of this backend that has no entry in `OPS` fails."""
    names = {name for name in dir(torch.ops.fdkernels) if backend in name}
    assert names <= {f"{name}_{backend}" for name in OPS} | {f"scale_{backend}", f"scale_{backend}_"}
