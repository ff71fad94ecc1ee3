"""Every op takes any strides, alignment, rank and length: it may copy once, but never gives a wrong answer."""

import pytest
import torch

from tests import device
from tests.layouts import LAYOUTS, STRIDES, channels_last, misaligned

pytestmark = pytest.mark.contract("layouts")

DTYPES = (torch.bfloat16, torch.float16, torch.float32, torch.float64)


def changed(op, case, sample, change):
    names = op.samples if sample == "all" else (sample,)
    return case.but(**{name: change(getattr(case, name)) for name in names})


@pytest.mark.pairwise
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_layouts(op, sample, backend, layout, dtype):
    changed(op, op.make((4, 3, 7, 6), dtype), sample, LAYOUTS[layout]).check(backend)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts_of_video(op, sample, backend, layout):
    changed(op, op.make((2, 4, 3, 6, 5)), sample, LAYOUTS[layout]).check(backend)


@pytest.mark.parametrize("layout", STRIDES)
def test_strides_of_every_input(op, tensor, backend, layout):
    case = op.variants["state"]((9, 3, 6, 5), torch.float32)
    case.but(**{tensor: STRIDES[layout](getattr(case, tensor))}).check(backend)


@pytest.mark.parametrize("dims", ((1, -1, -1, -1), (-1, 1, -1, -1), (-1, -1, 1, 1)), ids=str)
def test_expanded(op, sample, backend, dims):
    shape = (4, 3, 7, 6)
    small = op.make(tuple(s if d == -1 else d for s, d in zip(shape, dims, strict=True)), seed=7)
    names = op.samples if sample == "all" else (sample,)
    op.make(shape).but(**{name: getattr(small, name).expand(shape) for name in names}).check(backend)


@pytest.mark.needs("samples")
@pytest.mark.parametrize("rank", (1, 2, 3, 4, 5, 6))
def test_ranks(op, backend, rank):
    op.make((5, 3, 4, 2, 3, 2)[:rank]).check(backend)


@pytest.mark.needs("samples")
@pytest.mark.parametrize("n", (1, 2, 3, 7, 8, 15, 16, 17, 31, 33, 63, 65, 127, 1023, 4097, 16385, 65537))
@pytest.mark.parametrize("dtype", (torch.bfloat16, torch.float32), ids=str)
def test_lengths(op, backend, n, dtype):
    case = op.make((3, n), dtype)
    case.check(backend)
    changed(op, case, "all", misaligned).check(backend)


@pytest.mark.needs("samples")
@pytest.mark.parametrize("n", (300_001, 2_100_003))
def test_samples_beyond_the_cache(op, backend, n):
    n = min(n, 30_001) if device.is_slow(backend) else n  # the software device holds 17 KB per block
    op.make((2, n), torch.float32).check(backend)
    op.make((1, n), torch.bfloat16).check(backend)


@pytest.mark.parametrize("batch", (1, 2, 7, 64, 1000))
def test_batches(op, backend, batch):
    batch = min(batch, 130) if device.is_slow(backend) else batch
    op.variants["state"]((batch, 3, 3), torch.float32).check(backend)


@pytest.mark.needs("samples")
def test_offsets_of_every_alignment(op, backend):
    case = op.make((1, 61), torch.bfloat16)
    for offset in range(1, 17):

        def shifted(v, offset=offset):
            buffer = v.new_empty(offset + 61)
            buffer[offset:] = v[0]
            return buffer[offset:].view(1, 61)

        changed(op, case, "all", shifted).check(backend)


@pytest.mark.needs("gradients")
def test_gradient_keeps_the_strides_that_autograd_expects(op, backend):
    """A channels_last parameter gets a channels_last gradient, as optimizers and DDP buckets want it."""
    case = op.make((4, 3, 8, 8))
    given = [getattr(case, name) for name in op.gradients]
    leaves = [(channels_last(v) if v.dim() == 4 else v).detach().requires_grad_() for v in given]
    result = case.but(**dict(zip(op.gradients, leaves, strict=True))).call(backend)
    # autograd.grad shows the op's own strides; for `.grad`, autograd copies to the parameter's strides.
    for leaf, gradient in zip(leaves, torch.autograd.grad(result.sum(), leaves, retain_graph=True), strict=True):
        assert gradient.stride() == leaf.stride()
    result.sum().backward()
    assert all(leaf.grad.stride() == leaf.stride() for leaf in leaves)


def test_the_inputs_are_left_alone(op, variant, backend):
    case = op.variants[variant]((9, 3, 8, 8), torch.float32)
    given = {**case.tensors(), **{k: v for k, v in case.options.items() if isinstance(v, torch.Tensor)}}
    before = {name: tensor.clone() for name, tensor in given.items()}
    case.run(backend)
    assert all(torch.equal(before[name], tensor) for name, tensor in given.items())
