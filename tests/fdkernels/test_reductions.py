"""mean, sum and none; and float16, whose gradients underflow unless they are scaled before they are rounded."""

import math

import pytest
import torch

from fdkernels import testing
from tests.cases import make

pytestmark = pytest.mark.contract("reductions")

DTYPES = (torch.bfloat16, torch.float16, torch.float32, torch.float64)


@pytest.mark.parametrize("reduction", ("mean", "sum", "none"))
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_reductions(backend, reduction, dtype):
    outcome = make((5, 3, 7, 6), dtype, reduction=reduction).check(backend)
    assert outcome.loss.shape == ((5,) if reduction == "none" else ())


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_none_times_a_weight(backend, dtype):
    """(reduction="none") * w gives each sample its own upstream gradient."""
    case = make((5, 3, 7, 6), dtype, reduction="none")
    case.check(backend, torch.tensor([1.0, -2.0, 0.0, 0.5, 300.0], dtype=torch.promote_types(dtype, torch.float32)))


def test_none_sums_to_the_others(backend):
    case = make((5, 3, 7, 6))
    each = case.but(reduction="none").run(backend).loss
    torch.testing.assert_close(each.mean(), case.run(backend).loss, rtol=1e-6, atol=0)
    torch.testing.assert_close(each.sum() * 3 * 7 * 6, case.but(reduction="sum").run(backend).loss, rtol=1e-6, atol=0)


@pytest.mark.parametrize("shape", ((8, 4, 32, 32), (1, 16, 3, 30, 52)), ids=str)
def test_float16_under_a_loss_scale(backend, shape):
    """g/N is below fp16's smallest number here. A loss scale of 65536 must bring it back, not a zero rounded before."""
    case = make(shape, torch.float16, heads=None, scale=None, gap=0.5 * math.prod(shape) / 2**21)
    outcome, expected = case.run(backend, torch.tensor(65536.0)), case.expected()
    want = torch.from_numpy(expected.grad) * 65536
    testing.assert_gradient(outcome.grad, want, upstream_is_one=False)
    assert testing.relative_l2(outcome.grad, want) < 5e-4
    assert ((outcome.grad == 0) == (want.half() == 0)).all()


@pytest.mark.parametrize("reduction", ("mean", "none", "sum"))
@pytest.mark.parametrize("upstream", (65536.0, 3.0, 2.0**-10))
def test_float16_scaled(backend, reduction, upstream):
    case = make((3, 3, 17, 19), torch.float16, heads=None, gap=0.5, reduction=reduction)
    case.check(backend, torch.full((3,) if reduction == "none" else (), upstream))


def test_float16_upstream_one_underflows_like_the_rounded_oracle(backend):
    make((2, 3, 64, 64), torch.float16, heads=None, gap=0.01).check(backend)


def test_a_gradient_above_float16_overflows_to_infinity(backend):
    case = make((2, 3, 4, 4), torch.float16, heads=None, scale=None, reduction="sum", weight=torch.tensor([1e6, 1.0]))
    outcome = case.run(backend)
    want = torch.from_numpy(case.expected().grad)
    assert torch.equal(outcome.grad.isinf(), want.half().isinf())
    testing.assert_gradient(outcome.grad[1], want[1])
