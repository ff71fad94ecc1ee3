"""Raw ops called past the public API: operands that don't fit are refused, never read past."""

import os
import subprocess
import sys

import pytest
import torch

from fdkernels import backends
from fdkernels._op.arguments import Table
from fdkernels.fdiv.arguments import FDIV
from tests.fdkernels.test_compile import raw_arguments

pytestmark = [pytest.mark.cpu_only("raw ops on CPU tensors"), pytest.mark.backends("native", "triton")]


@pytest.fixture
def op(backend):
    assert backends.choose(backend, "cpu") == backend
    return getattr(torch.ops.fdkernels, f"fdiv_{backend}")


@pytest.fixture
def backward_op(op, backend):
    return getattr(torch.ops.fdkernels, f"scale_{backend}")


@pytest.mark.parametrize(
    "unscale",
    [
        torch.tensor([2.0]).expand(4),
        torch.full((4,), 2.0, dtype=torch.bfloat16),
        torch.full((4,), 2.0, dtype=torch.float64),
        torch.tensor([2.0, 0.0, 2.0, 0.0, 2.0, 0.0, 2.0, 0.0])[::2],
    ],
    ids=["expanded", "bfloat16", "float64", "strided"],
)
def test_backward_reads_unscale_as_it_is(backward_op, unscale):
    gradient = backward_op(torch.ones(4, 3), torch.ones(4), unscale)
    assert torch.equal(gradient, torch.full((4, 3), 2.0))


def test_backward_refuses_other_counts(backward_op):
    with pytest.raises(RuntimeError, match="unscale"):
        backward_op(torch.ones(4, 3), torch.ones(4), torch.ones(3))
    with pytest.raises(RuntimeError, match="upstream"):
        backward_op(torch.ones(4, 3), torch.ones(5), torch.ones(0))


@pytest.mark.parametrize("inner", [0, -1, 3, 1 << 62, (1 << 63) - 1])
def test_tables_that_do_not_tile_a_sample(op, inner):
    call = raw_arguments()
    batch = call.student.shape[0]
    call = call._replace(multiplier=Table(torch.ones(batch, 4), inner))
    with pytest.raises(RuntimeError, match="multiplier"):
        op(*FDIV.operands(call))


def wide(*shape):
    """Every other column of something wider."""
    return torch.ones(*shape[:-1], 2 * shape[-1])[..., ::2]


REFUSED = {
    "student": {"student": torch.ones(4, 3, 6, 5, dtype=torch.int32)},
    "teacher": {"teacher": torch.ones(4, 3, 6, 4)},
    "fake": {"fake": wide(4, 3, 6, 5)},
    "teacher_uncond": {"teacher_uncond": torch.ones(4, 3, 6, 1).expand(4, 3, 6, 5)},
    "prediction": {"prediction": "noise"},
    "alpha": {"alpha": Table(torch.ones(4, 1, dtype=torch.float16), 90)},
    "multiplier": {"multiplier": Table(wide(4, 90), 1)},
    "mask": {"mask": Table(torch.ones(4, 90), 1)},
    "logits": {"logits": torch.ones(4, 2, 2)},
    "t": {"t": torch.ones(1)},
    "weight": {"weight": torch.ones(4)},
    "ratio_mean": {"ratio_mean": torch.ones(5, dtype=torch.float64)},
    "edges": {"edges": torch.ones(2, dtype=torch.float64)},
    "reduction": {"reduction": "avg"},
    "divergence": {"divergence": "xyz"},
}


@pytest.mark.parametrize("name", REFUSED)
def test_operands_that_do_not_fit(op, name):
    with pytest.raises(RuntimeError, match=rf"\b{name}: "):
        op(*FDIV.operands(raw_arguments(**REFUSED[name])))


def test_samples_without_elements(op):
    call = raw_arguments(noisy=None, alpha=Table(), sigma=Table(), mask=Table(), teacher_uncond=None)
    none = torch.ones(4, 0)
    with pytest.raises(RuntimeError, match="student: expected at least one element"):
        op(*FDIV.operands(call._replace(student=none, teacher=none, fake=none)))


@pytest.mark.backends("native")
def test_unknown_instruction_set_is_refused(backend):
    code = (
        "import torch, fdkernels as fdk; x = torch.zeros(8, 4);"
        "fdk.fused_fdiv_loss(x, x, x, divergence='rkl', backend='native')"
    )
    run = subprocess.run(
        [sys.executable, "-c", code], env={**os.environ, "FDKERNELS_CPU_ISA": "avx9"}, capture_output=True, text=True
    )
    assert run.returncode != 0
    assert "FDKERNELS_CPU_ISA" in run.stderr and "avx9" in run.stderr
