"""`Prediction.from_scheduler` compared with what diffusers' schedulers do themselves: their x_t and their x0."""

import pytest
import torch

import fdkernels as fdk
from fdkernels import schedulers
from tests import oracle
from tests.schedulers import SETUPS, SHAPE, Setup, denoised, diffusers, noised, normal, solvers, some_timesteps

pytestmark = [
    pytest.mark.contract("predictions"),
    pytest.mark.cpu_only("schedulers noise and denoise on the CPU"),
    pytest.mark.filterwarnings("ignore:__array:DeprecationWarning"),  # diffusers with NumPy 2
]

CASES = [
    pytest.param(setup, kind, id=f"{setup.name}-{kind}-{number}")
    for number, setup in enumerate(SETUPS)
    for kind in setup.kinds
]


def rounding(setup: Setup) -> float:
    """The relative rounding error of the scheduler's own x0."""
    if setup.name.startswith(("Euler", "EDMEuler", "FlowMatch")):
        return 2.0**-22  # x_t becomes float32 first
    return 1e-9 if setup.name.startswith("DEIS") else 1e-12  # DEIS: from the noise, divided by alpha


def affine(prediction: fdk.Prediction) -> tuple[torch.Tensor, torch.Tensor]:
    return tuple(torch.as_tensor(v) for v in oracle.coefficients(prediction, prediction.noisy.numpy()))


def per_sample(level) -> torch.Tensor:
    level = torch.as_tensor(level, dtype=torch.float64)
    return level.reshape(-1, 1, 1, 1) if level.dim() == 1 else level


@pytest.mark.parametrize(("setup", "kind"), CASES)
def test_own_x0_and_noise(setup, kind):
    scheduler = setup.make(kind)
    t, x0, noise, output = some_timesteps(scheduler), normal(1), normal(2), normal(3)
    noisy = noised(scheduler, x0, noise, t)

    alpha, sigma = map(per_sample, schedulers.noise_levels(scheduler, noisy, t))
    exact = 2.0**-23 if setup.name == "FlowMatchHeunDiscrete" else 1e-13  # it computes 1 - sigma in float32
    size = (alpha * x0).abs() + (sigma * noise).abs() + x0.abs()
    assert ((alpha * x0 + sigma * noise - noisy).abs() <= exact * size).all()

    prediction = fdk.Prediction.from_scheduler(scheduler, noisy, t)
    a, c = affine(prediction)
    off = (a * noisy + c * output - denoised(scheduler, noisy, output, t)).abs()
    assert (off <= rounding(setup) * ((a * noisy).abs() + (c * output).abs())).all()


@pytest.mark.parametrize(("setup", "kind"), CASES)
def test_the_loss_is_that_of_the_schedulers_x0(setup, kind):
    scheduler = setup.make(kind)
    t, student, noise = some_timesteps(scheduler), normal(1), normal(2)
    noisy = noised(scheduler, student, noise, t)
    raw = {"teacher": normal(3), "fake": normal(4)}
    converted = {name: denoised(scheduler, noisy, output, t) for name, output in raw.items()}
    found, expected = (
        gradient(student, **predictions, **options)
        for predictions, options in (
            (raw, {"prediction": fdk.Prediction.from_scheduler(scheduler, noisy, t)}),
            (converted, {}),
        )
    )
    bound = 100 * rounding(setup)  # the two x0 are nearly equal, so their difference has a larger error
    torch.testing.assert_close(found[0], expected[0], rtol=bound, atol=0)
    size = expected[1].abs().flatten(1).amax(1).reshape(-1, 1, 1, 1)
    assert ((found[1] - expected[1]).abs() <= bound * size).all()


def gradient(student, teacher, fake, **options):
    student = student.clone().requires_grad_()
    loss = fdk.fused_fdiv_loss(student, teacher, fake, divergence="rkl", **options)
    loss.backward()
    return loss.detach(), student.grad


def test_known_levels():
    """The expected levels are written down here, not read from a table: alpha is the root."""
    scheduler = diffusers.DDPMScheduler(trained_betas=[0.75, 0.75])
    found = fdk.Prediction.from_scheduler(scheduler, torch.zeros(SHAPE), torch.tensor([0, 1, 1, 0]))
    torch.testing.assert_close(found.alpha, torch.tensor([0.5, 0.25, 0.25, 0.5], dtype=torch.float64))
    torch.testing.assert_close(found.sigma**2, torch.tensor([0.75, 0.9375, 0.9375, 0.75], dtype=torch.float64))
    assert found.alpha.dtype == torch.float64 and found.kind == "epsilon"


@pytest.mark.parametrize("setup", solvers(), ids=lambda setup: setup.name)
def test_a_new_solver_noises_in_reverse(setup):
    """Why a new solver is refused: at t = 999 it adds hardly any noise."""
    scheduler = Setup(setup.name).make("epsilon")
    noisy = scheduler.add_noise(torch.zeros(1), torch.ones(1), torch.tensor([999]))
    assert noisy < 0.02 and scheduler.sigma_t[999] > 0.99
