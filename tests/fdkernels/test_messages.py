"""Error messages: values that do not contradict the message, cut to a line, and a name for every kind of tensor."""

import enum
import functools
import math
import time
import warnings
from fractions import Fraction

import numpy as np
import pytest
import torch

import fdkernels as fdk
from fdkernels._op.checks import LONGEST, shown
from tests.cases import make
from tests.device import on_device

pytestmark = pytest.mark.contract("bad input")

SHAPE = (8, 3, 4, 4)


def test_a_value_just_beyond_its_bound():
    """The message never says "expected >= 0.0001, got 0.0001"."""
    noisy = torch.ones(SHAPE)
    below, above = math.nextafter(1e-4, 0), math.nextafter(1.0, 2)
    with pytest.raises(ValueError, match=rf"^alpha: .*>= 0\.0001 .*got {below!r};"):
        fdk.Prediction("epsilon", noisy, alpha=below, sigma=1.0)
    with pytest.raises(ValueError, match=rf"^sigma: .*\[0, 1\], got {above!r}"):
        fdk.Prediction("flow_prediction", noisy, sigma=above)
    with pytest.raises(ValueError, match=r"^sigma: .*\[0, 1\], got 1\.00000011920"):
        fdk.Prediction("flow_prediction", noisy, sigma=torch.nextafter(torch.ones(8), torch.tensor(2.0)))
    with pytest.raises(ValueError, match=r"^alpha, sigma: .*got a difference of 0\.0100000\d*[1-9]"):
        fdk.Prediction("v_prediction", noisy, alpha=math.sqrt(1.01 + 1e-9), sigma=0.0)


class Colour(enum.Enum):
    RED = 1


class Endless:
    def __repr__(self):
        while True:
            time.sleep(1)


class Raising(float):
    def __repr__(self):
        raise RuntimeError("no")


def alias_bomb():
    bomb = ["lol"] * 9
    for _ in range(12):
        bomb = [bomb] * 9
    return bomb


HUGE = {
    "alias bomb": alias_bomb(),
    "alias bomb in dicts": functools.reduce(lambda inner, _: dict.fromkeys("abcdefghi", inner), range(12), "lol"),
    "string": "x" * 50_000_000,
    "bytes": b"x" * 50_000_000,
    "whole number": 10**100_000,
    "fraction": Fraction(10**5000, 3),
    "list": [0.123456789] * 5_000_000,
    "set": set(range(1_000_000)),
    "tensor": torch.zeros(1000, 1000),
    "array": np.zeros((1000, 1000)),
    "endless": Endless(),
    "raising": Raising(2.0),
    "itself": (lambda v: v.append(v) or v)([]),
}


@pytest.mark.parametrize("what", HUGE)
def test_a_value_in_a_message_is_cut(what):
    start = time.perf_counter()
    text = shown(HUGE[what])
    assert 0 < len(text) <= LONGEST + 3
    assert time.perf_counter() - start < 0.5


@pytest.mark.parametrize("value", (None, True, 3, -0.0, 1e-300, float("nan"), "ab'c", b"x", (1,), (), [1, (2.5, "x")],
                                   {"a": [1]}, torch.float16, np.float32(0.1), Fraction(1, 3)))  # fmt: skip
def test_short_values_are_shown_as_they_are(value):
    assert shown(value) == repr(value)


# A float that raises when it is printed is still a number: these options accept it.
ACCEPTED = {("sigma", "tensor")} | {
    (name, "raising") for name in ("sigma", "sigma_data", "ratio_range's end", "eps", "t_range's end")
}

REFUSALS = {
    "bins": lambda v: fdk.RatioNormalizer(v),
    "decay": lambda v: fdk.RatioNormalizer(decay=v),
    "t_range": lambda v: fdk.RatioNormalizer(t_range=v),
    "t_range's end": lambda v: fdk.RatioNormalizer(t_range=(0, v)),
    "edges": lambda v: fdk.RatioNormalizer(3, edges=v),
    "kind": lambda v: fdk.Prediction(v, torch.ones(SHAPE), sigma=0.5),
    "sigma": lambda v: fdk.Prediction("edm", torch.ones(SHAPE), sigma=v),
    "sigma_data": lambda v: fdk.Prediction("edm", torch.ones(SHAPE), sigma=1.0, sigma_data=v),
    "divergence": lambda v: fdk.FDivLoss(v),
    "alias of a divergence": lambda v: fdk.Divergence("test_own", torch.abs, (v,) if not isinstance(v, str) else v),
    "ratio_range": lambda v: fdk.FDivLoss(ratio_range=v),
    "ratio_range's end": lambda v: fdk.FDivLoss(ratio_range=(0.1, v)),
    "scale": lambda v: fdk.FDivLoss(scale=v),
    "eps": lambda v: fdk.DmdScale(eps=v),
    "reduction": lambda v: fdk.FDivLoss(reduction=v),
    "nonfinite": lambda v: fdk.FDivLoss(nonfinite=v),
    "normalize_weight": lambda v: fdk.fdiv_weight(torch.zeros(8), normalize_weight=v),
}


@pytest.mark.parametrize("name", REFUSALS)
def test_every_option_cuts_what_it_was_given(name):
    """Each option raises nothing but a short TypeError or ValueError, and soon."""
    for what, value in HUGE.items():
        start = time.perf_counter()
        try:
            REFUSALS[name](value)
        except (TypeError, ValueError) as error:
            assert len(str(error)) < 700, f"{name}, {what}: {str(error)[:900]}"
            assert ":" in str(error)[:30], f"{name}, {what}: {str(error)[:200]}"
        else:
            assert (name, what) in ACCEPTED
        assert time.perf_counter() - start < 5.0, (name, what)


def nested(layout):
    parts = [torch.ones(3, 4, 4)] * 8
    return torch.nested.nested_tensor(parts, layout=layout)


def kinds():
    """Tensors that are not plain, dense and real, of student's shape where they have a shape."""
    image = torch.ones(SHAPE)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = {
            "nested, strided": nested(torch.strided),
            "nested, jagged": nested(torch.jagged),
            "quantized": torch.quantize_per_tensor(image, 0.1, 0, torch.qint8),
            "sparse": image.to_sparse(),
            "complex": image.to(torch.complex64),
        }
        if torch.backends.mkldnn.is_available():
            found["mkldnn"] = image.to_mkldnn()
    return found


KINDS = kinds()
ARGUMENTS = {
    "student": "student", "teacher": "teacher", "fake": "fake", "logits": "logits", "t": "t", "mask": "mask",
    "scale": "scale", "teacher_uncond": "teacher_uncond",
}  # fmt: skip


@pytest.mark.cpu_only("what takes tensors to another device knows plain ones alone")
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", ARGUMENTS)
def test_tensors_of_another_kind(backend, kind, name):
    case = make(SHAPE, normalizer=fdk.RatioNormalizer(4))
    guidance = {"guidance_scale": 2.0} if name == "teacher_uncond" else {}
    with pytest.raises((TypeError, ValueError), match=rf"^{name}: expected .*got"):
        changed = case.but(**{name: KINDS[kind]}, **guidance)
        changed.call(backend, changed.student)
    assert torch.equal(case.options["normalizer"].mean, torch.ones(4))


@pytest.mark.cpu_only("as above")
@pytest.mark.parametrize("kind", KINDS)
def test_tensors_of_another_kind_elsewhere(kind):
    value, image = KINDS[kind], torch.ones(SHAPE)
    for call in (
        lambda: fdk.Prediction("edm", image, sigma=value),
        lambda: fdk.Prediction("epsilon", image, sigma=image, alpha=value),
        lambda: fdk.RatioNormalizer(3, edges=value),
        lambda: fdk.RatioNormalizer.from_samples(value),
        lambda: fdk.fdiv_weight(value),
        lambda: fdk.fused_fdiv_loss(image, image, image, weight=value),
        lambda: fdk.fused_fdiv_loss(
            image, image, image, divergence="rkl", prediction=fdk.Prediction("edm", value, sigma=1)
        ),
    ):
        with pytest.raises(
            (TypeError, ValueError), match=r"^(sigma|alpha|edges|t|logits|weight|noisy): expected .*got"
        ):
            call()


@pytest.mark.cpu_only("as above")
@pytest.mark.parametrize("name", ("student", "logits", "t"))
def test_tensors_inside_of_torch_func(backend, name):
    """No error from the inside of autograd, and no state that one sample has changed for all."""
    case = make(SHAPE, normalizer=fdk.RatioNormalizer(4))
    value = getattr(case, name)

    def call(v):
        changed = case.but(**{name: v})
        return changed.call(backend, changed.student)

    with pytest.raises(TypeError, match=rf"^{name}: expected a plain tensor, got one inside a torch.func transform"):
        torch.func.vmap(call)(torch.stack((value, value)))
    assert torch.equal(case.options["normalizer"].mean, torch.ones(4))


@pytest.mark.parametrize("t_range", ((-1e308, 1e308), (0, 5e-324), (0.0, 1e-307), (-(10**400), 0), (0, 10**400)))
def test_ranges_whose_bins_float64_does_not_hold(t_range):
    with pytest.raises(ValueError, match=r"^t_range: expected .*got"):
        fdk.RatioNormalizer(10, t_range=t_range)


def test_the_widest_and_narrowest_ranges(backend):
    """Ranges within these bounds give the same result on every backend."""
    weight = on_device(fdk.fdiv_weight)
    logits = torch.linspace(-1, 1, 8)
    for t_range in ((-8e307, 8e307), (0.0, 3e-307), (0.1, math.nextafter(0.1, 1))):
        t = torch.linspace(0, 1, 8, dtype=torch.float64) * (t_range[1] - t_range[0]) + t_range[0]
        states = [fdk.RatioNormalizer(10, t_range=t_range) for _ in range(2)]
        found = weight(logits, t, normalizer=states[0], backend=backend)
        torch.testing.assert_close(found, weight(logits, t, normalizer=states[1], backend="reference"))
        torch.testing.assert_close(states[0].mean, states[1].mean)
    fdk.RatioNormalizer(3, t_range=(-1e308, 1e308), edges=(0.0, 1.0))  # with edges, no bin width is needed
