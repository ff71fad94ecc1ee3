"""Every op: a tensor that does not fit raises before anything runs, with its name, what was expected and what came."""

import pytest
import torch
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Shard, distribute_tensor

from tests import refusals

pytestmark = pytest.mark.contract("bad input")

SHAPE = (8, 3, 6, 5)


@pytest.fixture
def case(op):
    return op.variants["state"](SHAPE, torch.float32)


@pytest.fixture(autouse=True)
def _state_is_left_alone(case):
    state = case.state()
    before = None if state is None else (state.clone(), state._version)
    yield
    assert before is None or (torch.equal(state, before[0]) and state._version == before[1])


def test_tensors_that_do_not_fit(op, misused, case, backend):
    name, _, fault = misused.partition(": ")
    bad, message = refusals.misused(op.entry(name), fault, getattr(case, name))
    with pytest.raises((ValueError, TypeError), match=message):
        case.call(backend, **{name: bad})


@pytest.mark.cpu_only("gloo")
def test_dtensor(tensor, case, backend, world):
    sharded = distribute_tensor(getattr(case, tensor), init_device_mesh("cpu", (1,)), [Shard(0)])
    with pytest.raises(TypeError, match=rf"^{tensor}: expected a local tensor, got a DTensor.*to_local"):
        case.call(backend, **{tensor: sharded})
