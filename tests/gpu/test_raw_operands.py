"""Raw ops on a GPU, called past the public API: operands that don't fit, or are elsewhere, are refused by name."""

import pytest
import torch

from fdkernels._op.arguments import Table
from fdkernels.fdiv.arguments import FDIV, FDIV_WEIGHT
from tests.device import place
from tests.fdkernels.test_compile import raw_arguments
from tests.fdkernels.test_raw_ops import REFUSED
from tests.gpu.calls import KERNELS

pytestmark = [pytest.mark.gpu, pytest.mark.backends(*KERNELS)]

BATCH = 4
# Operands that `raw_arguments` leaves out, and what they exclude.
MORE = {
    "fake_uncond": {"fake_uncond": torch.ones(4, 3, 6, 5)},
    "multiplier": {"multiplier": Table(torch.ones(4, 90), 1)},
    "edges": {"edges": torch.linspace(0.1, 0.9, 4, dtype=torch.float64)},
    "weight": {"weight": torch.ones(4), "logits": None, "t": None, "ratio_mean": None, "update": False},
}
GIVEN = ("student", "teacher", "fake", "teacher_uncond", "noisy", "alpha", "sigma", "logits", "t", "ratio_mean", "mask")


@pytest.fixture
def op(backend):
    return getattr(torch.ops.fdkernels, f"fdiv_{backend}")


@pytest.fixture
def weight_op(backend):
    return getattr(torch.ops.fdkernels, f"fdiv_weight_{backend}")


@pytest.fixture
def backward_op(backend):
    return getattr(torch.ops.fdkernels, f"scale_{backend}")


def test_the_call_that_others_spoil(op):
    for changes in ({}, *MORE.values()):
        loss, *_ = op(*FDIV.operands(raw_arguments(**changes)))
        assert loss.isfinite()


@pytest.mark.parametrize("name", REFUSED)
def test_operands_that_do_not_fit(op, name):
    with pytest.raises(RuntimeError, match=rf"\b{name}: "):
        op(*FDIV.operands(raw_arguments(**REFUSED[name])))


@pytest.mark.parametrize("name", (*GIVEN, *MORE))
def test_operands_elsewhere(op, name):
    """On the CPU, beside others on the GPU. Of a student there, any name will do."""
    operands = FDIV.operands(raw_arguments(**MORE.get(name, {})))
    at = FDIV.names.index(name)
    operands[at] = operands[at].cpu()
    with pytest.raises(RuntimeError, match=r"\b[a-z_, ]+: expected" if name == "student" else rf"\b{name}: expected"):
        op(*operands)


@pytest.mark.parametrize("name", ("logits", "t", "ratio_mean", "edges"))
def test_operands_of_the_weight_elsewhere(weight_op, name):
    operands = FDIV_WEIGHT.operands(raw_arguments(**MORE["edges"]).weighting)
    at = FDIV_WEIGHT.names.index(name)
    operands[at] = operands[at].cpu()
    with pytest.raises(RuntimeError, match=r"\b[a-z_, ]+: expected" if name == "logits" else rf"\b{name}: expected"):
        weight_op(*operands)


@pytest.mark.parametrize("dtype", (torch.bool, torch.uint16, torch.uint32, torch.int64, torch.float16), ids=str)
def test_noise_levels_of_any_real_type(op, dtype):
    """Those that kernels do not read are converted first."""
    t = torch.tensor([0, 1, 1, 0]).to(dtype)
    loss, gradient, *_ = op(*FDIV.operands(raw_arguments(update=False, t=t)))
    expected, wanted, *_ = op(*FDIV.operands(raw_arguments(update=False, t=t.double())))
    assert torch.equal(loss, expected) and torch.equal(gradient, wanted)


def test_operands_of_one_value_a_sample_may_be_strided(op):
    call = raw_arguments(update=False)
    loss, gradient, *_ = op(*FDIV.operands(call))
    spread = {name: torch.stack((getattr(call.weighting, name),) * 2, -1)[..., 0] for name in ("logits", "t")}
    again, same, *_ = op(*FDIV.operands(call._replace(weighting=call.weighting._replace(**spread))))
    assert torch.equal(loss, again) and torch.equal(gradient, same)


UNSCALE = {
    "expanded": torch.tensor([2.0]).expand(BATCH),
    "bfloat16": torch.full((BATCH,), 2.0, dtype=torch.bfloat16),
    "float64": torch.full((BATCH,), 2.0, dtype=torch.float64),
    "strided": torch.tensor([2.0, 0.0] * BATCH)[::2],
}


@pytest.mark.parametrize("unscale", UNSCALE)
def test_backward_reads_unscale_as_it_is(backward_op, unscale):
    ones = torch.ones(BATCH, 3, device="cuda")
    gradient = backward_op(ones, torch.ones(BATCH, device="cuda"), place(UNSCALE[unscale]))
    assert torch.equal(gradient, 2 * ones)


def test_backward_refuses_other_counts(backward_op):
    ones, none = torch.ones(BATCH, 3, device="cuda"), torch.ones(0, device="cuda")
    with pytest.raises(RuntimeError, match="unscale"):
        backward_op(ones, ones[:, 0], torch.ones(3, device="cuda"))
    with pytest.raises(RuntimeError, match="upstream"):
        backward_op(ones, torch.ones(5, device="cuda"), none)
