import pytest
import torch

import fdkernels as fdk
from fdistill import networks
from fdistill.config import MixtureConfig, TeacherConfig
from fdistill.digits import new_unet
from fdistill.gmm import Mixture, log_density_of_samples
from fdistill.networks import MLPDenoiser, UNetDenoiser, heun_sample
from fdkernels.prediction import KINDS


@pytest.fixture
def denoiser():
    torch.manual_seed(0)
    return UNetDenoiser(new_unet(TeacherConfig(channels=(8, 16))), 0.75)


@pytest.fixture
def batch():
    generator = torch.Generator().manual_seed(1)
    return torch.randn(5, 1, 8, 8, generator=generator), torch.rand(5, generator=generator) + 0.1


def test_the_unet_adapter_is_the_unet(denoiser, batch):
    noisy, sigma = batch
    raw, features = denoiser.forward_with_features(noisy, sigma)
    scaled = noisy / (sigma**2 + 0.75**2).sqrt().view(-1, 1, 1, 1)
    assert torch.equal(raw, denoiser.unet(scaled, 250 * sigma.log()).sample)
    assert [tuple(f.shape[1:]) for f in features] == [(8, 4, 4), (16, 4, 4), (16, 4, 4)]
    assert all(torch.equal(a, b) for a, b in zip(features, denoiser.features(noisy, sigma), strict=True))


def test_the_kernel_is_given_the_same_x0(denoiser, batch):
    noisy, sigma = batch
    prediction = denoiser.prediction(noisy, sigma)
    alpha, level = (torch.as_tensor(each, dtype=torch.float64) for each in prediction.levels())
    a, c = KINDS[prediction.kind].coefficients(alpha, level.view(-1, 1, 1, 1), prediction.sigma_data)
    raw = denoiser(noisy, sigma)
    torch.testing.assert_close((a * noisy + c * raw).float(), denoiser.denoise(noisy, sigma))


def test_x0_is_the_same_with_gradients_to_both(denoiser, batch):
    """x0 of a raw prediction is the library's; x_t gets the gradient a."""
    noisy, sigma = batch
    raw = torch.randn_like(noisy).requires_grad_()
    expected = denoiser.prediction(noisy, sigma).to_x0(raw)
    noisy.requires_grad_()
    x0 = denoiser.x0(raw, noisy, sigma)
    torch.testing.assert_close(x0, expected)
    of_raw, of_noisy = torch.autograd.grad(x0.sum(), [raw, noisy])
    torch.testing.assert_close(of_raw, torch.autograd.grad(expected.sum(), raw)[0])
    a = 0.75**2 / (sigma**2 + 0.75**2)
    torch.testing.assert_close(of_noisy, a.view(-1, 1, 1, 1).expand_as(noisy))


def test_a_gradient_to_x_t_that_would_be_lost_is_refused(denoiser, batch):
    noisy, sigma = batch
    with pytest.raises(ValueError, match="noisy: expected a tensor without gradient"):
        denoiser.denoise(noisy.requires_grad_(), sigma)


def test_the_loss_is_that_of_the_exact_target(denoiser, batch):
    """The target is the raw prediction that gives x0. In x0 the loss has EDM's weight λ(σ) = 1/c²."""
    noisy, sigma = batch
    clean, raw = torch.randn_like(noisy), denoiser(noisy, sigma)
    target = denoiser.prediction(noisy, sigma).from_x0(clean)
    noise = (noisy - clean) / sigma.view(-1, 1, 1, 1)
    loss = denoiser.loss(clean, noisy, sigma, noise)
    torch.testing.assert_close(loss, (raw - target).square().mean())
    error = (denoiser.denoise(noisy, sigma) - clean).square().flatten(1).mean(1)
    weight = (sigma**2 + 0.75**2) / (sigma * 0.75) ** 2
    torch.testing.assert_close(loss, (weight * error).mean())


@pytest.fixture
def mixture():
    return Mixture(MixtureConfig()).double()


def test_the_mixture_score_is_the_gradient_of_its_density(mixture):
    x = torch.randn(50, 2, dtype=torch.float64, requires_grad=True)
    sigma = torch.rand(50, dtype=torch.float64) + 0.05
    (gradient,) = torch.autograd.grad(mixture.log_density(x, sigma).sum(), x)
    torch.testing.assert_close(mixture.score(x, sigma), gradient)
    # Tweedie's formula: the denoiser is x + σ²·score.
    torch.testing.assert_close(mixture.denoise(x.detach(), sigma), x + sigma[:, None] ** 2 * gradient)


def test_the_mixture_density_integrates_to_one(mixture):
    axis = torch.linspace(-6, 6, 400, dtype=torch.float64)
    grid = torch.cartesian_prod(axis, axis)
    total = mixture.log_density(grid, 0.3).exp().sum() * (axis[1] - axis[0]) ** 2
    assert float(total) == pytest.approx(1, abs=1e-3)


def test_sample_density_against_the_true_one(mixture):
    generator = torch.Generator().manual_seed(0)
    samples = mixture.float().sample(20_000, generator).double()
    x, sigma = samples[:300], torch.full((300,), 0.5, dtype=torch.float64)
    estimate = log_density_of_samples(x, samples, sigma)
    assert float((estimate - mixture.double().log_density(x, sigma)).abs().mean()) < 0.05


def test_heun_reaches_the_mixture(mixture):
    z = torch.randn(4000, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    x = heun_sample(mixture, z, 0.01, 40.0, 30)
    mode, distance = mixture.nearest_mode(x)
    assert float((distance < 3).double().mean()) > 0.97
    weights = torch.bincount(mode, minlength=9) / len(mode)
    assert float((weights - mixture.log_weights.exp()).abs().sum() / 2) < 0.04


def test_kinds_agree_with_the_library():
    net = MLPDenoiser(2, 8, 1, 1.3)
    prediction = net.prediction(torch.zeros(3, 2), torch.ones(3))
    assert isinstance(prediction, fdk.Prediction)
    assert (prediction.kind, prediction.sigma_data) == ("edm", 1.3)
    assert networks.parameter_count(net) > 0
