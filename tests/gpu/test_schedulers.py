"""`Prediction.from_scheduler` on a GPU: no host sync once the table is there; a CUDA graph looks t up anew."""

import pytest
import torch

import fdkernels as fdk
from tests.gpu.test_streams import no_host_sync
from tests.schedulers import SETUPS, normal, some_timesteps

pytestmark = [pytest.mark.gpu, pytest.mark.filterwarnings("ignore:__array:DeprecationWarning")]


@pytest.mark.parametrize("setup", SETUPS, ids=lambda setup: setup.name)
def test_no_host_sync_and_replay(setup):
    scheduler = setup.make(setup.kinds[0])
    on_host, noisy = some_timesteps(scheduler), normal(1)
    t, x_t = on_host.cuda(), noisy.cuda()
    fdk.Prediction.from_scheduler(scheduler, x_t, t)  # moves the table
    with no_host_sync():
        fdk.Prediction.from_scheduler(scheduler, x_t, t)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        found = fdk.Prediction.from_scheduler(scheduler, x_t, t)
    for order in ([0, 1, 2, 3], [3, 2, 2, 1]):
        t.copy_(on_host[order])
        graph.replay()
        expected = fdk.Prediction.from_scheduler(scheduler, noisy, on_host[order])
        for name in ("alpha", "sigma"):
            torch.testing.assert_close(getattr(found, name).cpu(), getattr(expected, name), rtol=1e-14, atol=0)
