"""count=: a call on a part of a batch. The parts add up to the whole."""

import pytest
import torch

import fdkernels as fdk
from tests.cases import make
from tests.fdkernels.test_masks import random_mask

pytestmark = pytest.mark.contract("reductions")

SHAPE = (8, 3, 2, 6, 5)
DTYPES = (torch.bfloat16, torch.float16, torch.float32, torch.float64)


@pytest.mark.pairwise
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("mask", (None, (8, 3, 1, 1, 1), SHAPE), ids=("no mask", "frames", "elements"))
@pytest.mark.parametrize(
    "count",
    (977, torch.tensor(5000), torch.tensor([[12.0]]), torch.tensor(3.5, dtype=torch.bfloat16), torch.tensor(7).byte()),
    ids=repr,
)
def test_divides_by_it(backend, dtype, mask, count):
    make(SHAPE, dtype, mask=None if mask is None else random_mask(mask), count=count).check(backend)


@pytest.mark.parametrize("count", (0, -3.0))
def test_below_one_is_one(backend, count):
    case = make((4, 3, 6, 5))
    assert torch.equal(case.but(count=torch.tensor(count)).run(backend).grad, case.but(count=1).run(backend).grad)


@pytest.mark.parametrize("dtype", (torch.float32, torch.float16), ids=str)
def test_micro_batches_with_uneven_masks(backend, dtype):
    """Without count, each part would divide by its own number of kept elements. One part keeps none."""
    mask = random_mask(SHAPE)
    mask[:2] &= random_mask((2, 3, 1, 1, 1))
    mask[4:6] = False
    whole = make(SHAPE, dtype, mask=mask, normalize_weight=False)
    expected = whole.run(backend)
    parts = []
    for i in range(0, 8, 2):
        part = {name: getattr(whole, name)[i : i + 2] for name in ("student", "teacher", "fake", "logits", "t")}
        parts.append(whole.but(**part, mask=mask[i : i + 2], count=mask.sum()).run(backend))
    torch.testing.assert_close(sum(part.loss for part in parts), expected.loss, rtol=1e-6, atol=0)
    grads = torch.cat([part.grad for part in parts])
    if dtype == torch.float32:
        torch.testing.assert_close(grads, expected.grad, rtol=1e-6, atol=0)
    else:
        assert torch.equal(grads, expected.grad)


@pytest.mark.host_code("no kernel runs over an empty batch")
def test_without_samples(backend):
    """A rank without samples in a masked batch."""
    case = make((8, 3))
    empty = {name: getattr(case, name)[:0] for name in ("student", "teacher", "fake")}
    outcome = case.but(**empty, logits=None, t=None, weight=torch.ones(0), count=5).run(backend)
    assert outcome.loss == 0 and outcome.grad.shape == (0, 3)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"count": 0}, "count: expected a whole number of at least 1 or a tensor, got 0"),
        ({"count": True}, "count: .*got True"),
        ({"count": 10**400}, "count: expected a whole number .*bits"),
        ({"count": 3.0}, "count: .*got 3.0"),
        ({"count": torch.ones(2)}, r"count: expected one real value, got shape \(2,\)"),
        ({"count": torch.tensor(True)}, "count: .*torch.bool"),
        ({"count": torch.tensor(torch.nan)}, "count: expected a finite number, got nan"),
        ({"count": torch.tensor(torch.inf)}, "count: expected a finite number, got inf"),
        ({"count": torch.ones((), device="meta")}, "count: expected device cpu"),
        ({"count": 5, "reduction": "sum"}, "count: expected with reduction='mean', got reduction='sum'"),
        ({"count": 5, "reduction": "none"}, "count: expected with reduction='mean'"),
    ],
)
def test_bad_counts(options, message):
    x = torch.zeros(8, 4)
    with pytest.raises(ValueError, match=message):
        fdk.fused_fdiv_loss(x, x, x, divergence="rkl", **options)
