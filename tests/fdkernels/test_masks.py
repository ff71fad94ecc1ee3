"""Masked elements do not count in the loss, count in the dmd mean over n, and may hide NaN."""

import pytest
import torch

import fdkernels as fdk
from tests import device
from tests.cases import make
from tests.device import on_device
from tests.fdkernels import test_stats

pytestmark = pytest.mark.contract("masks")

SHAPE = (4, 3, 2, 6, 5)
MASKS = {
    "per sample": (4,),
    "per sample, full rank": (4, 1, 1, 1, 1),
    "per frame": (4, 3, 1, 1, 1),
    "spatial": (1, 1, 1, 6, 5),
    "rows": (4, 1, 1, 6, 1),
    "columns of a frame": (1, 3, 1, 1, 5),
    "full": SHAPE,
}


def random_mask(shape: tuple[int, ...]) -> torch.Tensor:
    mask = torch.rand(shape, generator=torch.Generator().manual_seed(8)) < 0.6
    mask.view(-1)[0], mask.view(-1)[-1] = True, False
    return mask


@pytest.mark.pairwise
@pytest.mark.parametrize("kind", MASKS)
@pytest.mark.parametrize("reduction", ("mean", "sum", "none"))
@pytest.mark.parametrize("dtype", (torch.bfloat16, torch.float16, torch.float32, torch.float64), ids=str)
def test_masks(backend, kind, reduction, dtype):
    make(SHAPE, dtype, mask=random_mask(MASKS[kind]), reduction=reduction).check(backend)


@pytest.mark.parametrize("reduction", ("mean", "sum", "none"))
def test_nothing_unmasked(backend, reduction):
    case = make(SHAPE, mask=torch.zeros(SHAPE, dtype=torch.bool), reduction=reduction)
    outcome = case.check(backend)
    assert not outcome.loss.any() and not outcome.grad.any()


def test_a_sample_without_unmasked_elements(backend):
    mask = random_mask(SHAPE)
    mask[1] = False
    outcome = make(SHAPE, mask=mask, reduction="none").check(backend)
    assert outcome.loss[1] == 0 and not outcome.grad[1].any()


@pytest.mark.pairwise
@pytest.mark.parametrize("value", (torch.nan, torch.inf, -torch.inf))
@pytest.mark.parametrize("name", ("student", "teacher", "fake"))
@pytest.mark.parametrize("nonfinite", ("propagate", "zero"))
def test_nonfinite_values_behind_the_mask(backend, name, value, nonfinite):
    case = make(SHAPE, mask=random_mask(SHAPE), nonfinite=nonfinite)
    poisoned = getattr(case, name).masked_fill(~case.options["mask"], value)
    outcome = case.but(**{name: poisoned}).check(backend)
    assert outcome.grad.isfinite().all() and not outcome.grad[~case.options["mask"]].any()


def test_masked_elements_take_part_in_the_dmd_mean(backend):
    """Self-Forcing's rule: |x - τ| is averaged over all n elements."""
    case = make(SHAPE, heads=None, mask=random_mask(SHAPE))
    louder = case.but(student=torch.where(case.options["mask"], case.student, case.student + 100))
    louder.check(backend)
    assert louder.run(backend).grad.norm() < 0.1 * case.run(backend).grad.norm()


def test_strided_masks(backend):
    mask = random_mask((*SHAPE[:-1], 2 * SHAPE[-1]))[..., ::2]
    make(SHAPE, mask=mask).check(backend)
    make(SHAPE, mask=random_mask((1, 1, 1, 6, 5)).expand(SHAPE)).check(backend)
    make(SHAPE, mask=random_mask((5, 6, 2, 3, 4)).permute(4, 3, 2, 1, 0)).check(backend)


@pytest.mark.parametrize("reduction", ("mean", "sum", "none"))
def test_rows_with_a_stride_of_their_own(backend, reduction):
    """Masks and multipliers that are slices of wider ones, whose other entries differ."""
    # Frames of fewer and of more than 64 elements.
    for shape in ((4, 3, 1, 4, 4),) if device.is_slow(backend) else ((4, 3, 2, 6, 5), (4, 3, 2, 8, 8)):
        case = make(shape, heads=None, reduction=reduction)
        wide = random_mask((8, 5, 1, 1, 1))
        wide[:, 1] = ~wide[:, 0]
        for mask in (wide[:4, :1], wide[::2, 1:2], wide[:4, :3], wide[4:, ::2], wide[3:4, 1:4]):
            case.but(mask=mask).check(backend)
        rows = random_mask((4, 2, 1, *shape[3:]))
        case.but(mask=rows[:, 1:]).check(backend)
        case.but(mask=rows[:, :1].expand(shape)).check(backend)
        wide = 0.1 + torch.rand(8, 5, 1, 1, 1, generator=torch.Generator().manual_seed(4))
        for table in (wide[:4, :1], wide[::2, 1:4], wide[3:4, 1:4]):
            case.but(multiplier=table).check(backend)


@pytest.mark.parametrize("reduction", ("mean", "none"))
@pytest.mark.parametrize("shape", ((4, 3, 2, 6, 5), (4, 3, 2, 8, 9)), ids=("short frames", "long frames"))
def test_kept_only(backend, shape, reduction):
    """The dmd mean and the relative gap over kept elements alone."""
    case = make(shape, heads=None, reduction=reduction, scale=fdk.DmdScale(kept_only=True))
    for size in (shape[:1], shape[:2], (1, 1, *shape[2:]), shape):
        mask = random_mask(size)
        mask.view(-1)[0] = False
        masked = case.but(mask=mask)
        masked.check(backend)
        test_stats.check(masked, backend)
    assert not torch.equal(masked.run(backend).grad, masked.but(scale="dmd").run(backend).grad)
    noisy = torch.randn(shape, generator=torch.Generator().manual_seed(1))
    masked.but(prediction=fdk.Prediction("flow_prediction", noisy, sigma=torch.linspace(0.1, 0.9, 4))).check(backend)
    # Where nothing is kept, there is no mean to divide by, nor an eps.
    for scale in (case.options["scale"], fdk.DmdScale(eps=0.0, kept_only=True)):
        case.but(mask=torch.zeros(4, dtype=torch.bool), scale=scale).check(backend)
        case.but(mask=torch.tensor([True, True, False, True]), scale=scale).check(backend)
    case.check(backend)


def test_mask_with_channels_last(backend):
    case = make((4, 3, 6, 5), mask=random_mask((4, 3, 6, 5)))
    case.but(student=case.student.to(memory_format=torch.channels_last)).check(backend)
    case.but(student=case.student.to(memory_format=torch.channels_last), mask=random_mask((4, 3, 1, 1))).check(backend)


def test_mask_with_predictions_and_multiplier(backend):
    case = make(SHAPE, mask=random_mask((4, 3, 1, 1, 1)))
    noisy = torch.randn(SHAPE, generator=torch.Generator().manual_seed(1))
    sigma = torch.tensor([[0.1, 0.5, 0.75]]).reshape(1, 3, 1, 1, 1)
    case.but(prediction=fdk.Prediction("edm", noisy, sigma=sigma)).check(backend)
    case.but(multiplier=torch.rand(4, generator=torch.Generator().manual_seed(1))).check(backend)


def test_zero_gap_and_masked_runs_are_exact_zeros(backend):
    x, tau = torch.randn(2, 4, 700), torch.randn(2, 4, 700)
    x.requires_grad_()
    call = on_device(fdk.fused_fdiv_loss)
    loss = call(x, tau, tau, divergence="rkl", backend=backend)
    assert loss.item() == 0.0
    fake = tau + 1
    fake[:, 2:] = torch.inf
    keep = torch.tensor([True, True, False, False])[None, :, None]
    masked = call(x, tau, fake, divergence="rkl", scale=None, mask=keep, backend=backend)
    torch.testing.assert_close(masked, torch.tensor(0.5), rtol=1e-6, atol=0)
