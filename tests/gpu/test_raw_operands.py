"""Raw ops on a GPU, called past the public API with operands that kernels do not read as they are."""

import pytest
import torch

from fdkernels.fdiv.arguments import FDIV
from tests.gpu.calls import KERNELS
from tests.ops import raw_fdiv

pytestmark = [pytest.mark.gpu, pytest.mark.backends(*KERNELS)]


@pytest.fixture
def raw_op(backend):
    return getattr(torch.ops.fdkernels, f"fdiv_{backend}")


@pytest.mark.parametrize("dtype", (torch.bool, torch.uint16, torch.uint32, torch.int64, torch.float16), ids=str)
def test_noise_levels_of_any_real_type(raw_op, dtype):
    """Types that kernels do not read are converted first."""
    t = torch.tensor([0, 1, 1, 0]).to(dtype)
    loss, gradient, *_ = raw_op(*FDIV.operands(raw_fdiv(update=False, t=t)))
    expected, wanted, *_ = raw_op(*FDIV.operands(raw_fdiv(update=False, t=t.double())))
    assert torch.equal(loss, expected) and torch.equal(gradient, wanted)


def test_operands_of_one_value_a_sample_may_be_strided(raw_op):
    call = raw_fdiv(update=False)
    loss, gradient, *_ = raw_op(*FDIV.operands(call))
    spread = {name: torch.stack((getattr(call.weighting, name),) * 2, -1)[..., 0] for name in ("logits", "t")}
    again, same, *_ = raw_op(*FDIV.operands(call._replace(weighting=call.weighting._replace(**spread))))
    assert torch.equal(loss, again) and torch.equal(gradient, same)
