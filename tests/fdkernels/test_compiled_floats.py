"""Float options that change between calls of a compiled step: one graph, and the right numbers from every call."""

import numpy as np
import pytest
import torch
from torch._dynamo.testing import CompileCounterWithBackend

import fdkernels as fdk
from fdkernels.fdiv.arguments import FDIV
from tests.cases import make, normalizer
from tests.device import place
from tests.ops import raw_fdiv

pytestmark = [
    pytest.mark.contract("compile"),
    pytest.mark.usefixtures("fresh_compiler"),
    pytest.mark.host_code("how floats travel to an op"),
]

# Older versions of torch compile `x * (1 + v)` anew for each v. They do the same if a step computes a number for us.
TORCH_COMPUTES_WITH_SYMBOLS = torch.__version__ >= "2.13"
VALUES = (2.0, 3.5, 1.25, 0.5, 0.25)
CASE = make((8, 3, 4, 4), logit_scale=3.0).on()
OTHER = CASE.teacher + 0.2


def loss(student, backend, **options):
    return fdk.fused_fdiv_loss(student, CASE.teacher, CASE.fake, CASE.logits, CASE.t, backend=backend, **options)


def prediction(kind, **levels):
    return fdk.Prediction(kind, OTHER, **levels)


# Each float option from a number v that changes: as it comes, or computed inside the step.
STEPS = {
    "as it comes": lambda x, v, backend: loss(x, backend, teacher_uncond=OTHER, guidance_scale=v),
    "guidance_scale": lambda x, v, backend: loss(x, backend, teacher_uncond=OTHER, guidance_scale=1 + v),
    "fake_guidance_scale": lambda x, v, backend: loss(x, backend, fake_uncond=OTHER, fake_guidance_scale=2 * v),
    "0-d guidance_scale": lambda x, v, backend: loss(
        x, backend, teacher_uncond=OTHER, guidance_scale=1 + v * torch.ones((), dtype=torch.float64)
    ),
    "eps, floor": lambda x, v, backend: loss(x, backend, scale=fdk.DmdScale(0.3 * v, floor=0.2 * v)),
    "ratio_range": lambda x, v, backend: loss(x, backend, ratio_range=(0.1 * v, 2.0 + v)),
    "count": lambda x, v, backend: loss(x, backend, count=int(4 * v)),
    "alpha, sigma": lambda x, v, backend: loss(x, backend, prediction=prediction("epsilon", alpha=v / 9, sigma=v + 1)),
    "sigma_data": lambda x, v, backend: loss(x, backend, prediction=prediction("edm", sigma=v, sigma_data=0.5 * v)),
    "weighed in PyTorch": lambda x, v, backend: loss(x, backend, divergence=OWN, ratio_range=(0.1 * v, 2.0 + v)),
    "many": lambda x, v, backend: loss(
        x, backend, divergence="kl", ratio_range=(0.1 * v, 2.0 + v), teacher_uncond=OTHER, guidance_scale=1 + v,
        scale=fdk.DmdScale(0.3 * v), count=int(4 * v),
        prediction=prediction("epsilon", alpha=0.1 * v, sigma=1 - v / 10),
    ),
}  # fmt: skip
OWN = fdk.Divergence("test_compiled_floats", lambda log_ratio: 0.5 * log_ratio)  # weighed in PyTorch on every backend


@pytest.mark.backends("reference", "triton")
def test_one_graph(backend):
    hold(backend, "many", None, "aot_eager")


@pytest.mark.backends("native")
@pytest.mark.parametrize(("name", "dynamic"), [*((name, None) for name in STEPS), ("many", True)])
def test_one_graph_of_each(backend, name, dynamic):
    hold(backend, name, dynamic, "aot_eager")


@pytest.mark.parametrize("name", ("guidance_scale", "eps, floor"))
@pytest.mark.backends("native", "triton")
def test_inductor(backend, name):
    """Inductor once computed with old numbers from the third value on."""
    hold(backend, name, None, "inductor")


def hold(backend, name, dynamic, compiler):
    """Compare a compiled step with an eager one. By default torch takes the first number for a constant."""
    one_graph = name in ("as it comes", "0-d guidance_scale") or TORCH_COMPUTES_WITH_SYMBOLS

    def step(student, value):
        return STEPS[name](student, value, backend)

    compiled = torch.compile(step, backend=compiler, fullgraph=True, dynamic=dynamic)
    for i, value in enumerate(VALUES):
        found, expected = (CASE.student.clone().requires_grad_() for _ in range(2))
        is_compiled = one_graph and i > (0 if dynamic else 1)
        with torch.compiler.set_stance("fail_on_recompile" if is_compiled else "default"):
            compiled(found, value).backward()
        step(expected, value).backward()
        error = (found.grad - expected.grad).norm() / expected.grad.norm()
        assert error < 1e-6, (value, error)


@pytest.mark.parametrize("name", ("ratio_range", "alpha"))
def test_weight_alone(backend, name):
    def weight(value):
        if name == "ratio_range":
            return fdk.fdiv_weight(CASE.logits, ratio_range=(0.1 * value, 2 + value), backend=backend)
        return fdk.fdiv_weight(CASE.logits, divergence=fdk.alpha(0.5 * value), backend=backend)

    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(weight, backend=counter, fullgraph=True)
    for value in VALUES:
        torch.testing.assert_close(compiled(value), weight(value), rtol=1e-6, atol=0)
    assert counter.frame_count <= 2 or not TORCH_COMPUTES_WITH_SYMBOLS


def test_decay_schedule(backend):
    """Attributes of the normalizer may change too."""
    state, eager = place(normalizer(4)), place(normalizer(4))
    step = torch.compile(lambda x: loss(x, backend, normalizer=state), backend="aot_eager", fullgraph=True)
    for decay in (0.9, 0.5, 0.25, 0.75):
        state.decay = eager.decay = decay
        torch.testing.assert_close(step(CASE.student), loss(CASE.student, backend, normalizer=eager), rtol=1e-6, atol=0)
        torch.testing.assert_close(state.mean, eager.mean, rtol=1e-6, atol=0)


@pytest.mark.backends("native", "triton")
def test_a_number_that_is_not_finite_is_refused_as_the_graph_runs(backend):
    def step(student, value):
        return loss(student, backend, teacher_uncond=OTHER, guidance_scale=1 + value)

    compiled = torch.compile(step, backend="aot_eager", fullgraph=True, dynamic=True)
    compiled(CASE.student, 2.0)
    with pytest.raises((RuntimeError, ValueError), match="guidance_scale: expected a finite number, got inf"):
        compiled(CASE.student, float("inf"))


@pytest.mark.backends("native", "triton")
def test_numbers_stand_in_for_the_floats(backend):
    call = raw_fdiv(logits=CASE.logits[:4].contiguous(), with_stats=False, update=False)
    op = getattr(torch.ops.fdkernels, f"fdiv_{backend}").default
    *operands, _ = FDIV.operands(call)
    values = [operands[FDIV.names.index(name)] for name in FDIV.numbers]
    moved = [7.0 if name in FDIV.numbers else value for name, value in zip(FDIV.names, operands, strict=True)]
    numbers = torch.tensor(values, dtype=torch.float64)
    for as_floats, as_data in zip(op(*operands), op(*moved, numbers), strict=True):
        assert torch.equal(as_floats, as_data)
    for wrong in (numbers[:3], numbers.float(), numbers[:, None]):
        with pytest.raises(RuntimeError, match="numbers: expected"):
            op(*operands, wrong)


@pytest.mark.cpu_only("a 0-d tensor stays on the CPU whatever the samples are on")
@pytest.mark.parametrize("dtype", (torch.float32, torch.float64, torch.bfloat16, torch.int64), ids=str)
def test_guidance_scale_of_a_0d_tensor(backend, dtype):
    scale = torch.tensor(4.5).to(dtype)
    case = make((4, 3, 6, 5)).but(teacher_uncond=torch.ones(4, 3, 6, 5))
    number, tensor = (case.but(guidance_scale=v).run(backend) for v in (scale.item(), scale))
    assert torch.equal(number.grad, tensor.grad)


@pytest.mark.parametrize("kind", (np.float32, np.float64, np.int64))
@pytest.mark.backends("native")  # NumPy scalars become numbers before a backend sees them
def test_numpy_scalars(backend, kind):
    def step(student, scale, count):
        return loss(student, backend, teacher_uncond=OTHER, guidance_scale=scale, count=count)

    compiled = torch.compile(step, backend="aot_eager", fullgraph=True)
    expected = step(CASE.student, 2.0, 50)
    torch.testing.assert_close(step(CASE.student, kind(2), np.int64(50)), expected, rtol=1e-6, atol=0)
    torch.testing.assert_close(compiled(CASE.student, kind(2), np.int64(50)), expected, rtol=1e-6, atol=0)


def test_guidance_scale_of_one_needs_no_unconditional_output(backend):
    case = make((8, 3, 6, 5))
    assert torch.equal(case.but(guidance_scale=1.0, fake_guidance_scale=1).run(backend).grad, case.run(backend).grad)


@pytest.mark.parametrize(
    ("scale", "message"),
    [
        (torch.ones(2), r"guidance_scale: expected a number or a real 0-d CPU tensor, got \(2,\)"),
        (torch.ones((), device="meta"), "guidance_scale: expected a number or a real 0-d CPU tensor, got .* on meta"),
        (torch.tensor(True), "guidance_scale: .*torch.bool"),
        (torch.tensor(torch.nan), "guidance_scale: expected a finite number, got nan"),
    ],
)
def test_bad_scales(backend, scale, message):
    case = make((8, 3)).on()
    with pytest.raises(ValueError, match=message):
        fdk.fused_fdiv_loss(
            case.student, case.teacher, case.fake, case.logits, teacher_uncond=case.fake, guidance_scale=scale,
            backend=backend,
        )  # fmt: skip
