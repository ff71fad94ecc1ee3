"""Bytes that a call is predicted to move between the device's memory and its chip."""

from __future__ import annotations

import functools
import math
from typing import TYPE_CHECKING, Any

import torch

from benchmarks.formulas import BINS, HEADS, Formula
from benchmarks.shapes import Case
from fdkernels import devices
from fdkernels.fdiv import triton_plan

if TYPE_CHECKING:
    from fdkernels._core import DeviceLimits


def predicted_bytes(
    formula: Formula, case: Case, backend: str | None, counted: int | None, device: str
) -> float | None:
    """By the plan of a backend that has one; `native` on a CPU: the fewest; eager: what its ops read and write; unknown
    of compiled code."""
    if backend == "native" and (device == "cpu" or formula.name == "weight"):
        return float(formula.minimum_bytes(case))
    if backend == "native":
        return native_bytes(formula, case, present())
    if backend == "triton":
        return triton_bytes(formula, case, torch.cuda.get_device_properties().L2_cache_size if device == "cuda" else 0)
    return None if counted is None else float(counted)


@functools.cache
def present() -> DeviceLimits:
    return devices.present(torch.cuda.current_device())


def native_bytes(formula: Formula, case: Case, limits: DeviceLimits) -> float:
    from fdkernels import _core

    batch, elements = case.shape[0], math.prod(case.shape[1:])
    call: dict[str, Any] = {"student": case.dtype, **formula.plan(case)}
    return _core.plan(batch, elements, limits=limits, **call)["bytes"]


def triton_bytes(formula: Formula, case: Case, cache: int) -> float:
    if formula.name == "weight":
        return float(formula.minimum_bytes(case))
    batch, elements = case.shape[0], math.prod(case.shape[1:])
    weighs = formula.name == "fastgen"
    rows, entries = formula.plan(case).get("mask", (0, 0))
    spread = triton_plan.plan(
        batch, elements, images=formula.images, heads=HEADS if weighs else 0, bins=BINS if weighs else 0,
        mask_entries=rows * entries,
    )  # fmt: skip
    read, reread = formula.images * case.itemsize, formula.reread * case.itemsize
    return triton_plan.bytes_moved(spread, batch, elements, read, reread, case.itemsize, cache)
