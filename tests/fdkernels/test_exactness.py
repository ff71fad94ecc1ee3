"""N-sized arithmetic in fp32 (fp64 for fp64 inputs), the gradient rounded once: compared with the float64 oracle."""

import re

import pytest
import torch

import fdkernels as fdk
from fdkernels import testing
from tests import device
from tests.cases import make, normalizer, same_bits
from tests.device import on_device
from tests.oracle import F

pytestmark = pytest.mark.contract("exactness")

DTYPES = (torch.bfloat16, torch.float16, torch.float32, torch.float64)
SHAPES = ((8, 3, 16, 16), (3, 4, 2, 5, 7), (2, 1), (5, 1021), (1, 3, 64, 65))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_shapes_and_dtypes(backend, shape, dtype):
    make(shape, dtype).check(backend)


@pytest.mark.parametrize("divergence", [*F, "alpha(0.5)", "alpha(-1.25)"])
@pytest.mark.parametrize("dtype", (torch.bfloat16, torch.float32, torch.float64), ids=str)
def test_divergences(backend, divergence, dtype):
    make((6, 3, 5, 5), dtype, divergence=divergence).check(backend)


@pytest.mark.parametrize("student", (torch.bfloat16, torch.float16, torch.float32), ids=str)
@pytest.mark.parametrize("teacher", (torch.bfloat16, torch.float16, torch.float32), ids=str)
@pytest.mark.parametrize("fake", (torch.bfloat16, torch.float16, torch.float32), ids=str)
def test_any_mix_of_dtypes(backend, student, teacher, fake):
    case = make((4, 3, 9, 7), torch.float32)
    case.but(student=case.student.to(student), teacher=case.teacher.to(teacher), fake=case.fake.to(fake)).check(backend)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("gap", (1.0, 1e-2, 1e-5))
def test_small_gaps_do_not_cancel(backend, dtype, gap):
    make((4, 3, 16, 16), dtype, predictions=torch.float64 if dtype == torch.float64 else torch.float32, gap=gap).check(
        backend
    )


@pytest.mark.backends("reference", "native")
def test_the_docstrings_errors_of_a_pseudo_target(backend):
    """Relative L2 in bf16, from x and predictions as a trainer has them. Ours is the same at each size of g."""
    text = " ".join(fdk.fused_fdiv_loss.__doc__.split())
    said = re.search(
        r"beside x: (.*?) % of g \(relative L2\) where mean\|g\| is (.*?) of x's .* Here it is ([\d.]+) %", text
    )
    percents, sizes = (list(map(float, re.split(", | and ", said[i]))) for i in (1, 2))
    assert len(percents) == len(sizes) == 4
    for percent, size in zip(percents, sizes, strict=True):
        case = make(
            (4, 3, 64, 64), torch.bfloat16, predictions=torch.float32, divergence="rkl", heads=None, gap=size / 2
        )
        g = torch.from_numpy(case.expected().grad) * case.student.numel()
        assert g.abs().mean().item() == pytest.approx(size, rel=0.02)
        pseudo_target = (case.student - g.bfloat16()).double()
        theirs = testing.relative_l2(case.student.double() - pseudo_target, g)
        ours = testing.relative_l2(case.run(backend).grad.double() * g.numel(), g)
        assert 100 * theirs == pytest.approx(percent, rel=0.05) and 100 * ours == pytest.approx(
            float(said[3]), rel=0.05
        )


@pytest.mark.parametrize("scale", ("dmd", None))
@pytest.mark.parametrize("shape", ((), (4,), (4, 3)), ids=("one", "per sample", "per frame"))
@pytest.mark.parametrize("dtype", (torch.bfloat16, torch.float32, torch.float64), ids=str)
def test_multipliers(backend, scale, shape, dtype):
    multiplier = torch.rand(shape, generator=torch.Generator().manual_seed(5))
    make((4, 3, 2, 6, 5), dtype, scale=scale, multiplier=multiplier).check(backend)


def test_broadcast_multipliers(backend):
    case = make((3, 4, 6, 5))
    generator = torch.Generator().manual_seed(6)
    for shape in ((1, 1, 1, 1), (1, 4, 1, 1), (3, 1, 6, 1), (1, 1, 1, 5), (3, 4, 6, 5), (1, 4), (3, 1, 6)):
        case.but(multiplier=torch.rand(shape, generator=generator) + 0.1).check(backend)


@pytest.mark.parametrize("eps", (0.0, 1e-6, 0.5))
@pytest.mark.parametrize("floor", (0.0, 0.4, 1e3))
def test_eps_and_floor(backend, eps, floor):
    """The samples' means are around 0.4: a floor of 0.4 lifts some of them."""
    case = make((9, 3, 8, 8), scale=fdk.DmdScale(eps, floor))
    means = (case.student - case.teacher).abs().flatten(1).mean(1)
    assert floor != 0.4 or 0 < (means < floor).sum() < 9
    case.check(backend)


@pytest.mark.parametrize("values", ((0.06, 0.18, 2.83), (1.72, 2.2, 2.87), (2.4, 2.12, 1.89)))
def test_data_that_rounds_one_way(backend, values):
    """In a sum of equal float32 numbers, the additions do not round up as often as down."""
    x, teacher, fake = (torch.full((2, 3, 40, 70), value) for value in values)
    make(x.shape, divergence="rkl", heads=None).but(student=x, teacher=teacher, fake=fake).check(backend)


def test_weight_given(backend):
    weight = torch.tensor([0.1, 3.0, 0.0, 1.0])
    for dtype in (torch.bfloat16, torch.float32):
        make((4, 3, 8, 8), dtype, heads=None, weight=weight).check(backend)
    make((4, 3, 8, 8), torch.float64, heads=None, weight=weight.double()).check(backend)
    make((4, 3, 8, 8), torch.float32, heads=None, weight=weight.bfloat16()).check(backend)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_with_normalizer(backend, dtype):
    make((16, 3, 5, 5), dtype, normalizer=normalizer()).check(backend)


def test_a_divergence_of_ones_own(backend):
    """Kernel backends compute its weight in PyTorch, then run the kernel. h(r) = sqrt(r) is alpha(1/2)."""
    own = fdk.Divergence("test_own", lambda log_ratio: 0.5 * log_ratio)
    case = make((6, 3, 5, 5), normalizer=normalizer())
    mine, theirs = case.but(divergence=own).run(backend), case.but(divergence="alpha(0.5)").check(backend)
    torch.testing.assert_close(mine.grad, theirs.grad, rtol=1e-6, atol=0)
    torch.testing.assert_close(mine.mean, theirs.mean, rtol=1e-7, atol=0)


def test_module_form(backend):
    """FDivLoss is the function with its settings. It owns nothing but the normalizer."""
    case = make((16, 3, 5, 5), normalizer=fdk.RatioNormalizer(10))
    module = fdk.FDivLoss("js", bins=10, backend=backend).to(device.name())
    assert list(module.state_dict()) == ["normalizer.mean"] and not list(module.parameters())
    student = case.student.detach().requires_grad_()
    loss = on_device(module)(student, case.teacher, case.fake, case.logits, case.t)
    loss.backward()
    outcome = case.run(backend)
    assert same_bits(loss.detach(), outcome.loss) and same_bits(student.grad, outcome.grad)
    assert same_bits(module.normalizer.mean.cpu(), outcome.mean)


def test_no_gradient_asked_for(backend):
    case = make()
    with torch.no_grad():
        loss = case.call(backend)
    assert not loss.requires_grad
    assert same_bits(loss, case.run(backend).loss)
    assert not case.call(backend).requires_grad


def test_rkl_needs_neither_logits_nor_t(backend):
    make(heads=None).check(backend)
    case = make(divergence="rkl")
    assert same_bits(case.run(backend).grad, case.but(logits=None, t=None).run(backend).grad)


def test_auto_is_the_preferred_backend(backend):
    from fdkernels.backends import available, choose, preference

    here = device.name()
    order, _ = preference(here)
    preferred = next(name for name in order if available(here)[name] is None)
    assert choose("auto", here) == preferred and choose(backend, here) == backend
    case = make()
    assert same_bits(case.run("auto").grad, case.run(preferred).grad)


@pytest.mark.parametrize(
    ("weight", "multiplier", "gap"), ((1e25, 1e25, 0.0), (1e30, 1e15, 1e-11), (1e-30, 1e-15, 1e19))
)
@pytest.mark.parametrize("dtype", (torch.float32, torch.bfloat16), ids=str)
def test_a_weight_times_a_multiplier_beyond_float32(backend, weight, multiplier, gap, dtype):
    """The gradient is within float32's range; the product of the factors of f - τ is not."""
    case = make((2, 4, 6, 6), dtype, divergence="rkl", heads=None, scale=None)
    teacher = torch.zeros_like(case.teacher) if gap else case.teacher
    fake = torch.full_like(teacher, gap) if gap else teacher
    case = case.but(
        teacher=teacher, fake=fake, weight=torch.full((2,), weight), multiplier=torch.full((2, 4), multiplier)
    )
    wanted = torch.from_numpy(case.expected().grad)
    assert (wanted == 0).all() if gap == 0 else (wanted != 0).all()
    torch.testing.assert_close(
        case.run(backend).grad.double(), wanted, rtol=2**-8 if dtype.itemsize == 2 else 1e-6, atol=0
    )


@pytest.mark.backends("native", "triton")
def test_long_sums(backend):
    """Float sums continue in double before their rounding shows."""
    case = make((1, 65_536), seed=3, heads=None)
    torch.testing.assert_close(
        case.run(backend).loss.double(), torch.as_tensor(case.expected().loss), rtol=2e-7, atol=0
    )
