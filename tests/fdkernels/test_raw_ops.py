"""Raw ops called past the public API: operands that don't fit are refused, never read past."""

import os
import subprocess
import sys

import pytest
import torch

from fdkernels import backends
from tests.fdkernels.test_compile import raw_arguments

pytestmark = pytest.mark.cpu_only("raw ops of the native backend")


@pytest.fixture(autouse=True)
def _native():
    assert backends.choose("native", "cpu") == "native"


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
def test_backward_reads_unscale_as_it_is(unscale):
    gradient = torch.ops.fdkernels.fdiv_backward_native(torch.ones(4, 3), torch.ones(4), unscale)
    assert torch.equal(gradient, torch.full((4, 3), 2.0))


def test_backward_refuses_other_counts():
    with pytest.raises(RuntimeError, match="unscale"):
        torch.ops.fdkernels.fdiv_backward_native(torch.ones(4, 3), torch.ones(4), torch.ones(3))
    with pytest.raises(RuntimeError, match="upstream"):
        torch.ops.fdkernels.fdiv_backward_native(torch.ones(4, 3), torch.ones(5), torch.ones(0))


@pytest.mark.parametrize("inner", [0, -1, 3, 1 << 62, (1 << 63) - 1])
def test_tables_that_do_not_tile_a_sample(inner):
    call = raw_arguments()
    batch = call.student.shape[0]
    with pytest.raises(RuntimeError, match="scale"):
        torch.ops.fdkernels.fdiv_native(*call._replace(scale=torch.ones(batch, 4), scale_inner=inner))


def test_images_of_another_shape():
    call = raw_arguments()
    with pytest.raises(RuntimeError, match="teacher"):
        torch.ops.fdkernels.fdiv_native(*call._replace(teacher=call.teacher[:, :-1]))


def test_unknown_instruction_set_is_refused():
    code = (
        "import torch, fdkernels as fdk; x = torch.zeros(8, 4);"
        "fdk.fused_fdiv_loss(x, x, x, divergence='rkl', backend='native')"
    )
    run = subprocess.run(
        [sys.executable, "-c", code], env={**os.environ, "FDKERNELS_CPU_ISA": "avx9"}, capture_output=True, text=True
    )
    assert run.returncode != 0
    assert "FDKERNELS_CPU_ISA" in run.stderr and "avx9" in run.stderr
