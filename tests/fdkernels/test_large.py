"""Tensors of more than 2³¹ elements need 64-bit offsets."""

from pathlib import Path

import numpy as np
import pytest
import torch

import fdkernels as fdk

pytestmark = pytest.mark.contract("layouts")

ELEMENTS = 2**30 + 4099  # in each of two samples
GIB = 2**30


def available_memory() -> int:
    lines = Path("/proc/meminfo").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable"))


def zeros(shape: tuple[int, ...]) -> torch.Tensor:
    """Zeros that the system backs with one page: NumPy asks for cleared memory, while torch.zeros writes it."""
    return torch.from_numpy(np.zeros(shape, dtype=np.int16)).view(torch.bfloat16)


@pytest.mark.cpu_only("on a GPU: tests/gpu")
@pytest.mark.backends("native")  # eager PyTorch would need about 40 GiB of fp32 temporaries
def test_beyond_two_to_the_31(backend):
    """The inputs are zeros that take no memory, except for a few elements around 2³¹ and beyond."""
    if available_memory() < 6 * GIB:
        pytest.skip(f"needs 6 GiB of free memory, has {available_memory() / GIB:.1f}")
    shape = (2, ELEMENTS)
    student, teacher, fake = (zeros(shape) for _ in range(3))
    positions = [(0, 0), (0, 2**30), (0, ELEMENTS - 1), (1, 0), (1, 17), (1, 2**30 - 4099), (1, ELEMENTS - 1)]
    values = torch.arange(1, len(positions) + 1).float()
    for (b, i), value in zip(positions, values, strict=True):
        fake[b, i] = value
        teacher[b, i] = -value
    weight = torch.tensor([1.0, 2.0])
    student.requires_grad_()
    loss = fdk.fused_fdiv_loss(
        student, teacher, fake, weight=weight, scale=fdk.DmdScale(0.0), reduction="sum", backend=backend
    )
    loss.backward()
    s = [ELEMENTS / sum(v for (b, _), v in zip(positions, values.tolist(), strict=True) if b == k) for k in (0, 1)]
    total = 0.0
    for (b, i), value in zip(positions, values.tolist(), strict=True):
        g = s[b] * weight[b].item() * 2 * value
        total += 0.5 * g * g
        assert student.grad[b, i].item() == pytest.approx(g, rel=2**-8)
    assert loss.item() == pytest.approx(total, rel=1e-6)
    # All other elements are zero. They are counted in chunks: a mask of all would take 2 GiB more.
    nonzero = sum(int(torch.count_nonzero(part)) for row in student.grad for part in row.split(2**28))
    assert nonzero == len(positions)
