"""Puts a test's schedule in force, and records what a call made the GPU do."""

from __future__ import annotations

import json
from typing import Any, NamedTuple

import pytest
import torch
from torch.profiler import ProfilerActivity, profile

from fdkernels import devices
from fdkernels.fdiv import t_range
from tests.gpu.calls import PLAN, Schedule, kernel_name


def pytest_collection_modifyitems(items):
    """Keep each backend's own schedules only."""
    items[:] = [item for item in items if not _is_of_another_backend(item)]


def _is_of_another_backend(item):
    values = item.callspec.params if hasattr(item, "callspec") else {}
    named = {value.backend for value in values.values() if isinstance(value, Schedule)}
    return values.get("backend", "none") != "none" and bool(named - {values["backend"]})


@pytest.fixture(autouse=True)
def _no_looks_at_t(monkeypatch):
    """Switch off looks at t: a normalizer's first calls launch kernels for them, and tests here count every kernel."""
    monkeypatch.setattr(t_range, "LOOKS", 0)


@pytest.fixture(autouse=True)
def _in_force(request, monkeypatch):
    """Put the plan of a test's parameters in force, or none, whatever the environment says."""
    monkeypatch.delenv(PLAN, raising=False)
    values = request.node.callspec.params if hasattr(request.node, "callspec") else {}
    for schedule in values.values():
        if isinstance(schedule, Schedule):
            skip_unless_possible(schedule.plan)
    if isinstance(values.get("schedule"), Schedule):
        monkeypatch.setenv(PLAN, values["schedule"].plan)


def skip_unless_possible(plan: str) -> None:
    """Skip where this GPU has no clusters of the size that a plan names."""
    kind, _, size = plan.partition(":")
    if kind == "cluster" and size and not devices.present(0)["active_clusters"][devices.CLUSTER_SIZES.index(int(size))]:
        pytest.skip(f"{torch.cuda.get_device_name()} schedules no clusters of {size} blocks")


class Work(NamedTuple):
    """A kernel, copy or fill. Only a kernel has dimensions."""

    name: str
    grid: list[int] | None
    block: list[int] | None
    shared: int | None
    """Bytes per block, static and dynamic."""


@pytest.fixture
def device_work(tmp_path):
    """A function that calls another and returns the kernels, copies and fills that it ran, in their order."""

    def work(function) -> list[Work]:
        torch.cuda.synchronize()
        with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as trace:
            function()
            torch.cuda.synchronize()
        path = tmp_path / "trace.json"
        trace.export_chrome_trace(str(path))
        return work_in(json.loads(path.read_text())["traceEvents"])

    x = torch.ones(4, device="cuda")
    if len(work(lambda: x.add_(1))) != 1:
        pytest.skip("torch.profiler records no kernels on this machine")
    return work


def work_in(events: list[dict[str, Any]]) -> list[Work]:
    """The work among a trace's events, in order of time."""
    found = [event for event in events if event.get("cat") in ("kernel", "gpu_memcpy", "gpu_memset")]
    found.sort(key=lambda event: event["ts"])
    keys = ("grid", "block", "shared memory")
    return [Work(kernel_name(event["name"]), *(event.get("args", {}).get(key) for key in keys)) for event in found]
