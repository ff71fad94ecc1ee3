"""Any strides, any alignment, any rank, any length: a copy at most, never a wrong answer."""

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

import fdkernels as fdk
from tests import device
from tests.cases import make, normalizer

pytestmark = pytest.mark.contract("layouts")

DTYPES = (torch.bfloat16, torch.float16, torch.float32, torch.float64)


def channels_last(v):
    return v.to(memory_format=torch.channels_last if v.dim() == 4 else torch.channels_last_3d)


def sliced(v):
    wide = v.new_full((*v.shape[:-1], 2 * v.shape[-1]), torch.nan)
    wide[..., ::2] = v
    return wide[..., ::2]


def batch_sliced(v):
    """Dense samples with gaps between them."""
    wide = v.new_full((v.shape[0], 2, *v.shape[1:]), torch.nan)
    wide[:, 1] = v
    return wide[:, 1]


def misaligned(v):
    buffer = v.new_full((v.numel() + 1,), torch.nan)
    buffer[1:] = v.reshape(-1)
    return buffer[1:].view(v.shape)


def transposed(v):
    return v.transpose(-1, -2).contiguous().transpose(-1, -2)


def batch_last(v):
    return v.permute(*range(1, v.dim()), 0).contiguous().permute(v.dim() - 1, *range(v.dim() - 1))


def frames_first(v):
    """(B, F, C, ...) in memory."""
    return v.transpose(1, 2).contiguous().transpose(1, 2)


LAYOUTS = {f.__name__: f for f in (channels_last, sliced, batch_sliced, misaligned, transposed, batch_last)}
VIDEO_LAYOUTS = {"contiguous": torch.Tensor.contiguous, "frames_first": frames_first, **LAYOUTS}


@pytest.mark.pairwise
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("which", ("student", "teacher", "fake", "all"))
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_layouts(backend, layout, which, dtype):
    case, change = make((4, 3, 7, 6), dtype), LAYOUTS[layout]
    names = ("student", "teacher", "fake") if which == "all" else (which,)
    changed = case.but(**{name: change(getattr(case, name)) for name in names})
    changed.check(backend)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts_of_video(backend, layout):
    case, change = make((2, 4, 3, 6, 5)), LAYOUTS[layout]
    case.but(student=change(case.student), fake=change(case.fake)).check(backend)


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


@pytest.mark.parametrize("dims", ((1, -1, -1, -1), (-1, 1, -1, -1), (-1, -1, 1, 1)), ids=str)
@pytest.mark.parametrize("which", ("student", "teacher", "fake"))
def test_expanded(backend, dims, which):
    shape = (4, 3, 7, 6)
    small = make(tuple(s if d == -1 else d for s, d in zip(shape, dims, strict=True)), seed=7)
    make(shape).but(**{which: getattr(small, which).expand(shape)}).check(backend)


@pytest.mark.parametrize("rank", (1, 2, 3, 4, 5, 6))
def test_ranks(backend, rank):
    make((5, 3, 4, 2, 3, 2)[:rank]).check(backend)


@pytest.mark.parametrize("n", (1, 2, 3, 7, 8, 15, 16, 17, 31, 33, 63, 65, 127, 1023, 4097, 16385, 65537))
@pytest.mark.parametrize("dtype", (torch.bfloat16, torch.float32), ids=str)
def test_lengths(backend, n, dtype):
    case = make((3, n), dtype)
    case.check(backend)
    case.but(student=misaligned(case.student), teacher=misaligned(case.teacher), fake=misaligned(case.fake)).check(
        backend
    )


@pytest.mark.parametrize("n", (300_001, 2_100_003))
def test_samples_beyond_the_cache(backend, n):
    n = min(n, 30_001) if device.is_slow(backend) else n  # the software device holds 17 KB a block
    make((2, n), torch.float32).check(backend)
    make((1, n), torch.bfloat16, scale=None).check(backend)


@pytest.mark.parametrize("batch", (1, 2, 7, 64, 1000))
def test_batches(backend, batch):
    batch = min(batch, 130) if device.is_slow(backend) else batch
    make((batch, 3, 3), normalizer=normalizer()).check(backend)


def test_offsets_of_every_alignment(backend):
    case = make((1, 61), torch.bfloat16)
    for offset in range(1, 17):
        shifted = []
        for v in (case.student, case.teacher, case.fake):
            buffer = v.new_empty(offset + 61)
            buffer[offset:] = v[0]
            shifted.append(buffer[offset:].view(1, 61))
        case.but(student=shifted[0], teacher=shifted[1], fake=shifted[2]).check(backend)


@pytest.mark.parametrize("layout", VIDEO_LAYOUTS)
def test_operands_of_a_video_in_any_order(backend, layout):
    """What frames, channels or rows share, in the order in which memory has them: runs of 1 to 192 elements."""
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
    """Counts the image-sized copies among the operations that run inside it."""

    NAMES = ("clone", "copy_", "_to_copy", "contiguous")

    def __init__(self, elements):
        super().__init__()
        self.elements, self.count = elements, 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        copies = func.namespace == "aten" and func.overloadpacket.__name__ in self.NAMES
        self.count += copies and result.numel() == self.elements
        return result


# How many of x, τ and f are copied where x or all three have a layout.
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
    """A dense sample is read in the order in which it lies; the others take that order for one copy each."""
    case = make((2, 2, 3, 4, 2)[-rank:], heads=None, scale=None)
    change = VIDEO_LAYOUTS[layout]
    student = change(case.student).detach().requires_grad_()
    for others, expected in zip((torch.Tensor.contiguous, change), COPIES[layout], strict=True):
        given = case.but(teacher=others(case.teacher), fake=others(case.fake))
        with Copies(student.numel()) as copies:
            loss = given.call(backend, student)
        if backend != "reference":  # whose arithmetic may copy too
            assert copies.count == expected
        (gradient,) = torch.autograd.grad(loss, student)
        assert gradient.shape == student.shape
        if "slice" not in layout and layout != "batch_last":
            assert gradient.stride() == student.stride()


@pytest.mark.cpu_only("which operations run")
@pytest.mark.backends("native", "triton")
def test_what_needs_no_copy(backend):
    """A dimension of one, whatever its stride is; a mask and a multiplier that the caller has expanded."""
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


def test_gradient_keeps_the_strides_that_autograd_expects(backend):
    """A channels_last parameter gets a channels_last gradient: what optimizers and DDP buckets want."""
    case = make((4, 3, 8, 8))
    student = channels_last(case.student).clone(memory_format=torch.preserve_format).requires_grad_()
    case.call(backend, student).backward()
    assert student.grad.stride() == student.stride()
    # Not by a copy of autograd's: `.grad` takes a parameter's strides whatever the loss hands back.
    (gradient,) = torch.autograd.grad(case.call(backend, student), student)
    assert gradient.stride() == student.stride()


def test_the_inputs_are_left_alone(backend):
    case = make((4, 3, 8, 8), normalizer=normalizer(), mask=torch.rand(4, 1, 8, 8) < 0.5)
    before = [v.clone() for v in (case.student, case.teacher, case.fake, case.logits, case.t, case.options["mask"])]
    case.run(backend)
    after = (case.student, case.teacher, case.fake, case.logits, case.t, case.options["mask"])
    assert all(torch.equal(b, a) for b, a in zip(before, after, strict=True))
