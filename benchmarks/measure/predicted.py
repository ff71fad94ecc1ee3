"""Bytes that a call is predicted to move between the device's memory and its chip."""

from __future__ import annotations

import functools
import math
from typing import TYPE_CHECKING, Any

import torch

from benchmarks.cases.formulas import Formula
from benchmarks.cases.shapes import DTYPES, Case
from fdkernels import devices
from fdkernels.fdiv import triton_plan

if TYPE_CHECKING:
    from fdkernels._core import DeviceLimits


def predicted_bytes(
    formula: Formula, case: Case, backend: str | None, counted: int | None, device: str
) -> float | None:
    """By the plan of a backend that has one; `native` on a CPU: the fewest; eager: what its ops read and write; unknown
    of compiled code, and of calls without N-sized data, which launches decide."""
    if formula.images == 0:
        return None
    if backend == "native":
        forward = float(formula.minimum_bytes(case)) if device == "cpu" else native_bytes(formula, case, present())
    elif backend == "triton":
        cache = torch.cuda.get_device_properties().L2_cache_size if device == "cuda" else 0
        forward = triton_bytes(formula, case, cache)
    else:
        return None if counted is None else float(counted)
    scaled = formula.upstream_at(DTYPES[case.dtype]) != 1
    return forward + (2 * case.elements * case.itemsize if scaled else 0)


@functools.cache
def present() -> DeviceLimits:
    return devices.present(torch.cuda.current_device())


def native_bytes(formula: Formula, case: Case, limits: DeviceLimits) -> float:
    from fdkernels import _core

    batch, elements = case.shape[0], math.prod(case.shape[1:])
    call: dict[str, Any] = {"student": case.dtype, **formula.plan(case)}
    return _core.plan(batch, elements, limits=limits, **call)["bytes"]


def triton_bytes(formula: Formula, case: Case, cache: int) -> float:
    batch, elements = case.shape[0], math.prod(case.shape[1:])
    call = formula.plan(case)
    rows, entries = call.get("mask", (0, 0))
    spread = triton_plan.plan(
        batch, elements, images=formula.images, heads=call.get("heads", 0), bins=call.get("bins", 0),
        mask_entries=rows * entries,
    )  # fmt: skip
    read, reread = formula.images * case.itemsize, formula.reread * case.itemsize
    return triton_plan.bytes_moved(spread, batch, elements, read, reread, case.itemsize, cache)
