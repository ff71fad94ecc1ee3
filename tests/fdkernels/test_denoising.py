"""`denoising_loss`: exact results, every kind and weighting, FastGen's recorded losses, and what it refuses."""

from pathlib import Path

import numpy as np
import pytest
import torch

import fdkernels as fdk
from fdkernels.denoising.weighting import WEIGHTINGS, weighting_of
from tests.denoising import TARGETS, make_denoising, weighted
from tests.device import on_device

DATA = Path(__file__).parents[1] / "data"
DTYPES = (torch.bfloat16, torch.float16, torch.float32, torch.float64)
SHAPE = (5, 3, 6, 7)


@pytest.mark.contract("exactness", op="denoising")
class TestExactness:
    @pytest.mark.parametrize("kind", TARGETS)
    @pytest.mark.parametrize("dtype", DTYPES, ids=str)
    def test_kinds(self, backend, kind, dtype):
        for levels in ("per sample", "per row"):
            make_denoising(SHAPE, dtype, prediction=kind, levels=levels).check(backend)

    @pytest.mark.pairwise
    @pytest.mark.parametrize("noise", DTYPES, ids=str)
    @pytest.mark.parametrize("x0", DTYPES, ids=str)
    @pytest.mark.parametrize("dtype", DTYPES, ids=str)
    def test_any_mix_of_dtypes(self, backend, dtype, x0, noise):
        case = weighted(SHAPE, dtype)
        case.but(x0=case.x0.to(x0), noise=case.noise.to(noise)).check(backend)

    @pytest.mark.parametrize(
        ("dtype", "gap"), ((torch.float32, 1e-2), (torch.float32, 1e-5), (torch.float64, 1e-2)), ids=str
    )
    def test_predictions_near_the_target(self, backend, dtype, gap):
        make_denoising((3, 999), dtype, gap=gap).check(backend)
        case = make_denoising((3, 999), dtype, prediction="edm", sigma=80.0)
        near = (TARGETS["edm"](case.x0.double(), case.noise.double(), 1.0, torch.tensor(80.0), 0.5) * (1 + gap)).to(
            dtype
        )
        case.but(pred=near).check(backend)

    @pytest.mark.parametrize("size", (1e-18, 1e21))
    def test_squares_beyond_float32(self, backend, size):
        """They are added up in float64; a count brings the mean back into float32."""
        case = make_denoising((3, 700))
        scaled = case.but(**{name: getattr(case, name) * size for name in case.ORDER})
        if size < 1:
            return scaled.check(backend)
        return scaled.but(count=torch.tensor(2.0**100, dtype=torch.float64)).check(backend)

    @pytest.mark.parametrize("reduction", ("mean", "sum", "none"))
    @pytest.mark.parametrize("dtype", DTYPES, ids=str)
    def test_reductions(self, backend, reduction, dtype):
        weighted(SHAPE, dtype, reduction=reduction).check(backend)

    @pytest.mark.parametrize("count", (1, 77, torch.tensor(123.0), torch.tensor(0)))
    @pytest.mark.parametrize("dtype", (torch.float16, torch.float32), ids=str)
    def test_counts(self, backend, count, dtype):
        make_denoising(SHAPE, dtype, count=count).check(backend)

    @pytest.mark.parametrize(
        "target",
        ((2.0, -0.5), (torch.linspace(0, 2, 5), 1.0), (0.0, torch.ones(5, 3))),
        ids=("numbers", "per sample", "per row"),
    )
    def test_targets_of_ones_own(self, backend, target):
        make_denoising(SHAPE, target=target).check(backend)

    @pytest.mark.parametrize("weight", (0.0, 2.5, (5,), (5, 3), (1, 1, 6, 7), (5, 3, 6, 7)), ids=str)
    def test_weights(self, backend, weight):
        if isinstance(weight, tuple):
            weight = torch.rand(weight, generator=torch.Generator().manual_seed(4))
        make_denoising(SHAPE, weight=weight).check(backend)

    def test_what_the_target_has_not_is_not_read(self, backend):
        case = make_denoising((4, 37))
        case.but(x0=case.x0 * torch.nan).hold(case.but(x0=case.x0 * torch.nan).run(backend), case.expected())
        case = make_denoising((4, 37), prediction="sample")
        case.hold(case.but(noise=case.noise * torch.nan).run(backend), case.expected())

    @pytest.mark.parametrize("value", (torch.nan, torch.inf))
    def test_what_is_not_finite_propagates(self, backend, value):
        case = make_denoising((4, 37))
        case.pred[1, 5] = value
        outcome = case.run(backend)
        assert not outcome.loss.isfinite() and not outcome.grad[1, 5].isfinite()
        outcome.grad[1, 5] = 0
        assert outcome.grad.isfinite().all()


@pytest.mark.contract("weightings", op="denoising")
class TestWeightings:
    LEVELS = 0.2 + torch.rand(5, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    FACTORS = {
        "x0": lambda alpha, sigma: 1 + 0 * alpha,
        "epsilon": lambda alpha, sigma: alpha**2 / sigma**2,
        "v": lambda alpha, sigma: alpha**2 / sigma**2 + 1,
        "snr_ratio": lambda alpha, sigma: alpha**2 / sigma**2 / (alpha**2 / sigma**2 + 1),
        "min_snr": lambda alpha, sigma: (alpha**2 / sigma**2).clamp(max=3.0),
        "edm": lambda alpha, sigma: ((sigma / alpha) ** 2 + 0.25) / (sigma / alpha * 0.5) ** 2,
        "trig": lambda alpha, sigma: 1 / sigma**2,
    }

    @pytest.mark.host_code("no kernel runs")
    def test_the_table(self, backend):
        assert set(self.FACTORS) == set(WEIGHTINGS)

    @pytest.mark.parametrize("name", FACTORS)
    @pytest.mark.parametrize("kind", ("epsilon", "v_prediction", "flow_prediction", "edm", "sample"))
    def test_equals_the_weighted_error_of_x0(self, backend, kind, name):
        """In float64: the loss of the raw prediction is that of x0."""
        angle = self.LEVELS
        alpha, sigma = {
            "flow_prediction": (1 - angle / 2, angle / 2), "edm": (torch.ones_like(angle), 3 * angle),
        }.get(kind, (angle.cos(), angle.sin()))  # fmt: skip
        case = make_denoising(SHAPE, torch.float64, prediction=kind)
        a, s = (v.view(-1, 1, 1, 1) for v in (alpha, sigma))
        x_t = a * case.x0 + s * case.noise
        noisy = None if kind == "sample" else x_t
        found_x0 = fdk.Prediction(kind, noisy, alpha, sigma).to_x0(case.pred, backend="reference")
        expected = (self.FACTORS[name](a, s) * (found_x0 - case.x0) ** 2).mean()
        found = case.but(alpha=alpha, sigma=sigma, weighting=name, snr_gamma=3.0).call(backend)
        torch.testing.assert_close(found, expected, rtol=1e-11, atol=0)
        twice = case.but(alpha=alpha, sigma=sigma, weighting=name, snr_gamma=3.0, weight=torch.full((5, 3), 2.0))
        torch.testing.assert_close(twice.call(backend), 2 * expected, rtol=1e-11, atol=0)

    def test_levels_of_different_ranks(self, backend):
        """Where a trailing dimension has the batch's size, too."""
        angle = 0.2 + torch.rand(4, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
        case = make_denoising((4, 4, 4, 4), torch.float64, prediction="v_prediction")
        alpha, sigma = angle.cos(), angle.sin()
        expected = case.but(alpha=alpha, sigma=sigma, weighting="min_snr", weight=alpha).call(backend)
        everywhere = sigma.view(4, 1, 1, 1).expand(4, 4, 4, 4)
        for a, s in ((alpha, sigma[:, None]), (alpha[:, None], sigma), (alpha, everywhere)):
            found = case.but(alpha=a, sigma=s, weighting="min_snr", weight=alpha[:, None]).call(backend)
            torch.testing.assert_close(found, expected, rtol=1e-13, atol=0)

    @pytest.mark.host_code("no kernel runs")
    @pytest.mark.parametrize("kind", ("epsilon", "v_prediction", "flow_prediction", "edm", "sample"))
    @pytest.mark.parametrize("name", FACTORS)
    def test_the_ends_of_a_schedule_have_their_limits(self, backend, name, kind):
        """A weight at an end is the limit of the weights near it."""

        def weights(sigma):
            sigma = torch.tensor(sigma, dtype=torch.float64)
            alpha = {"flow_prediction": 1 - sigma, "edm": torch.ones_like(sigma)}.get(kind, (1 - sigma**2).sqrt())
            return weighting_of(name, kind, alpha, sigma, 0.5, 3.0)

        ends, near = weights([0.0, 1.0]), weights([1e-7, 1 - 1e-14])
        assert not ends.isnan().any()
        finite = ends.isfinite()
        assert (near[~finite] > 1e10).all()
        torch.testing.assert_close(ends[finite], near[finite], rtol=1e-5, atol=1e-5)


@pytest.mark.contract("peers", op="denoising")
@pytest.mark.parametrize(
    ("file", "kind"), (("x0", "sample"), ("eps", "epsilon"), ("v", "v_prediction"), ("flow", "flow_prediction"))
)
def test_fastgen(backend, file, kind):
    """FastGen's denoising_score_matching_loss, recorded."""
    with np.load(DATA / f"fastgen_dsm_{file}.npz") as arrays:
        v = {name: torch.from_numpy(arrays[name]) for name in arrays.files}
    pred = v["pred"].clone().requires_grad_()
    loss = on_device(fdk.denoising_loss)(
        pred, v["x0"], v["noise"], prediction=kind, alpha=v["alpha"], sigma=v["sigma"], backend=backend
    )
    loss.backward()
    torch.testing.assert_close(loss.detach(), v["loss"], rtol=1e-6, atol=0)
    torch.testing.assert_close(pred.grad, v["grad"], rtol=1e-5, atol=1e-9)


@pytest.mark.contract("bad input", op="denoising")
@pytest.mark.parametrize(
    ("changes", "error", "message"),
    (
        ({"prediction": "epsilom"}, ValueError, "prediction: unknown kind 'epsilom'; did you mean 'epsilon'"),
        ({"prediction": "v_prediction", "alpha": None}, ValueError, "alpha: v_prediction needs it, got None"),
        ({"prediction": "edm", "sigma": None}, ValueError, "sigma: edm needs it, got None"),
        ({"prediction": "edm", "sigma": -1.0}, ValueError, "sigma: expected finite numbers >= 0, got -1.0"),
        ({"prediction": "v_prediction", "alpha": 0.2, "sigma": 0.8}, ValueError, "v_prediction needs alpha²"),
        ({"prediction": "flow_prediction", "sigma": 3.0, "weighting": "v"}, ValueError, "sigma: flow_prediction needs"),
        ({"target": (torch.nan, 1.0)}, ValueError, r"target\[0\]: expected finite numbers, got nan"),
        ({"weight": torch.ones(4, requires_grad=True)}, ValueError, "weight: expected a tensor without gradient"),
        ({"prediction": "edm", "sigma": torch.ones(4, requires_grad=True)}, ValueError, "sigma: expected a tensor"),
        ({"sigma_data": 0}, ValueError, "sigma_data: expected a positive number, got 0"),
        ({"target": (1.0, 0.0), "alpha": 1.0}, ValueError, "target: expected without alpha and sigma"),
        ({"target": (1.0,)}, TypeError, r"target: expected \(p, q\), got \(1.0,\)"),
        ({"target": (1.0, "0")}, TypeError, r"target\[1\]: expected a number or a tensor, got str"),
        ({"weighting": "minsnr", "alpha": 1.0, "sigma": 1.0}, ValueError, "weighting: unknown name 'minsnr'; did"),
        ({"weighting": "min_snr"}, ValueError, "alpha: weighting 'min_snr' needs it, got None"),
        ({"weighting": "x0", "target": (1.0, 1.0)}, ValueError, "weighting: expected without target"),
        ({"weighting": "x0", "alpha": 1.0, "sigma": 1.0, "snr_gamma": -1}, ValueError, "snr_gamma: expected a posi"),
        ({"weight": "1"}, TypeError, "weight: expected a number or a tensor, got str"),
        ({"weight": torch.ones(3)}, ValueError, r"weight: expected leading dimensions of pred, as \(4,\)"),
        ({"reduction": "avg"}, ValueError, "reduction: expected one of 'mean', 'sum', 'none', got 'avg'"),
        ({"reduction": "sum", "count": 3}, ValueError, "count: expected with reduction='mean'"),
        ({"count": 0}, ValueError, "count: expected a whole number of at least 1"),
    ),
)  # fmt: skip
def test_refused(backend, changes, error, message):
    with pytest.raises(error, match=message):
        make_denoising(**changes).call(backend)


@pytest.mark.contract("bad input", op="denoising")
@pytest.mark.host_code("no kernel runs")
def test_an_empty_batch(backend):
    with pytest.raises(ValueError, match=r"pred: expected at least one sample, got shape \(0, 3\)"):
        fdk.denoising_loss(*(torch.zeros(0, 3),) * 3, backend=backend)
