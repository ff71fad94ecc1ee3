"""torch.compile without graph breaks or endless recompiles, and the raw ops' own consistency (opcheck)."""

import itertools

import pytest
import torch
from torch._dynamo.testing import CompileCounterWithBackend

import fdkernels as fdk
from fdkernels._op.arguments import Table
from fdkernels._op.library import ops
from fdkernels.fdiv.arguments import FDIV, FDIV_WEIGHT, STATS, FdivArguments, WeightArguments
from tests import device
from tests.cases import make, normalizer
from tests.device import place

pytestmark = [pytest.mark.contract("compile"), pytest.mark.usefixtures("fresh_compiler")]


def compiled_loss(backend, compiler, **options):
    """A step such as trainers compile: something before, the loss, something after."""
    options = place(options)

    def step(student, teacher, fake, logits, t):
        loss = fdk.fused_fdiv_loss(student * 1.0, teacher, fake, logits, t, backend=backend, **options)
        return loss * 2.0

    return torch.compile(step, backend=compiler, fullgraph=True)


def hold(case, step):
    placed = case.on()
    student = placed.student.clone().requires_grad_()
    loss = step(student, placed.teacher, placed.fake, placed.logits, placed.t)
    loss.sum().backward()
    expected = case.expected()
    torch.testing.assert_close(loss.double().cpu(), torch.as_tensor(2 * expected.loss), rtol=3e-6, atol=0)
    grad = torch.from_numpy(expected.grad)
    tolerance = {torch.bfloat16: 1.6e-2, torch.float16: 2e-3}.get(student.dtype, 2e-6)
    torch.testing.assert_close(
        student.grad.double().cpu(), 2 * grad, rtol=tolerance, atol=tolerance * grad.abs().max().item()
    )


OPTIONS = {
    "plain": {},
    "normalizer": {"normalizer": lambda: normalizer(4)},
    "none, zero": {"reduction": "none", "nonfinite": "zero"},
    "kl, mask": {"divergence": "kl", "mask": torch.arange(64).reshape(1, 1, 8, 8) % 3 > 0},
    "weight": {"weight": torch.tensor([0.5, 1.0, 2.0, 0.1])},
    "edm": {"prediction": lambda: fdk.Prediction("edm", torch.ones(4, 3, 8, 8), sigma=torch.linspace(0.5, 2, 4))},
}


# A dtype each: it decides nothing in a graph.
@pytest.mark.parametrize(("name", "dtype"), [*zip(OPTIONS, itertools.cycle((torch.bfloat16, torch.float32)))], ids=str)
def test_fullgraph(backend, name, dtype):
    options = {k: v() if callable(v) else v for k, v in OPTIONS[name].items()}
    case = make((4, 3, 8, 8), dtype, **options)
    if "weight" in options:
        case = case.but(logits=None, t=None)
    fresh = case.fresh_options()
    hold(case, compiled_loss(backend, "aot_eager", **fresh))


def test_inductor(backend):
    case = make((4, 3, 8, 8), torch.float32, normalizer=normalizer(4))
    hold(case, compiled_loss(backend, "inductor", **case.fresh_options()))


def test_changing_batch_recompiles_once(backend):
    counter = CompileCounterWithBackend("aot_eager")
    step = compiled_loss(backend, counter)
    for batch in (16, 12, 9, 8, 10):
        hold(make((batch, 3, 8, 8), seed=batch), step)
    assert counter.frame_count <= 2


def test_changing_resolution_with_normalizer(backend):
    counter = CompileCounterWithBackend("aot_eager")
    state = normalizer(4).eval()
    step = compiled_loss(backend, counter, normalizer=state)
    for size in (8, 12, 10):
        hold(make((9, 3, size, size + 1), seed=size, normalizer=state), step)
    assert counter.frame_count <= 2


def test_state_changes_once_per_compiled_call(backend):
    state = place(fdk.RatioNormalizer(4))
    step = compiled_loss(backend, "aot_eager", normalizer=state)
    for seed in range(3):
        case = make((16, 3, 8, 8), seed=seed, normalizer=state)
        expected = case.expected()
        placed = case.on()
        step(placed.student.clone().requires_grad_(), placed.teacher, placed.fake, placed.logits, placed.t).backward()
        torch.testing.assert_close(
            state.mean.double().cpu(), torch.from_numpy(expected.weights.mean), rtol=1e-6, atol=0
        )


def test_compiled_weight(backend):
    def weight(logits, t):
        return fdk.fdiv_weight(logits, t, divergence="kl", backend=backend)

    case = make((12, 3)).on()
    compiled = torch.compile(weight, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(compiled(case.logits, case.t), weight(case.logits, case.t), rtol=1e-6, atol=0)


def raw_arguments(dtype=torch.float32, **changes):
    """The arguments of `fdiv_<backend>` for a batch with everything on; changes may be of its weighting."""
    case = make((4, 3, 6, 5), dtype)
    weighting = WeightArguments(
        logits=case.logits, t=case.t, ratio_mean=torch.ones(5), edges=None, t_min=0.0, t_max=1.0, decay=0.9,
        update=True, divergence="js", amari_alpha=0.0, log_ratio_min=-2.0, log_ratio_max=2.0, normalize_weight=True,
    )  # fmt: skip
    of_weighting = {name: changes.pop(name) for name in list(changes) if name in WeightArguments._fields}
    weighting = WeightArguments(*map(place, weighting._replace(**of_weighting)))
    call = FdivArguments(
        student=case.student, teacher=case.teacher, fake=case.fake, teacher_uncond=case.teacher + 0.1,
        fake_uncond=None, guidance_scale=2.0, fake_guidance_scale=1.0, noisy=case.student + 0.3, prediction="epsilon",
        alpha=Table(0.2 + torch.rand(4, 1, dtype=torch.float64), 90), sigma=Table(torch.rand(4, 1), 90),
        fixed_alpha=1.0, fixed_sigma=1.0, sigma_data=0.5, weight=None, dmd_scale=True, eps=1e-6, floor=0.1,
        kept_only=True, multiplier=Table(), mask=Table(torch.rand(4, 90) < 0.7, 1), zero_nonfinite=False,
        reduction="mean", divisor=None, with_grad=True, with_stats=True, weighting=weighting,
    )  # fmt: skip
    return FdivArguments(*map(place, call._replace(**changes)))


def opcheck(op, arguments, outputs):
    """torch.library.opcheck; its comparison of outputs takes NaN (a figure that a call lacks) for a difference."""
    tests = ["test_schema", "test_autograd_registration", "test_faketensor"]
    if not any(bool(v.isnan().any()) for v in outputs):
        tests.append("test_aot_dispatch_dynamic")
    torch.library.opcheck(op, arguments, test_utils=tests)


@pytest.mark.parametrize("dtype", (torch.float32, torch.bfloat16, torch.float16, torch.float64), ids=str)
@pytest.mark.parametrize(
    "changes",
    (
        {},
        {"reduction": "none", "with_stats": False},
        {"logits": None, "t": None, "ratio_mean": None, "update": False, "weight": torch.ones(4), "with_stats": False},
        {"with_grad": False, "update": False},
        {
            "noisy": None,
            "prediction": "sample",
            "alpha": Table(),
            "sigma": Table(),
            "dmd_scale": False,
            "mask": Table(),
        },
    ),
    ids=("all", "none", "weight", "no grad", "x0"),
)
def test_raw_op(backend, dtype, changes):
    """A registered op's schema, fake and mutations are what they say; the plain reference fits the fake too."""
    call = raw_arguments(dtype, **changes)
    real = ops["fdiv"].run(
        backend, raw_arguments(dtype, **{**changes, "ratio_mean": None, "update": False}), call.student
    )
    loss, gradient, unscale, stats = real
    assert not loss.isnan().any() and not stats[: STATS - 4].isnan().any()
    for each, fake in zip(real, ops["fdiv"].outputs(call), strict=True):
        assert (each.shape, each.dtype) == (fake.shape, fake.dtype)
    if backend == "reference" or device.on_software:  # whose ops are others
        return
    op = getattr(torch.ops.fdkernels, f"fdiv_{backend}").default
    operands = tuple(FDIV.operands(call))
    opcheck(op, operands, op(*operands))
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    upstream = torch.full((4,) if call.reduction == "none" else (), 2.0, dtype=wide, device=loss.device)
    if call.with_grad:
        scale, scale_ = (getattr(torch.ops.fdkernels, f"scale_{backend}{end}").default for end in ("", "_"))
        opcheck(scale, (gradient, upstream, unscale), (gradient,))
        opcheck(scale_, (gradient.clone(), upstream, unscale), (gradient,))


@pytest.mark.host_code("what PyTorch is told of an op")
@pytest.mark.parametrize("normalized", (True, False))
def test_raw_weight_op(backend, normalized):
    case = make((9, 3), heads=3).on()
    mean = place(torch.ones(4)) if normalized else None
    call = WeightArguments(
        case.logits, case.t, mean, None, 0.0, 1.0, 0.9, normalized, "kl", 0.0, -2.0, 3.0, normalize_weight=True
    )
    result = ops["fdiv_weight"].run(backend, call, case.logits)
    for real, fake in zip(result, ops["fdiv_weight"].outputs(call), strict=True):
        assert (real.shape, real.dtype) == (fake.shape, fake.dtype)
    if backend != "reference":
        op = getattr(torch.ops.fdkernels, f"fdiv_weight_{backend}").default
        opcheck(op, tuple(FDIV_WEIGHT.operands(call)), result)


@pytest.mark.host_code("what is registered")
def test_every_registered_op_was_checked(backend):
    """An op of this backend that no test here knows is a hole."""
    names = {name for name in dir(torch.ops.fdkernels) if backend in name}
    known = {f"fdiv_{backend}", f"fdiv_weight_{backend}", f"scale_{backend}", f"scale_{backend}_"}
    assert names <= known
