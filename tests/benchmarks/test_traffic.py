"""The tables of docs/kernels.md and docs/cuda.md are the plans', and the counter counts."""

import pytest
import torch

from benchmarks import traffic


@pytest.mark.parametrize("path", traffic.PAGES, ids=lambda path: path.name)
def test_the_pages_are_up_to_date(path):
    page = path.read_text()
    assert traffic.filled(page) == page, "run `python -m benchmarks.traffic --write`"
    assert "| CIFAR 64×3×32×32 | bf16 |" in page


@pytest.mark.parametrize(
    ("chain", "ops", "bytes_an_element"),
    [
        # mul reads and writes, sum reads, ones_like; backward: mul of an expanded scalar writes.
        (lambda x: (x * 2).sum(), 4, 4 * (2 + 1 + 1)),
        # sum reads, ones_like; backward: the expanded gradient is written out for x.grad.
        (lambda x: x.sum(), 3, 4 * (1 + 1)),
    ],
)
def test_the_counter(chain, ops, bytes_an_element):
    counted = traffic.count(chain, torch.zeros(64, 64))
    assert counted[0] == ops and counted[1] == pytest.approx(bytes_an_element, abs=0.02)


def test_the_counter_sees_expanded_operands_once():
    counter = traffic.Counted()
    small = torch.zeros(1, 64).expand(64, 64)
    with counter:
        small + 1.0
    assert counter.ops == 1 and counter.bytes == 4 * (64 + 64 * 64)
