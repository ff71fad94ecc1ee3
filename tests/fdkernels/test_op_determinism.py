"""Every op gives the same bits for the same inputs, across repeats and thread counts."""

import pytest
import torch

from tests import device

pytestmark = pytest.mark.contract("determinism")

SHAPES = ((64, 3, 8, 8), (1, 300_001), (3, 4, 70, 70), (700, 5))
SLOW = dict(zip(SHAPES, ((6, 3, 8, 8), (1, 30_001), (2, 4, 9, 9), (40, 5)), strict=True))


def runs(op, backend, shape, dtype):
    """A function that calls the op for all that it returns."""
    case = op.variants["state"](shape, dtype)
    return lambda: case.run(backend, stats=op.has_stats)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("dtype", (torch.bfloat16, torch.float32), ids=str)
def test_repeats(op, backend, shape, dtype):
    run = runs(op, backend, SLOW[shape] if device.is_slow(backend) else shape, dtype)
    first = run()
    for _ in range(1 if device.is_slow(backend) else 20):
        assert first.same_bits(run())


@pytest.mark.backends("reference", "native")  # the interpreter runs one program after the other
@pytest.mark.cpu_only("on a GPU: tests/gpu")
def test_a_thousand_repeats(op, backend):
    run = runs(op, backend, (64, 3, 8, 8), torch.float32)
    first = run()
    assert all(first.same_bits(run()) for _ in range(1000))


@pytest.mark.backends("reference", "native")
@pytest.mark.cpu_only("threads")
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("dtype", (torch.bfloat16, torch.float16, torch.float32, torch.float64), ids=str)
def test_thread_counts(op, backend, shape, dtype):
    run = runs(op, backend, shape, dtype)
    threads, outcomes = torch.get_num_threads(), []
    try:
        for count in (1, 2, 3, 5):
            torch.set_num_threads(count)
            outcomes.append(run())
    finally:
        torch.set_num_threads(threads)
    if backend == "reference":
        # PyTorch's reductions may split by the number of threads: the results are right, but not the same bits.
        tolerance = 1.6e-2 if dtype == torch.bfloat16 else 2e-3
        for outcome in outcomes:
            found, expected = (outcome.loss, *outcome.grads), (outcomes[0].loss, *outcomes[0].grads)
            torch.testing.assert_close(found, expected, rtol=tolerance, atol=0)
    else:
        assert all(outcomes[0].same_bits(outcome) for outcome in outcomes[1:])
