"""Values on both sides of each check's limit: the last that is accepted, the first that is refused."""

import math
import warnings

import pytest
import torch

import fdkernels as fdk
from fdkernels._op import checks
from tests.cases import make

IMAGE = torch.zeros(2, 3, 4, 4)
ALMOST = 1 / 3  # a sigma, whose alpha `off_the_circle` gives


def off_the_circle(difference):
    return {"alpha": math.sqrt(1 + difference - ALMOST**2), "sigma": ALMOST}


TAKEN = {
    "alpha": ("epsilon", {"alpha": 1e-4, "sigma": 1.0}),
    "alpha of tensors": ("epsilon", {"alpha": torch.tensor([1e-4, 1.0], dtype=torch.float64), "sigma": 1.0}),
    "sigma": ("edm", {"sigma": 0.0}),
    "flow": ("flow_prediction", {"sigma": torch.tensor([0.0, 1.0])}),
    "circle": ("v_prediction", off_the_circle(0.0099)),
    "circle below": ("v_prediction", off_the_circle(-0.0099)),
}
REFUSED = {
    "alpha": ("epsilon", {"alpha": 0.99e-4, "sigma": 1.0}),
    "alpha of tensors": ("epsilon", {"alpha": torch.tensor([1.0, 0.99e-4]), "sigma": 1.0}),
    "sigma": ("edm", {"sigma": -1e-9}),
    "flow": ("flow_prediction", {"sigma": torch.tensor([0.0, 1.001])}),
    "circle": ("v_prediction", off_the_circle(0.0101)),
    "circle below": ("v_prediction", off_the_circle(-0.0101)),
}


@pytest.mark.parametrize("name", TAKEN)
def test_levels(name):
    kind, levels = TAKEN[name]
    fdk.Prediction(kind, IMAGE, **levels)
    kind, levels = REFUSED[name]
    with pytest.raises(ValueError, match=r"^(alpha|sigma|alpha, sigma): "):
        fdk.Prediction(kind, IMAGE, **levels)


@pytest.mark.parametrize(
    ("name", "taken", "refused"),
    [
        ("t_range", {"t_range": (0.5, 0.501)}, {"t_range": (0.5, 0.5)}),
        ("decay", {"decay": 0.0}, {"decay": -1e-9}),
        ("decay", {"decay": math.nextafter(1, 0)}, {"decay": 1.0}),
        ("bins", {"bins": 1}, {"bins": 0}),
        ("edges", {"bins": 3, "edges": [0.0, 1.0]}, {"bins": 3, "edges": [0.5, 0.5]}),
    ],
)
def test_normalizers(name, taken, refused):
    fdk.RatioNormalizer(**{k: torch.tensor(v) if k == "edges" else v for k, v in taken.items()})
    with pytest.raises(ValueError, match=f"^{name}: "):
        fdk.RatioNormalizer(**{k: torch.tensor(v) if k == "edges" else v for k, v in refused.items()})


def test_edges_from_samples():
    """As many distinct values as bins are enough; each bin begins with its own first sample."""
    state = fdk.RatioNormalizer.from_samples(torch.tensor([3.0, 1.0, 2.0, 4.0]), bins=4)
    assert state.edges.tolist() == [2.0, 3.0, 4.0] and state.t_range == (1.0, 4.0)
    for too_few in ([1.0, 2.0, 3.0], [1.0, 2.0, 2.0, 2.0]):
        with pytest.raises(ValueError, match="^t: "):
            fdk.RatioNormalizer.from_samples(torch.tensor(too_few), bins=4)


@pytest.mark.contract("bad input")
@pytest.mark.parametrize(
    ("name", "taken", "refused"),
    [
        ("ratio_range", (0.5, math.nextafter(0.5, 1)), (0.5, 0.5)),
        ("ratio_range", (math.exp(-80), math.exp(80)), (math.exp(-80.001), 1.0)),
        ("ratio_range", (1.0, math.exp(80)), (1.0, math.exp(80.001))),
    ],
)
def test_options(backend, name, taken, refused):
    case = make((2, 2, 3))
    assert case.call(backend, **{name: taken}).isfinite()
    with pytest.raises(ValueError, match=f"^{name}: "):
        case.call(backend, **{name: refused})


@pytest.mark.contract("bad input")
@pytest.mark.parametrize("name", ("eps", "floor"))
def test_scales(backend, name):
    assert make((2, 2, 3), scale=fdk.DmdScale(**{name: 0.0})).call(backend).isfinite()
    for refused in (-1e-12, math.nan, math.inf, "0", True):
        with pytest.raises(ValueError, match=f"^{name}: expected a .*number"):
            fdk.DmdScale(**{name: refused})


@pytest.mark.contract("bad input")
@pytest.mark.parametrize("batch", (1, 7, 8))
def test_the_smallest_batch_without_a_warning(backend, batch):
    checks.warned.clear()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", UserWarning)
        make((batch, 2, 3)).call(backend)
    assert [w.category for w in caught if "normalize_weight" in str(w.message)] == [UserWarning] * (batch < 8)
