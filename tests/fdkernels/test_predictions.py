"""Raw predictions and guidance: x0 = a·x_t + c·prediction, with the x_t term cancelled exactly."""

import warnings
from fractions import Fraction

import numpy as np
import pytest
import torch

import fdkernels as fdk
from fdkernels import prediction as prediction_module
from fdkernels import testing
from fdkernels._op import checks
from tests import oracle
from tests.cases import Case, make

pytestmark = pytest.mark.contract("predictions")

KINDS = ("sample", "epsilon", "v_prediction", "flow_prediction", "edm", "affine")
SHAPE = (4, 3, 2, 6, 5)


def prediction(kind: str, noisy: torch.Tensor, level: str) -> fdk.Prediction:
    shape = {"float": (), "per sample": (4,), "per frame": (4, 3, 1, 1, 1), "per batch": (1, 3, 1, 1, 1)}[level]
    angle = 0.1 + 1.3 * torch.rand(shape, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    alpha, sigma = angle.cos(), angle.sin()
    if kind == "flow_prediction":
        alpha = 1 - sigma
    if kind == "edm":
        alpha, sigma = torch.ones(shape), 8 * sigma
    if level == "float":
        alpha, sigma = float(alpha), float(sigma)
    return fdk.Prediction(kind, noisy, alpha=alpha, sigma=sigma)


def raw_case(kind: str, dtype: torch.dtype, level: str = "per sample", predictions=None, **options) -> Case:
    case = make(SHAPE, dtype, predictions=predictions, **options)
    noisy = 3 * torch.randn(SHAPE, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    return case.but(prediction=prediction(kind, noisy.to(dtype), level))


@pytest.mark.pairwise
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("level", ("float", "per sample", "per frame", "per batch"))
@pytest.mark.parametrize("dtype", (torch.bfloat16, torch.float32, torch.float64), ids=str)
def test_kinds(backend, kind, level, dtype):
    raw_case(kind, dtype, level).check(backend)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("scale", ("dmd", None))
def test_tiny_gaps_of_raw_predictions(backend, kind, scale):
    """A gap of 1e-3 beside |x_t| of 3: rounding x0 to bf16 first would lose most of the gradient."""
    raw_case(kind, torch.bfloat16, predictions=torch.float32, gap=1e-3, scale=scale).check(backend)


@pytest.mark.parametrize("kind", KINDS)
def test_raw_equals_x0(backend, kind):
    """The gradient is the same if x0 is computed by hand in float64 and no prediction is passed."""
    case = raw_case(kind, torch.float64)
    x = oracle.float64(case.student)
    a, c = (torch.from_numpy(v) for v in oracle.coefficients(case.options["prediction"], x))
    noisy = case.options["prediction"].noisy
    by_hand = case.but(teacher=a * noisy + c * case.teacher, fake=a * noisy + c * case.fake, prediction=None)
    torch.testing.assert_close(case.run(backend).grad, by_hand.run(backend).grad, rtol=1e-9, atol=1e-15)


def guided(case: Case, guidance: float, fake_guidance: float | None = None, distance: float = 0.3) -> Case:
    generator = torch.Generator().manual_seed(9)

    def near(v: torch.Tensor) -> torch.Tensor:
        return (v.double() + distance * torch.randn(v.shape, generator=generator, dtype=torch.float64)).to(v.dtype)

    case = case.but(teacher_uncond=near(case.teacher), guidance_scale=guidance)
    if fake_guidance is not None:
        case = case.but(fake_uncond=near(case.fake), fake_guidance_scale=fake_guidance)
    return case


@pytest.mark.parametrize("guidance", (0.0, 1.0, 1.75, 7.5, -2.0))
@pytest.mark.parametrize("dtype", (torch.bfloat16, torch.float16, torch.float32, torch.float64), ids=str)
def test_guidance(backend, guidance, dtype):
    guided(make(SHAPE, dtype), guidance).check(backend)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", (torch.bfloat16, torch.float32), ids=str)
def test_guidance_of_raw_predictions(backend, kind, dtype):
    guided(raw_case(kind, dtype), 7.5).check(backend)
    guided(raw_case(kind, dtype, scale=None), 3.0, 2.0).check(backend)


def test_guidance_of_the_fake_alone(backend):
    case = make(SHAPE)
    case = case.but(fake_uncond=case.fake.roll(1, 0), fake_guidance_scale=2.5)
    case.check(backend)


def test_guidance_bound_is_the_published_one():
    """The oracle's bound with teacher guidance is `testing.guidance_bound`."""
    case = guided(make(SHAPE, scale=None, heads=None), 7.5)
    expected = case.expected()
    slope = torch.full(SHAPE, 1 / case.student.numel(), dtype=torch.float64)
    bound = testing.guidance_bound(case.fake, case.teacher, case.options["teacher_uncond"], 7.5, slope)
    torch.testing.assert_close(bound, torch.from_numpy(expected.guidance_bound) * 2.0**-24, rtol=1e-12, atol=0)


def test_sample_needs_no_noisy(backend):
    case = make(SHAPE)
    with_prediction = case.but(prediction=fdk.Prediction("sample", None))
    assert torch.equal(with_prediction.run(backend).grad, case.run(backend).grad)


def test_noisy_is_not_read_without_dmd(backend):
    """Without "dmd" the x_t term cancels exactly: not even NaN in x_t matters."""
    case = raw_case("epsilon", torch.float32, scale=None)
    level = case.options["prediction"]
    blank = fdk.Prediction("epsilon", torch.full_like(level.noisy, torch.nan), alpha=level.alpha, sigma=level.sigma)
    assert torch.equal(case.run(backend).grad, case.but(prediction=blank).run(backend).grad)


def test_levels_of_lower_precision(backend):
    case = make(SHAPE)
    noisy = torch.randn(SHAPE, generator=torch.Generator().manual_seed(1))
    sigma = torch.tensor([0.1, 0.5, 0.75, 0.9], dtype=torch.float16)
    case.but(prediction=fdk.Prediction("flow_prediction", noisy, sigma=sigma)).check(backend)


LEVELS = {
    "uint16": torch.tensor([0, 1, 1, 0], dtype=torch.uint16),
    "int64": torch.tensor([0, 1, 1, 0]),
    "float8": torch.tensor([0.0, 1.0, 0.5, 0.25]).to(torch.float8_e4m3fn),
    "requires grad": torch.tensor([0.0, 1.0, 0.5, 0.25], requires_grad=True),
    "fraction": Fraction(1, 3),
    "numpy": np.float32(0.5),
}


@pytest.mark.parametrize("level", LEVELS)
def test_any_real_level(backend, level):
    case, noisy = make(SHAPE), torch.randn(SHAPE, generator=torch.Generator().manual_seed(1))
    found = case.but(prediction=fdk.Prediction("flow_prediction", noisy, sigma=LEVELS[level])).run(backend)
    wide = LEVELS[level].detach().double() if isinstance(LEVELS[level], torch.Tensor) else float(LEVELS[level])
    same = case.but(prediction=fdk.Prediction("flow_prediction", noisy, sigma=wide)).run(backend)
    assert torch.equal(found.grad, same.grad)


@pytest.mark.parametrize("levels", ("per sample", "per frame"))
def test_high_noise(backend, levels):
    """x_t is a hundred times x0, and so are the two terms whose sum is x0: float32 alone is off by 1e-5 here."""
    generator = torch.Generator().manual_seed(8)
    shape = (3, 5, 8)
    clean, noise = torch.rand(shape, generator=generator) + 1, torch.rand(shape, generator=generator) + 1
    count = (3, 1, 1) if levels == "per sample" else (3, 5, 1)
    sigma, alpha = 60 + 40 * torch.rand(count, generator=generator), torch.full(count, 0.9993)
    noisy = clean + sigma * noise
    teacher = noise + 0.001 * torch.rand(shape, generator=generator)
    case = make(shape, heads=None, divergence="rkl")
    case = case.but(prediction=fdk.Prediction("epsilon", noisy, alpha=alpha, sigma=sigma))
    case.but(student=clean, teacher=teacher, fake=teacher + 0.001).check(backend)


CUMPROD = torch.tensor([0.9, 0.5, 0.2, 0.01], dtype=torch.float64)
VP = (CUMPROD.sqrt(), (1 - CUMPROD).sqrt())
SCHEDULES = {
    "VP": VP,
    "VE": (1.0, torch.tensor([0.1, 2.0, 40.0, 80.0])),
    "flow": (1 - CUMPROD, CUMPROD),
    "per frame": tuple(v.reshape(2, 2, 1, 1, 1) for v in VP),
    "numbers": (0.6, 0.8),
    "VP, mixed": (0.8, torch.full((4,), 0.6)),
    "half": tuple(v.half() for v in VP),
    "bfloat16": tuple(v.bfloat16() for v in VP),
    "bfloat16 flow": ((1 - CUMPROD).bfloat16(), CUMPROD.bfloat16()),
}
OFF = {
    "alphas_cumprod": (CUMPROD, (1 - CUMPROD).sqrt()),
    "alphas_cumprod in half": (CUMPROD.half(), (1 - CUMPROD).sqrt().half()),
    "one sample of four": (torch.cat((VP[0][:3], CUMPROD[1:2])), torch.cat((VP[1][:3], (1 - CUMPROD[1:2]).sqrt()))),
    "squared sigma": (CUMPROD.sqrt(), 1 - CUMPROD),
    "numbers": (0.36, 0.8),
    "of two shapes": (CUMPROD[1], (1 - CUMPROD[1]).sqrt().reshape(1, 1, 1, 1, 1)),
}


def warnings_of(alpha, sigma, kind="epsilon", noisy=None):
    noisy = torch.zeros(SHAPE) if noisy is None else noisy
    checks.warned.clear()
    prediction_module._looks = iter(range(16))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        fdk.Prediction(kind, noisy, alpha=alpha, sigma=sigma)
        fdk.Prediction(kind, noisy, alpha=alpha, sigma=sigma)
    return caught


@pytest.mark.parametrize("name", SCHEDULES)
def test_levels_of_a_schedule_pass(name):
    assert not warnings_of(*SCHEDULES[name])


@pytest.mark.parametrize("name", OFF)
def test_levels_of_no_schedule_warn_once(name):
    (warning,) = warnings_of(*OFF[name])
    for part in ("alpha² + sigma² = 1", "alpha = 1", "alpha + sigma = 1", "alphas_cumprod.sqrt()"):
        assert part in str(warning.message)
    assert warning.filename == __file__


def test_levels_that_the_host_cannot_know_do_not_warn():
    alpha, sigma = (v.to("meta") for v in OFF["alphas_cumprod"])
    assert not warnings_of(alpha, sigma, noisy=torch.zeros(SHAPE, device="meta"))


def test_only_the_first_are_looked_at(monkeypatch):
    checks.warned.clear()
    monkeypatch.setattr(prediction_module, "_looks", iter(range(2)))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for alpha, sigma in (VP, VP, OFF["alphas_cumprod"]):
            fdk.Prediction("epsilon", torch.zeros(SHAPE), alpha=alpha, sigma=sigma)
    assert not caught


def test_levels_that_the_host_cannot_know_leave_the_looks_to_others(monkeypatch):
    checks.warned.clear()
    monkeypatch.setattr(prediction_module, "_looks", iter(range(1)))
    alpha, sigma = OFF["alphas_cumprod"]
    fdk.Prediction("epsilon", torch.zeros(SHAPE, device="meta"), alpha=alpha.to("meta"), sigma=sigma.to("meta"))
    with pytest.warns(UserWarning, match="^alpha, sigma: expected levels of a schedule"):
        fdk.Prediction("epsilon", torch.zeros(SHAPE), alpha=alpha, sigma=sigma)


def test_kinds_that_do_without_alpha_take_any():
    alpha, _ = OFF["alphas_cumprod"]
    for kind in ("flow_prediction", "edm"):
        assert not warnings_of(alpha, (1 - CUMPROD).sqrt(), kind)


def test_alphas_cumprod_for_v_prediction_names_the_root():
    with pytest.raises(ValueError, match=r"^alpha, sigma: v_prediction needs .*alphas_cumprod\.sqrt\(\)"):
        fdk.Prediction("v_prediction", torch.zeros(SHAPE), alpha=CUMPROD, sigma=(1 - CUMPROD).sqrt())
