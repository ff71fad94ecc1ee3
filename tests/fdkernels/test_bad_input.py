"""Bad input raises before anything runs, with the argument's name, what was expected and what came; no state moves."""

import re
from fractions import Fraction
from pathlib import Path

import pytest
import torch

import fdkernels as fdk
from tests import device
from tests.cases import WeightCase, make, same_bits
from tests.device import on_device

pytestmark = pytest.mark.contract("bad input")

SHAPE = (8, 3, 6, 5)
IMAGE = torch.zeros(SHAPE)
NAN, INF = float("nan"), float("inf")


def flow(noisy=IMAGE, sigma=0.5):
    return fdk.Prediction("flow_prediction", noisy, sigma=sigma)


# What is changed -> the pattern of the message: "name: ... expected ... got ...".
BAD = {
    "student without a batch": ({"student": torch.zeros(())}, r"^student: .*expected.*got \(\)"),
    "empty batch": (
        {"student": IMAGE[:0], "teacher": IMAGE[:0], "fake": IMAGE[:0], "logits": torch.zeros(0), "t": torch.zeros(0)},
        r"^student: expected at least one sample.*got \(0, 3, 6, 5\)",
    ),
    "empty samples": (
        {"student": IMAGE[:, :0], "teacher": IMAGE[:, :0], "fake": IMAGE[:, :0]},
        r"^student: expected at least one element.*\(8, 0, 6, 5\)",
    ),
    "no student": ({"student": None}, r"^student: expected a tensor, got NoneType"),
    "mask elsewhere": (
        {"mask": torch.zeros(8, dtype=torch.bool, device="meta")},
        r"^mask: expected device (cpu|cuda:0).*got meta",
    ),
    "multiplier elsewhere": (
        {"multiplier": torch.zeros(8, device="meta")},
        r"^multiplier: expected device (cpu|cuda:0).*got meta",
    ),
    "missing logits": ({"logits": None, "normalizer": None}, r"^logits: .*'js'.*needs.*got None"),
    "normalizer without logits": ({"logits": None, "divergence": "rkl"}, r"^logits: .*normalizer.*got None"),
    "normalizer without t": ({"t": None}, r"^t: .*normalizer.*got None"),
    "no normalizer": ({"normalizer": torch.ones(10)}, r"^normalizer: expected a RatioNormalizer, got Tensor"),
    "weight beside logits": ({"weight": torch.ones(8), "normalizer": None}, r"^logits: .*weight.*got Tensor"),
    "weight beside a normalizer": (
        {"weight": torch.ones(8), "logits": None},
        r"^normalizer: .*weight.*got RatioNormalizer",
    ),
    "weight of another batch": (
        {"weight": torch.ones(3), "logits": None, "normalizer": None},
        r"^weight: expected .*\(8,\).*got \(3,\)",
    ),
    "weight of an element": (
        {"weight": torch.ones(8, 3), "logits": None, "normalizer": None},
        r"^weight: expected .*\(8,\).*got \(8, 3\)",
    ),
    "weight of an element of the last dimension": (
        {"weight": torch.ones(1, 1, 1, 8), "logits": None, "normalizer": None},
        r"^weight: expected .*\(8,\).*got \(1, 1, 1, 8\)",
    ),
    "weight as a number": (
        {"weight": 1.0, "logits": None, "normalizer": None},
        r"^weight: expected a tensor, got 1.0; write torch.full\(\(\), 1.0, device=student.device\)",
    ),
    "unknown divergence": ({"divergence": "pearso"}, r"^divergence: .*'pearso'.*'pearson'"),
    "misspelt alias": ({"divergence": "jensen-shanon"}, r"^divergence: .*'jensen-shanon'.*'jensen_shannon'"),
    "total variation": ({"divergence": "tv"}, r"^divergence: .*total variation.*almost everywhere"),
    "alpha of no number": ({"divergence": "alpha(nan)"}, r"^divergence: .*alpha.*finite.*got 'alpha\(nan\)'"),
    "divergence of another type": ({"divergence": 3}, r"^divergence: expected .*got int"),
    "NaN in ratio_range": ({"ratio_range": (NAN, 2.0)}, r"^ratio_range: expected .*got \(nan, 2\.0\)"),
    "NaN at the end of ratio_range": ({"ratio_range": (0.1, NAN)}, r"^ratio_range: expected .*got \(0\.1, nan\)"),
    "lo = hi": ({"ratio_range": (2.0, 2.0)}, r"^ratio_range: expected .*lo < hi.*got \(2\.0, 2\.0\)"),
    "lo > hi": ({"ratio_range": (20.0, 0.1)}, r"^ratio_range: expected .*lo < hi.*got \(20\.0, 0\.1\)"),
    "lo = 0": ({"ratio_range": (0.0, 1.0)}, r"^ratio_range: expected 0 < .*got \(0\.0, 1\.0\)"),
    "negative lo": ({"ratio_range": (-1.0, 1.0)}, r"^ratio_range: expected 0 < .*got \(-1\.0, 1\.0\)"),
    "infinite hi": ({"ratio_range": (0.1, INF)}, r"^ratio_range: expected .*inf.*got \(0\.1, inf\)"),
    "one number": ({"ratio_range": 3.0}, r"^ratio_range: expected .*got 3\.0"),
    "two digits": ({"ratio_range": "12"}, r"^ratio_range: expected .*got '12'"),
    "unknown scale": ({"scale": "dmd2"}, r"^scale: expected 'dmd'.*got 'dmd2'"),
    "scale as a tensor": ({"scale": torch.ones(8)}, r"^scale: expected 'dmd'.*multiplier="),
    "scale as a number": ({"scale": 2.0}, r"^scale: expected .*got 2\.0"),
    "multiplier of another shape": ({"multiplier": torch.ones(8, 5)}, r"^multiplier: expected .*\(8,\).*got \(8, 5\)"),
    "multiplier of another batch": ({"multiplier": torch.ones(4)}, r"^multiplier: expected .*\(8,\).*got \(4,\)"),
    "integer multiplier": (
        {"multiplier": torch.ones(8, dtype=torch.int64)},
        r"^multiplier: expected .*got torch\.int64",
    ),
    "multiplier as a number": ({"multiplier": 2.0}, r"^multiplier: expected a tensor, got 2.0; write torch.full"),
    "mask of another shape": ({"mask": torch.ones(8, 3, 5, dtype=torch.bool)}, r"^mask: expected .*got \(8, 3, 5\)"),
    "mask of weights": ({"mask": torch.ones(8)}, r"^mask: expected .*bool.*got torch\.float32.*mask != 0.*multiplier="),
    "mask of another size": (
        {"mask": torch.ones(8, 2, 1, 1, dtype=torch.bool)},
        r"^mask: expected .*got \(8, 2, 1, 1\)",
    ),
    "mask of no tensor": ({"mask": True}, r"^mask: expected a tensor, got bool"),
    "unknown nonfinite": ({"nonfinite": "skip"}, r"^nonfinite: expected .*'propagate'.*'zero'.*got 'skip'"),
    "unknown reduction": ({"reduction": "avg"}, r"^reduction: expected .*'mean'.*'sum'.*'none'.*got 'avg'"),
    "group of another type": ({"group": 0}, r"^group: expected .*got int"),
    "guidance without its output": ({"guidance_scale": 2.0}, r"^teacher_uncond: expected .*guidance_scale.*got None"),
    "output without its guidance": ({"teacher_uncond": IMAGE}, r"^guidance_scale: expected .*teacher_uncond.*got None"),
    "fake guidance without its output": ({"fake_guidance_scale": 2.0}, r"^fake_uncond: expected .*got None"),
    "fake output without its guidance": ({"fake_uncond": IMAGE}, r"^fake_guidance_scale: expected .*got None"),
    "uncond of another shape": (
        {"teacher_uncond": IMAGE[:4], "guidance_scale": 2.0},
        r"^teacher_uncond: expected .*\(8, 3, 6, 5\).*got \(4, 3, 6, 5\)",
    ),
    "fake uncond of another shape": (
        {"fake_uncond": IMAGE[:4], "fake_guidance_scale": 2.0},
        r"^fake_uncond: expected .*\(8, 3, 6, 5\).*got \(4, 3, 6, 5\)",
    ),
    "guidance of NaN": ({"teacher_uncond": IMAGE, "guidance_scale": NAN}, r"^guidance_scale: expected .*got nan"),
    "noisy of another shape": (
        {"prediction": flow(IMAGE[:4])},
        r"^noisy: expected .*\(8, 3, 6, 5\).*got \(4, 3, 6, 5\)",
    ),
    "integer noisy": ({"prediction": flow(IMAGE.long())}, r"^noisy: expected .*float.*got torch\.int64"),
    "sigma of another batch": ({"prediction": flow(sigma=torch.ones(5))}, r"^sigma: expected .*\(8,\).*got \(5,\)"),
    "sigma of another rank": ({"prediction": flow(sigma=torch.ones(8, 1, 3))}, r"^sigma: expected .*got \(8, 1, 3\)"),
    "sigma elsewhere": (
        {"prediction": flow(sigma=torch.ones(8, device="meta"))},
        r"^sigma: expected device (cpu|cuda:0).*got meta",
    ),
}


@pytest.mark.parametrize("what", BAD)
def test_bad_argument(backend, what):
    changes, message = BAD[what]
    case = make(SHAPE, normalizer=fdk.RatioNormalizer(4))
    state = case.options["normalizer"]
    changed = case.but(**changes)
    with pytest.raises((ValueError, TypeError), match=message):
        changed.call(backend, changed.student)
    assert torch.equal(state.mean, torch.ones(4)) and state.mean._version == 0


WEIGHT_BAD = (
    "normalizer without t",
    "lo > hi",
    "NaN in ratio_range",
    "unknown divergence",
    "total variation",
    "group of another type",
    "no normalizer",
)


@pytest.mark.contract("bad input", op="fdiv_weight")
@pytest.mark.parametrize("what", WEIGHT_BAD)
def test_bad_argument_of_fdiv_weight(backend, what):
    changes, message = BAD[what]
    case = WeightCase(torch.zeros(8), torch.zeros(8), {"normalizer": fdk.RatioNormalizer(4)})
    state = case.options["normalizer"]
    with pytest.raises((ValueError, TypeError), match=message):
        case.but(**changes).call(backend)
    assert torch.equal(state.mean, torch.ones(4)) and state.mean._version == 0


@pytest.mark.cpu_only("gloo")
def test_weight_beside_a_group(backend, world):
    case = make(SHAPE, heads=None, weight=torch.ones(8))
    with pytest.raises(ValueError, match="^group: .*weight"):
        case.call(backend, group=world)


@pytest.mark.contract("bad input", op="fdiv_weight")
@pytest.mark.parametrize("shape", ((), (0,), (0, 3)))
def test_fdiv_weight_of_nothing(backend, shape):
    with pytest.raises(ValueError, match=rf"^logits: expected .*got {re.escape(str(shape))}"):
        on_device(fdk.fdiv_weight)(torch.zeros(shape), backend=backend)


@pytest.mark.parametrize("name", ("nativ", "cuda", ""))
def test_unknown_backend(backend, name):
    with pytest.raises(ValueError, match=rf"^backend: expected one of .*{backend}.*got '{name}'"):
        make(SHAPE).call(name)


def test_unavailable_backends_say_why_and_never_fall_back(backend):
    from fdkernels.backends import available

    missing = {name: why for name, why in available(device.name()).items() if why is not None}
    assert backend not in missing
    for name, why in missing.items():
        with pytest.raises(RuntimeError, match=re.escape(why)):
            make(SHAPE).call(name)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("epsilo", IMAGE, 0.5, 0.5), r"^prediction: .*'epsilo'.*'epsilon'"),
        (("epsilon", IMAGE, None, 0.5), r"^alpha: .*epsilon.*got None"),
        (("edm", IMAGE, None, None), r"^sigma: .*edm.*got None"),
        (("epsilon", IMAGE, 5e-5, 1.0), r"^alpha: .*0\.0001.*got 5e-05"),
        (("epsilon", IMAGE, torch.tensor([0.5, 9e-5]), 1.0), r"^alpha: .*0\.0001.*got 9\.0+1\d+e-05"),
        (("epsilon", IMAGE, NAN, 1.0), r"^alpha: expected .*finite"),
        (("edm", IMAGE, None, torch.tensor([*[1.0] * 6, -2.0])), r"^sigma: expected .*finite.*got -2\.0$"),
        (("edm", IMAGE, None, torch.tensor([1.0, NAN])), r"^sigma: expected .*finite.*got nan$"),
        (("edm", IMAGE, None, Fraction(-1, 2)), r"^sigma: expected .*finite.*got -0\.5$"),
        (("v_prediction", IMAGE, Fraction(3, 5), Fraction(3, 5)), r"^alpha, sigma: .*difference of 0\.28;"),
        (("v_prediction", IMAGE, torch.ones(3), torch.zeros(5)), r"^alpha: expected leading dimensions"),
        (("flow_prediction", IMAGE, None, -0.5), r"^sigma: expected .*-0\.5"),
        (("epsilon", None, 0.5, 0.5), r"^noisy: .*got NoneType"),
        (("edm", IMAGE, None, "0.5"), r"^sigma: expected .*got str"),
    ],
)
def test_bad_predictions(backend, arguments, message):
    kind, noisy, alpha, sigma = arguments
    with pytest.raises((ValueError, TypeError), match=message):
        make(SHAPE).but(prediction=fdk.Prediction(kind, noisy, alpha=alpha, sigma=sigma)).call(backend)


def test_small_batches_warn_once(backend):
    """The batch mean over few samples flattens h. No warning for rkl, whose h is constant."""
    import warnings

    from fdkernels._op import checks

    case = make((2, 3, 6, 5))
    checks.warned.clear()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        warnings.simplefilter("ignore", DeprecationWarning)  # NumPy's, from Triton 3.6's interpreter
        case.but(divergence="rkl").call(backend)
        case.but(normalize_weight=False).call(backend)
        make((8, 3, 6, 5)).call(backend)
        assert not caught
        case.call(backend)
        case.call(backend)
    assert len(caught) == 1
    message = str(caught[0].message)
    assert "weight=" in message and "group=" in message and "2 samples" in message
    assert Path(caught[0].filename).parent.name == "tests", "the warning points at the caller"


def test_a_divergence_that_returns_another_shape(backend):
    state = fdk.RatioNormalizer(4)
    case = make(SHAPE)
    own = fdk.Divergence("test_wrong_shape", lambda log_ratio: log_ratio.sum())
    with pytest.raises(ValueError, match="test_wrong_shape.*shape"):
        case.call(backend, divergence=own, normalizer=state)
    assert same_bits(state.mean, torch.ones(4))


def test_register_divergence():
    own = fdk.Divergence("test_registered", lambda log_ratio: 0.5 * log_ratio, aliases=("test_registered_alias",))
    fdk.register_divergence(own)
    logits = torch.linspace(-1, 1, 9)
    by_name = fdk.fdiv_weight(logits, divergence="test_registered_alias")
    torch.testing.assert_close(by_name, fdk.fdiv_weight(logits, divergence="alpha(0.5)"), rtol=1e-6, atol=0)
    assert fdk.divergences()["test_registered"] is own
    for taken in ("test_registered", "test_registered_alias", "js", "sf", "tv", "alpha(2)"):
        with pytest.raises(ValueError, match="taken"):
            fdk.register_divergence(fdk.Divergence(taken, lambda log_ratio: 0.5 * log_ratio))
    with pytest.raises(TypeError, match="expected a Divergence, got function"):
        fdk.register_divergence(own.log_weight)
