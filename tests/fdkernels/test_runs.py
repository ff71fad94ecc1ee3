"""Multipliers, noise levels and masks that runs of elements share, such as the frames of a video. The runs are on both
sides of every length at which a backend changes its loops."""

import pytest
import torch

import fdkernels as fdk
from tests import device
from tests.cases import Case, make
from tests.fdkernels import test_nonfinite, test_stats

pytestmark = pytest.mark.contract("exactness")

# CPU: runs of 64 and more have loops of their own, in blocks of 512 and sums of 64, 128 or 256. CUDA: vectors of 2, 4
# or 8; a thread adds 16 elements.
LENGTHS = {
    "reference": (1, 60, 64),
    "native": (1, 3, 4, 6, 60, 63, 64, 65, 127, 128, 129, 255, 257, 511, 512, 513, 1030),
    "triton": (16, 22),  # one program up to 128 elements a sample, then tiles of 64, as tests/conftest.py sets
}
SOME = {"reference": (64,), "native": (5, 63, 64, 600), "triton": (16, 22)}
# Operands by the shape of their tables, for samples of 3 frames with 2 rows of some length.
TABLES = {
    "multiplier": {"multiplier": (2, 3, 2, 1)},
    "multiplier of the batch": {"multiplier": (1, 3, 2, 1)},
    "multiplier within channels": {"multiplier": (2, 1, 2, 1)},
    "mask": {"mask": (2, 3, 2, 1)},
    "levels": {"levels": (2, 3, 2, 1)},
    "levels, x unread": {"levels": (2, 3, 2, 1), "scale": None},
    "all alike": {"levels": (2, 3, 2, 1), "multiplier": (2, 3, 2, 1), "mask": (2, 3, 2, 1)},
    "multiplier cuts the mask's": {"multiplier": (2, 3, 2, 1), "mask": (2, 3, 1, 1)},
    "multiplier cuts the levels'": {"multiplier": (2, 3, 2, 1), "levels": (2, 3, 1, 1)},
    "mask cuts the multiplier's": {"mask": (2, 3, 2, 1), "multiplier": (1, 3, 1, 1), "levels": (2, 1, 1, 1)},
    "levels cut the mask's": {"levels": (2, 3, 2, 1), "mask": (1, 3, 1, 1)},
    "levels, one multiplier a sample": {"levels": (1, 3, 1, 1), "multiplier": (2, 1, 1, 1)},
    "mask of elements": {"mask": (1, 1, 2, 0), "levels": (2, 3, 1, 1)},
}  # a size of 0 stands for the run's length


def shared(name: str, length: int, dtype: torch.dtype = torch.float32, **options) -> Case:
    """A batch with the operands of TABLES. Their entries differ by far more than any tolerance."""
    shape = (2, 3, 2, length)
    case = make(shape, dtype, heads=None, seed=length, **options)
    generator = torch.Generator().manual_seed(length)
    for option, size in TABLES[name].items():
        if size is None:
            case = case.but(**{option: None})
            continue
        entries = torch.rand([length if s == 0 else s for s in size], generator=generator, dtype=torch.float64)
        if option == "levels":
            noisy = 2 * torch.randn(shape, generator=generator, dtype=torch.float64)
            case = case.but(prediction=fdk.Prediction("edm", noisy.to(dtype), sigma=0.2 + 2 * entries))
        elif option == "multiplier":
            case = case.but(multiplier=(0.1 + entries).to(torch.float64 if dtype == torch.float64 else torch.float32))
        else:
            mask = entries < 0.6
            mask.view(-1)[0], mask.view(-1)[-1] = True, False
            case = case.but(mask=mask)
    return case


@pytest.mark.parametrize("name", TABLES)
@pytest.mark.parametrize("dtype", (torch.bfloat16, torch.float16, torch.float32, torch.float64), ids=str)
def test_lengths(backend, name, dtype):
    lengths = LENGTHS[backend]
    if device.is_slow(backend):  # interpreted, a program costs milliseconds
        lengths = lengths[1:] if dtype == torch.float32 else lengths[:1]
    # With a mask, each reduction divides by another count of kept elements.
    reduction = {torch.bfloat16: "mean", torch.float16: "sum"}.get(dtype, "none")
    for length in lengths:
        shared(name, length, dtype, reduction=reduction).check(backend)


@pytest.mark.backends("native")
@pytest.mark.parametrize("name", ("multiplier", "mask", "all alike", "multiplier cuts the mask's"))
@pytest.mark.parametrize("dtype", (torch.bfloat16, torch.float32), ids=str)
def test_operands_that_keep_bfloat16_from_its_own_loop(backend, name, dtype):
    """Float32 predictions, or an unconditional prediction."""
    for length in (60, 64, 65):
        shared(name, length, dtype, predictions=torch.float32).check(backend)
        case = shared(name, length, dtype)
        uncond = torch.randn(case.teacher.shape, generator=torch.Generator().manual_seed(1)).to(dtype)
        case.but(teacher_uncond=uncond, guidance_scale=1.5).check(backend)
        case.but(fake_uncond=uncond, fake_guidance_scale=0.5).check(backend)


@pytest.mark.parametrize("name", TABLES)
def test_figures(backend, name):
    for length in SOME[backend][:1] if device.is_slow(backend) else SOME[backend][-2:]:
        dtype = torch.bfloat16 if length in (16, 64) else torch.float32
        # Each sample has its own divisor: a mask keeps another number of elements in each.
        test_stats.check(shared(name, length, dtype, reduction="none"), backend)


@pytest.mark.backends("reference", "native")
@pytest.mark.cpu_only("chunks of 16,384 elements, samples of 1 MiB, threads")
@pytest.mark.parametrize("threads", (1, 3))
@pytest.mark.parametrize("length", (2730, 2731, 5462, 14563, 14564))
def test_samples_on_both_sides_of_a_chunk(backend, length, threads):
    """Runs that the end of a chunk cuts; samples that one thread takes alone, and samples that all threads share."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        for name in ("all alike", "levels, x unread", "mask of elements"):
            case = shared(name, length, reduction="none")
            case.check(backend, torch.linspace(-2, 3, len(case.student)))  # threads divide it within samples
            # One chunk finds the NaN; the gradients of all chunks are zeros.
            bad = test_nonfinite.poison(case.fake, 1, torch.nan)
            case.but(fake=bad, mask=None, nonfinite="zero").check(backend)
    finally:
        torch.set_num_threads(before)


# Entries that are not finite.


@pytest.mark.parametrize("value", (torch.inf, torch.nan))
@pytest.mark.parametrize("nonfinite", ("propagate", "zero"))
@pytest.mark.parametrize("name", ("multiplier", "multiplier within channels"))
def test_a_bad_multiplier(backend, name, nonfinite, value):
    for length in SOME[backend]:
        dtype = torch.bfloat16 if length in (16, 64) else torch.float32
        case = shared(name, length, dtype, nonfinite=nonfinite, reduction="none")
        multiplier = test_nonfinite.poison(case.options["multiplier"], 1, value)
        test_nonfinite.check(case.but(multiplier=multiplier), backend)
        # 0 times infinity is not zero.
        same = torch.where(multiplier.isfinite(), case.fake, case.teacher)
        test_nonfinite.check(case.but(multiplier=multiplier, fake=same), backend)


@pytest.mark.parametrize("value", (torch.inf, torch.nan))
@pytest.mark.parametrize("name", ("all alike", "multiplier cuts the mask's", "mask cuts the multiplier's"))
def test_whatever_a_masked_run_holds(backend, name, value):
    for length in SOME[backend][-1:] if device.is_slow(backend) else SOME[backend]:
        case = shared(name, length, torch.bfloat16 if length in (16, 64) else torch.float32)
        masked = ~case.options["mask"].expand(case.student.shape)
        case = case.but(**{n: getattr(case, n).masked_fill(masked, value) for n in ("student", "teacher", "fake")})
        if case.options["multiplier"].shape == case.options["mask"].shape:
            case = case.but(multiplier=case.options["multiplier"].masked_fill(~case.options["mask"], value))
        outcome = case.check(backend)
        assert outcome.grad.isfinite().all() and not outcome.grad[masked].any()
        assert test_stats.check(case, backend).nonfinite_samples == 0


# Squares that float32 holds in part, or not at all.


SIZES = (1e-24, 1e-22, 1e-20, 3e-16, 1e-14, 1e18, 1e22)


@pytest.mark.parametrize("name", ("multiplier", "mask", "levels, x unread", "mask of elements", "none"))
@pytest.mark.parametrize("dtype", (torch.bfloat16, torch.float32), ids=str)
def test_squares_that_underflow_in_part(backend, name, dtype):
    """A gap of 1e-22 has squares around float32's smallest number: they are kept, with most of their digits lost."""
    lengths = SOME[backend]
    if device.is_slow(backend):
        lengths = lengths[1:] if dtype == torch.float32 else lengths[:1]
    for length in lengths:
        case = make((2, 3, 2, length), dtype, heads=None) if name == "none" else shared(name, length, dtype)
        if case.options.get("scale", "dmd") == "dmd":
            case = case.but(scale=None)
        for size in SIZES[1:2] if device.is_slow(backend) else SIZES:
            fake = (size * case.fake.double()).to(dtype)
            weight = torch.tensor([1e-7, 3e-7]) / size
            case.but(teacher=torch.zeros_like(fake), fake=fake, weight=weight).check(backend)


@pytest.mark.parametrize("size", (1e-22, 1e20))
def test_images_of_any_size(backend, size):
    """The dmd scale makes the loss independent of x's unit; the squares of the gap do depend on it."""
    for length in SOME[backend][:2]:
        case = shared("levels", length)
        prediction = case.options["prediction"]
        images = {n: size * getattr(case, n) for n in ("student", "teacher", "fake")}
        scaled = fdk.Prediction("edm", size * prediction.noisy, sigma=prediction.sigma)
        case.but(**images, prediction=scaled, scale=fdk.DmdScale(0.0)).check(backend)
