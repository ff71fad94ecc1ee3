"""`add_noise` with noise that is given, `Prediction.to_x0` and `from_x0`: exact results, and what they refuse."""

import pytest
import torch

import fdkernels as fdk
from fdkernels import testing
from fdkernels.prediction import KINDS
from tests.device import on_device
from tests.noising import doubled, make_noising

SHAPE = (5, 3, 6, 7)
DTYPES = (torch.bfloat16, torch.float16, torch.float32, torch.float64)


@pytest.mark.contract("exactness", op="noising")
class TestExactness:
    @pytest.mark.pairwise
    @pytest.mark.parametrize("levels", ("numbers", "per sample", "per row", "per element"))
    @pytest.mark.parametrize("noise", DTYPES, ids=str)
    @pytest.mark.parametrize("dtype", DTYPES, ids=str)
    def test_any_mix_of_dtypes(self, backend, dtype, noise, levels):
        case = make_noising(SHAPE, dtype, levels=levels)
        case.but(noise=case.noise.to(noise)).check(backend)

    @pytest.mark.parametrize(
        "sizes", ((), (1,), (5,), (5, 1), (5, 3), (1, 3, 1, 1), (5, 1, 6, 1), (1, 1, 1, 7)), ids=str
    )
    @pytest.mark.parametrize("dtype", (torch.float32, torch.float64, torch.bfloat16), ids=str)
    def test_levels_that_broadcast(self, backend, sizes, dtype):
        level = (0.1 + torch.rand(sizes, generator=torch.Generator().manual_seed(0))).to(dtype)
        make_noising(SHAPE).but(alpha=level, sigma=level * 2).check(backend)

    @pytest.mark.parametrize("levels", ("numbers", "per sample", "per row", "per element"))
    @pytest.mark.parametrize("dtype", DTYPES, ids=str)
    def test_no_alpha_is_the_flows(self, backend, dtype, levels):
        """1 - sigma is formed in float64: in bfloat16, or float32, it would not be the schedule's."""
        case = make_noising(SHAPE, dtype, levels=levels)
        low = case.sigma / 3 if levels == "numbers" else (case.sigma / 3).bfloat16()
        case.but(alpha=None, sigma=low).check(backend)
        case.but(alpha=None, sigma=0.9999).check(backend)

    @pytest.mark.parametrize("dtype", DTYPES, ids=str)
    def test_terms_that_cancel(self, backend, dtype):
        case = make_noising((3, 999), dtype)
        case.but(noise=-case.x0 * 1.001, alpha=700.3, sigma=700.0).check(backend)

    @pytest.mark.parametrize("value", (torch.nan, torch.inf, -torch.inf))
    def test_values_that_are_not_finite_stay_in_their_element(self, backend, value):
        case = make_noising((4, 37))
        case.x0[1, 5] = case.noise[2, 6] = value
        case.check(backend)

    def test_large_values_do_not_overflow_early(self, backend):
        case = make_noising((2, 70), torch.bfloat16)
        case.but(x0=case.x0 * 2.0**126, alpha=1.0, sigma=1.0).check(backend)

    @pytest.mark.host_code("no kernel runs")
    def test_an_empty_batch(self, backend):
        empty = torch.zeros(0, 3, 4)
        for noise in (None, empty):
            result = on_device(fdk.add_noise)(empty, 1.0, 1.0, noise, backend=backend)
            assert result.shape == empty.shape


@pytest.mark.contract("bad input", op="noising")
class TestBadInput:
    @pytest.mark.parametrize(
        ("changes", "error", "message"),
        (
            ({"alpha": torch.nan}, ValueError, "alpha: expected finite numbers, got nan"),
            ({"sigma": None}, ValueError, "sigma: add_noise needs it, got None"),
            ({"alpha": None, "sigma": -0.5}, ValueError, r"sigma: alpha=None needs sigma in \[0, 1\], got -0.5"),
            ({"alpha": None, "sigma": 1.5}, ValueError, r"sigma: alpha=None needs sigma in \[0, 1\], got 1.5"),
            ({"alpha": "1"}, TypeError, "alpha: expected a number or a tensor, got str"),
            ({"generator": torch.Generator()}, ValueError, "generator: expected without noise"),
            ({"noise": torch.zeros(4, 3, 8, 8, requires_grad=True)}, ValueError, "noise: expected a tensor without gr"),
            ({"alpha": torch.ones(4, requires_grad=True)}, ValueError, "alpha: expected a tensor without gradient"),
            ({"noise": None, "generator": 5}, TypeError, "generator: expected a torch.Generator, got int"),
            ({"backend": "cuda"}, ValueError, "backend: expected one of auto"),
        ),
    )  # fmt: skip
    def test_refused(self, backend, changes, error, message):
        case = make_noising()
        options = {"alpha": 0.5, "sigma": 0.5, "noise": case.noise, "backend": backend, **changes}
        with pytest.raises(error, match=message):
            on_device(fdk.add_noise)(case.x0, **options)

    @pytest.mark.cpu_only("the host can read the levels")
    def test_a_level_that_is_not_finite(self, backend):
        case = make_noising().but(sigma=torch.tensor([1.0, torch.inf, 1.0, 1.0]))
        with pytest.raises(ValueError, match="sigma: expected finite numbers, got inf"):
            case.call(backend)

    @pytest.mark.cpu_only("the other device is meta")
    def test_a_generator_of_another_device(self, backend):
        with pytest.raises(ValueError, match="generator: expected device meta like x0, got cpu"):
            fdk.add_noise(torch.zeros(2, 3, device="meta"), 1.0, 1.0, generator=torch.Generator(), backend="reference")

    @pytest.mark.parametrize("name", ("to_x0", "from_x0"))
    def test_an_image_that_does_not_fit(self, backend, name):
        prediction = fdk.Prediction("flow_prediction", torch.zeros(4, 3), sigma=0.5)
        with pytest.raises(ValueError, match=r"noisy: expected shape \(4, 5\) like (prediction|x0), got \(4, 3\)"):
            getattr(prediction, name)(torch.zeros(4, 5), backend="reference")


@pytest.mark.contract("predictions", op="noising")
class TestPredictions:
    def prediction(self, kind, dtype, high_noise=False):
        generator = torch.Generator().manual_seed(3)
        angle = 1.5 * torch.rand(SHAPE[:2], generator=generator, dtype=torch.float64)
        alpha, sigma = (
            (angle.cos(), angle.sin()) if not high_noise else (0.01 + 0 * angle, (1 - 1e-4) ** 0.5 + 0 * angle)
        )
        if kind == "edm":
            sigma = 80 * sigma
        normal = torch.randn(2, *SHAPE, generator=generator, dtype=torch.float64).to(dtype)
        return fdk.Prediction(kind, normal[0], alpha=alpha.float(), sigma=sigma.float()), normal[1]

    def coefficients(self, prediction):
        levels = (doubled(level, prediction.noisy) for level in (prediction.alpha, prediction.sigma))
        return KINDS[prediction.kind].coefficients(*levels, prediction.sigma_data)

    @pytest.mark.parametrize("high_noise", (False, True))
    @pytest.mark.parametrize("dtype", DTYPES, ids=str)
    @pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "sample"])
    def test_to_x0(self, backend, kind, dtype, high_noise):
        prediction, raw = self.prediction(kind, dtype, high_noise)
        if high_noise and kind != "edm":  # a prediction of an x0 of its own size: the terms cancel
            a, c = self.coefficients(prediction)
            raw = ((raw.double() - a * prediction.noisy.double()) / c).to(dtype)
        a, c = self.coefficients(prediction)
        x0 = self.call(prediction, "to_x0", raw, backend)
        testing.assert_gradient(x0, a * prediction.noisy.double() + c * raw.double())

    @pytest.mark.parametrize("dtype", DTYPES, ids=str)
    @pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "sample"])
    def test_from_x0(self, backend, kind, dtype):
        prediction, x0 = self.prediction(kind, dtype)
        a, c = self.coefficients(prediction)
        raw = self.call(prediction, "from_x0", x0, backend)
        testing.assert_gradient(raw, (x0.double() - a * prediction.noisy.double()) / c)

    @pytest.mark.host_code("no kernel runs")
    def test_sample_is_itself(self, backend):
        x = torch.randn(3, 4)
        with pytest.raises(ValueError, match="backend: expected one of auto"):
            fdk.Prediction("sample", None).to_x0(x, backend="nope")
        prediction = fdk.Prediction("sample", None)
        assert prediction.to_x0(x, backend=backend) is x and prediction.from_x0(x, backend=backend) is x

    @pytest.mark.parametrize("name", ("to_x0", "from_x0"))
    def test_the_gradient_is_the_coefficient(self, backend, name):
        prediction, raw = self.prediction("edm", torch.float32)
        raw.requires_grad_()
        _, c = self.coefficients(prediction)
        (gradient,) = torch.autograd.grad(self.call(prediction, name, raw, backend).sum(), raw)
        testing.assert_gradient(gradient, (c if name == "to_x0" else 1 / c).expand(SHAPE))

    @pytest.mark.host_code("no kernel runs")
    def test_what_would_get_no_gradient_is_refused(self, backend):
        noisy, level = torch.randn(3, 4, requires_grad=True), torch.rand(3, requires_grad=True)
        for prediction, name in (
            (fdk.Prediction("flow_prediction", noisy, sigma=0.5), "noisy"),
            (fdk.Prediction("flow_prediction", noisy.detach(), sigma=level), "sigma"),
            (fdk.Prediction.affine(noisy.detach(), level, 1.0), "a"),
        ):
            with pytest.raises(ValueError, match=f"^{name}: expected a tensor without gradient"):
                prediction.to_x0(torch.randn(3, 4), backend=backend)
            with torch.no_grad():
                prediction.to_x0(torch.randn(3, 4), backend=backend)

    @pytest.mark.host_code("no kernel runs")
    def test_the_callers_names(self, backend):
        prediction = fdk.Prediction.affine(torch.randn(3, 4), torch.ones(5), 1.0)
        with pytest.raises(ValueError, match=r"^a: expected leading dimensions of prediction, as \(3,\)"):
            prediction.to_x0(torch.randn(3, 4), backend=backend)

    @pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "sample"])
    def test_there_and_back(self, backend, kind):
        prediction, raw = self.prediction(kind, torch.float64)
        x0 = self.call(prediction, "to_x0", raw, backend)
        torch.testing.assert_close(self.call(prediction, "from_x0", x0, backend), raw, rtol=1e-9, atol=1e-9)

    @staticmethod
    def call(prediction, name, x, backend):
        return on_device(lambda x, prediction: getattr(prediction, name)(x, backend=backend))(x, prediction=prediction)
