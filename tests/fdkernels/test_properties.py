"""Random shapes, dtypes, divergences and options against the oracle, and properties that hold for any input."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import fdkernels as fdk
from fdkernels import testing
from tests import oracle
from tests.cases import make, normalizer
from tests.device import on_device

pytestmark = pytest.mark.contract("properties")

DTYPES = st.sampled_from((torch.bfloat16, torch.float16, torch.float32, torch.float64))
HALVES = st.sampled_from((torch.bfloat16, torch.float16, torch.float32))
SCALES = (
    None,
    fdk.DmdScale(0.0),
    fdk.DmdScale(kept_only=True),
    fdk.DmdScale(0.1, floor=0.4),
    fdk.DmdScale(over="frame"),
)
NAMES = st.sampled_from((*oracle.F, *oracle.ALIASES, "alpha(0.5)", "alpha(-1)", "alpha(1.5)"))
SHAPES = st.lists(st.integers(1, 9), min_size=2, max_size=5).map(tuple)
SEEDS = st.integers(0, 2**31)
RANGES = st.one_of(st.none(), st.tuples(st.floats(1e-3, 0.9), st.floats(1.1, 1e3)))


@st.composite
def cases(draw):
    shape, dtype = draw(SHAPES), draw(DTYPES)
    options = {
        "divergence": draw(NAMES),
        "ratio_range": draw(RANGES),
        "normalize_weight": draw(st.booleans()),
        "reduction": draw(st.sampled_from(("mean", "sum", "none"))),
        "nonfinite": draw(st.sampled_from(("propagate", "zero"))),
    }
    if draw(st.booleans()):
        options["normalizer"] = normalizer(draw(st.integers(1, 12)))
    seed = draw(SEEDS)
    predictions = None if dtype == torch.float64 else draw(HALVES)
    case = make(
        shape, dtype, predictions=predictions, heads=draw(st.integers(0, 3)), gap=draw(st.sampled_from((1.0, 0.05))),
        logit_scale=draw(st.sampled_from((0.5, 3.0))), seed=seed, **options,
    )  # fmt: skip
    generator = torch.Generator().manual_seed(seed + 1)
    broadcast = tuple(s if draw(st.booleans()) else 1 for s in shape)
    if draw(st.booleans()):
        case = case.but(mask=torch.rand(broadcast, generator=generator) < 0.7)
    if draw(st.booleans()):
        case = case.but(multiplier=torch.rand(broadcast, generator=generator) + 0.1)
    case = case.but(scale=draw(st.sampled_from(SCALES)))
    kind = draw(st.sampled_from((None, "sample", "epsilon", "v_prediction", "flow_prediction", "edm", "affine")))
    if kind:
        angle = 0.1 + 1.3 * torch.rand(shape[0], generator=generator, dtype=torch.float64)
        noisy = torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)
        case = case.but(prediction=fdk.Prediction(kind, noisy, alpha=angle.cos(), sigma=angle.sin()))
    if draw(st.booleans()):
        permutation = draw(st.permutations(range(len(shape))))
        inverse = [permutation.index(d) for d in range(len(shape))]
        case = case.but(student=case.student.permute(permutation).contiguous().permute(inverse))
    return case


def in_range(case) -> bool:
    """Whether the oracle's gradient is zero or well inside fp32's range: in fp32, intermediate results may leave it."""
    grad = np.abs(case.expected().grad)
    info = torch.finfo(torch.float32)
    return bool(((grad == 0) | ((grad > 1e3 * info.tiny) & (grad < 1e-3 * info.max))).all())


@given(case=cases())
def test_any_call_matches_the_oracle(backend, case):
    if in_range(case):
        outcome, expected = case.run(backend), case.expected()
        if case.student.dtype == torch.float16:
            # Values beyond float16's range have no ulp to count.
            finite = torch.from_numpy(expected.grad).half().isfinite()
            testing.assert_gradient(outcome.grad[finite], torch.from_numpy(expected.grad)[finite])
        else:
            case.hold(outcome, expected)


@given(
    logits=st.lists(st.floats(-80, 80, width=32), min_size=1, max_size=12),
    name=NAMES,
    normalize=st.booleans(),
    ratio_range=RANGES,
)
def test_any_logits_match_the_oracle(backend, logits, name, normalize, ratio_range):
    logits = torch.tensor(logits, dtype=torch.float32)
    options = {"divergence": name, "normalize_weight": normalize, "ratio_range": ratio_range}
    expected = oracle.weights(logits, **options)
    weight = on_device(fdk.fdiv_weight)(logits, backend=backend, **options)
    testing.assert_weight(weight, torch.from_numpy(expected.weight))


@given(logits=st.lists(st.floats(width=32), min_size=1, max_size=8), name=NAMES)
def test_any_float_as_logit(backend, logits, name):
    """Infinities, NaN, subnormals: the weight is NaN exactly where the logit is not finite; others do not change."""
    logits = torch.tensor(logits)
    finite = logits.isfinite()
    weight = on_device(fdk.fdiv_weight)(logits, divergence=name, backend=backend)
    assert torch.equal(weight.isfinite(), finite)
    if finite.any():
        alone = on_device(fdk.fdiv_weight)(logits[finite], divergence=name, backend=backend)
        torch.testing.assert_close(weight[finite], alone, rtol=1e-6, atol=0)


@given(seed=SEEDS, name=NAMES)
def test_normalized_weights_have_mean_one(backend, seed, name):
    case = make((11, 2), seed=seed)
    weight = on_device(fdk.fdiv_weight)(case.logits, divergence=name, backend=backend)
    assert abs(weight.double().mean().item() - 1) < 1e-6 and (weight > 0).all()


@given(seed=SEEDS, name=NAMES)
def test_order_of_the_batch_does_not_matter(backend, seed, name):
    case = make((5, 3, 4), seed=seed, divergence=name, normalizer=normalizer())
    order = torch.randperm(5, generator=torch.Generator().manual_seed(seed))
    shuffled = case.but(**{k: getattr(case, k)[order] for k in ("student", "teacher", "fake", "logits", "t")})
    first, second = case.run(backend), shuffled.run(backend)
    torch.testing.assert_close(first.grad[order], second.grad, rtol=1e-6, atol=1e-12)
    torch.testing.assert_close(first.mean, second.mean, rtol=1e-6, atol=0)


@given(seed=SEEDS, shift=st.floats(-3, 3))
def test_a_constant_bias_of_the_discriminator_is_removed(backend, seed, shift):
    """The normalizer's purpose: with the batch's own mean (decay 0), a bias of the logits changes nothing."""
    case = make((16, 2), seed=seed)
    options = {"divergence": "js", "ratio_range": None, "backend": backend}
    plain = on_device(fdk.fdiv_weight)(case.logits, case.t, normalizer=fdk.RatioNormalizer(3, decay=0.0), **options)
    biased = on_device(fdk.fdiv_weight)(
        case.logits + shift, case.t, normalizer=fdk.RatioNormalizer(3, decay=0.0), **options
    )
    torch.testing.assert_close(plain, biased, rtol=1e-5, atol=0)


@given(seed=SEEDS, factor=st.sampled_from((0.125, 0.5, 2.0, 16.0)))
def test_the_dmd_scale_makes_it_scale_free(backend, seed, factor):
    case = make((3, 3, 5), seed=seed, heads=None, scale=fdk.DmdScale(0.0))
    larger = case.but(student=case.student * factor, teacher=case.teacher * factor, fake=case.fake * factor)
    torch.testing.assert_close(case.run(backend).grad, larger.run(backend).grad, rtol=1e-6, atol=0)


@given(seed=SEEDS)
def test_swapping_teacher_and_fake_turns_the_gradient_round(backend, seed):
    case = make((3, 3, 5), seed=seed, heads=None, scale=None)
    swapped = case.but(teacher=case.fake, fake=case.teacher)
    assert torch.equal(case.run(backend).grad, -swapped.run(backend).grad)
