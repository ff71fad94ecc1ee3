"""Layouts of `fused_fdiv_loss` beyond test_op_layouts.py: small operands, and what is copied."""

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

import fdkernels as fdk
from tests import device
from tests.cases import make
from tests.layouts import LAYOUTS, VIDEO_LAYOUTS, channels_last

pytestmark = pytest.mark.contract("layouts")


@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts_of_what_guidance_and_prediction_add(backend, layout):
    case, change = make((4, 3, 7, 6)), LAYOUTS[layout]
    noisy = torch.randn((4, 3, 7, 6), generator=torch.Generator().manual_seed(1))
    sigma = torch.rand(4, 3, 1, 1, generator=torch.Generator().manual_seed(2))
    for target in (case, case.but(student=channels_last(case.student))):
        target.but(
            prediction=fdk.Prediction("edm", change(noisy), sigma=sigma),
            teacher_uncond=change(case.teacher + 0.1),
            guidance_scale=1.5,
        ).check(backend)


@pytest.mark.parametrize("n", (300_001, 2_100_003))
def test_samples_beyond_the_cache_without_a_scale(backend, n):
    n = min(n, 30_001) if device.is_slow(backend) else n  # the software device holds 17 KB per block
    make((1, n), torch.bfloat16, scale=None).check(backend)


@pytest.mark.parametrize("layout", VIDEO_LAYOUTS)
def test_operands_of_a_video_in_any_order(backend, layout):
    """Operands that frames, channels or rows share, in memory's order of dimensions: runs of 1 to 192 elements."""
    batch, channels, frames, rows, columns = shape = (2, 2, 3, 4, 4) if device.is_slow(backend) else (4, 2, 3, 8, 8)
    generator = torch.Generator().manual_seed(3)
    change = VIDEO_LAYOUTS[layout]
    case = make(shape, heads=None)
    case = case.but(student=change(case.student), teacher=change(case.teacher))
    noisy = change(torch.randn(shape, generator=generator))
    sizes = ((batch, 1, frames, 1, 1), (1, channels, 1, 1, 1), (batch, channels, frames, 1, 1), (1, 1, frames, rows, 1))
    for size in sizes[:2] if device.is_slow(backend) else sizes:
        table = 0.2 + 2 * torch.rand(size, generator=generator)
        keep = torch.rand(size, generator=generator) < 0.6
        keep.view(-1)[0], keep.view(-1)[-1] = True, False
        case.but(multiplier=table, mask=keep).check(backend)
        case.but(prediction=fdk.Prediction("edm", noisy, sigma=table), mask=keep, reduction="none").check(backend)


class Copies(TorchDispatchMode):
    """Counts the image-sized copies among the operations inside the block."""

    NAMES = ("clone", "copy_", "_to_copy", "contiguous")

    def __init__(self, elements):
        super().__init__()
        self.elements, self.count = elements, 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        copies = func.namespace == "aten" and func.overloadpacket.__name__ in self.NAMES
        self.count += copies and result.numel() == self.elements
        return result


# How many of x, τ and f are copied if only x has the layout, and if all three have it.
COPIES = {
    "contiguous": (0, 0),
    "channels_last": (2, 0),
    "transposed": (2, 0),
    "frames_first": (2, 0),
    "batch_sliced": (0, 0),
    "misaligned": (0, 0),
    "sliced": (1, 3),
    "batch_last": (1, 3),
}


@pytest.mark.cpu_only("which operations run")
@pytest.mark.parametrize("layout", COPIES)
@pytest.mark.parametrize("rank", (4, 5))
def test_what_is_copied(backend, layout, rank):
    """A dense x is read in its memory order; a tensor in another order is copied once."""
    case = make((2, 2, 3, 4, 2)[-rank:], heads=None, scale=None)
    change = VIDEO_LAYOUTS[layout]
    student = change(case.student).detach().requires_grad_()
    for others, expected in zip((torch.Tensor.contiguous, change), COPIES[layout], strict=True):
        given = case.but(teacher=others(case.teacher), fake=others(case.fake))
        with Copies(student.numel()) as copies:
            loss = given.call(backend, student)
        if backend != "reference":  # the reference's arithmetic may copy too
            assert copies.count == expected
        (gradient,) = torch.autograd.grad(loss, student)
        assert gradient.shape == student.shape
        if "slice" not in layout and layout != "batch_last":
            assert gradient.stride() == student.stride()


@pytest.mark.cpu_only("which operations run")
@pytest.mark.backends("native", "triton")
def test_what_needs_no_copy(backend):
    """A dimension of 1 may have any stride; the caller may expand a mask or a multiplier."""
    wide = torch.randn(3, 4, 3, 6, generator=torch.Generator().manual_seed(0))
    x, teacher, fake = wide[0, :, ::3], wide[1, :, ::3], wide[2, :, ::3]
    assert x.shape == (4, 1, 6) and x.stride() == (18, 18, 1)
    keep = torch.tensor([True, False, True, True])[:, None, None].expand(4, 1, 6)
    case = make((4, 1, 6), heads=None).but(student=x, teacher=teacher, fake=fake, mask=keep)
    for multiplier in (None, torch.rand(1, 1, 6).expand(4, 1, 6)):
        with Copies(x.numel()) as copies:
            case.call(backend, multiplier=multiplier)
        assert copies.count == 0
        case.but(multiplier=multiplier).check(backend)
