"""What serves a call, what does not, and why."""

import importlib.metadata
import importlib.util

import pytest
import torch

from fdkernels import backends

pytestmark = pytest.mark.cpu_only("what a device offers is made up here")


@pytest.fixture
def fresh():
    backends._chosen.clear()
    backends._installed_triton.cache_clear()
    yield
    backends._chosen.clear()
    backends._installed_triton.cache_clear()


def test_triton_on_cpu_is_for_the_interpreter(monkeypatch):
    monkeypatch.setenv("TRITON_INTERPRET", "0")
    assert "TRITON_INTERPRET=1" in backends.unavailable("triton", "cpu")
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    assert backends.unavailable("triton", "cpu") is None


def test_without_triton(monkeypatch, fresh):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert "not installed" in backends.unavailable("triton", "cuda")
    with pytest.raises(
        RuntimeError, match="^backend 'triton' is not available for cuda tensors: triton is not installed"
    ):
        backends.choose("triton", "cuda")
    assert backends.choose("auto", "cuda") == "reference"


@pytest.mark.parametrize(
    ("version", "usable"), [("3.5.1", False), ("3.6.0", True), ("3.10.0+git1", True), ("4.0", True)]
)
def test_versions(monkeypatch, fresh, version, usable):
    monkeypatch.setattr(importlib.metadata, "version", lambda name: version)
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    reason = backends.unavailable("triton", "cpu")
    assert reason is None if usable else version in reason and "3.6 or later" in reason


def test_rocms_own_package(monkeypatch, fresh):
    def version(name):
        if name != "pytorch-triton-rocm":
            raise importlib.metadata.PackageNotFoundError(name)
        return "3.6.0"

    monkeypatch.setattr(importlib.metadata, "version", version)
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    assert backends.unavailable("triton", "cpu") is None


@pytest.mark.parametrize(("capability", "usable"), [((7, 5), False), ((8, 0), True), ((9, 0), True), ((12, 0), True)])
def test_compute_capability(monkeypatch, fresh, capability, usable):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: capability)
    reason = backends.unavailable("triton", "cuda")
    assert reason is None if usable else "(7, 5)" in reason and "(8, 0) or later" in reason
    assert backends.choose("auto", "cuda") == ("triton" if usable else "reference")


def test_no_device(monkeypatch, fresh):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert "no CUDA or ROCm device" in backends.available("cuda")["triton"]


def test_other_devices(fresh):
    assert "mps" in backends.unavailable("triton", "mps") and "mps" in backends.unavailable("native", "mps")
    assert backends.choose("auto", "mps") == "reference"


def test_a_backend_asked_for_by_name_never_falls_back(monkeypatch, fresh):
    monkeypatch.setenv("TRITON_INTERPRET", "0")
    x = torch.zeros(8, 4)
    import fdkernels as fdk

    with pytest.raises(RuntimeError, match="^backend 'triton' is not available for cpu tensors"):
        fdk.fused_fdiv_loss(x, x, x, divergence="rkl", backend="triton")
