"""The skeletons of csrc/core with another op than fdiv: every sample divided by its norm."""

import ctypes

import pytest
import torch

from tests.software_device import build, device

PLANS = ("cluster:1", "cluster:2", "cluster:4", "grid:1", "grid:2", "auto")


@pytest.fixture(scope="module")
def software():
    kernels = (*build.KERNELS, build.HERE / "normalize.cu")
    software = device.Software(build.library(90, kernels=kernels, namespace="software_normalize"), "software_normalize")
    software.library.normalize.restype = ctypes.c_char_p
    return software


def normalize(software, x, plan):
    y, norms = torch.empty_like(x), torch.empty(len(x) + 1, dtype=torch.float64)
    pointers = (ctypes.c_void_p(v.data_ptr()) for v in (x, y, norms))
    sizes = map(ctypes.c_int64, x.shape)
    error = software.library.normalize(*pointers, *sizes, software.index, plan.encode())
    return y, norms, None if error is None else error.decode()


@pytest.mark.parametrize("scheduler", device.SCHEDULERS)
@pytest.mark.parametrize("plan", PLANS)
@pytest.mark.parametrize("shape", [(1, 1), (5, 273), (9, 192), (3, 4096)])
def test_another_op(software, shape, plan, scheduler):
    x = torch.randn(shape, generator=torch.Generator().manual_seed(1))
    software.use(device.TIGHT)
    software.schedule(scheduler, seed=3)
    software.begin()
    y, norms, error = normalize(software, x, plan)
    if error is not None:
        assert "no allowed schedule" in error and plan.startswith("cluster") and shape == (3, 4096)
        return
    (launch,) = software.launches()
    assert launch.name.startswith("normalize_") and plan.partition(":")[0] in (*launch.name.split("_"), "auto")
    expected = x.double().norm(dim=1)
    torch.testing.assert_close(y.double(), x.double() / expected[:, None], rtol=2e-7, atol=0)
    torch.testing.assert_close(norms, torch.cat((expected, expected.sum(0, keepdim=True))), rtol=1e-6, atol=0)


def test_sums_that_overflow_float32_are_added_again_in_double(software):
    x = torch.full((2, 100), 3e19)
    software.use(device.TIGHT)
    y, norms, error = normalize(software, x, "auto")
    assert error is None and torch.allclose(y, torch.full_like(y, 0.1)) and norms[0] == pytest.approx(3e20)
