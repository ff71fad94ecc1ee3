"""The variants of a case (our backends, and the peer's chain in each mode), and whether each is right."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch._dynamo.utils import counters

from benchmarks.cases.formula import Formula, Step
from benchmarks.cases.formulas import make_inputs

# MODES: from the command line's names to a row's "mode". COMPILE_MODES: from there to torch.compile's mode; None is the
# default mode.
MODES = {"eager": "eager", "compile": "compile default", "max-autotune": "compile max-autotune-no-cudagraphs"}
COMPILE_MODES = {"compile default": None, "compile max-autotune-no-cudagraphs": "max-autotune-no-cudagraphs"}
# The largest relative L2 error against float64; beyond it a time means nothing. The peers compute x - g, which in bf16
# rounds away up to a tenth of g, so their formula is also judged by its result in float32.
TOLERANCE = {"ours": {"fp32": 1e-5, "bf16": 4e-3, "fp16": 1e-3}, "peer": {"fp32": 1e-4, "bf16": 0.2, "fp16": 0.2}}
# A compiled formula may have this many times eager's error: the compiler rounds less often, not more.
COMPILED_ERROR = 2.0


class Variant(NamedTuple):
    name: str
    backend: str | None
    mode: str | None
    make: Callable[[], Step]  # Makes a step with its own state; a compiled step compiles in its first call

    @property
    def ours(self) -> bool:
        return self.backend is not None

    @property
    def compiled(self) -> bool:
        return self.mode in COMPILE_MODES


def variants(formula: Formula, backends: Sequence[str], modes: Sequence[str], device: str) -> list[Variant]:
    def peer(mode: str) -> Step:
        if mode == "eager":
            return formula.peer_step(formula.chain, device)
        # AOTAutograd compiles the backward along with the forward.
        compiled = torch.compile(formula.chain, dynamic=False, mode=COMPILE_MODES[mode])
        return formula.peer_step(compiled, device)

    ours = [Variant(name, name, None, functools.partial(formula.our_step, name, device)) for name in backends]
    peers = [
        Variant(f"{formula.peer} {mode}", None, mode, functools.partial(peer, mode))
        for mode in modes
        if not formula.in_place or mode == "eager"
    ]
    return ours + peers


def graphs_compiled() -> int:
    """Graphs that torch.compile has compiled so far in this process."""
    return int(counters["stats"]["unique_graphs"])


def relative_error(result: Tensor, exact: Tensor) -> float:
    return ((result.double() - exact).norm() / exact.norm()).item()


def wrong_because(
    variant: Variant, formula: Formula, dtype: str, error: float, device: str, eager: float | None = None
) -> str | None:
    """Why a variant with this error is wrong, or None. `eager`: the error of the same formula, uncompiled."""
    what = "gradient" if formula.images else "weight"
    allowed = TOLERANCE["ours" if variant.ours else "peer"][dtype]
    if not error <= allowed:
        return f"{what} is off by {error:.2g} (allowed {allowed:g})"
    if variant.ours:
        return None
    if variant.compiled and eager is not None:
        allowed = max(COMPILED_ERROR * eager, TOLERANCE["ours"][dtype])
        if not error <= allowed:
            return f"{what} is off by {error:.2g} when compiled, by {eager:.2g} in eager mode"
    in_float32, allowed = error_in_float32(formula, device), TOLERANCE["peer"]["fp32"]
    if not in_float32 <= allowed:
        return f"{what} is off by {in_float32:.2g} in fp32 (allowed {allowed:g})"
    return None


@functools.cache
def error_in_float32(formula: Formula, device: str) -> float:
    """Error of the peer's formula on a small float32 case, where rounding hides nothing."""
    inputs = make_inputs(formula.tiny(), device, seed=0)
    exact = formula.exact_result(inputs)  # before the step, which may write to its inputs
    return relative_error(formula.peer_step(formula.chain, device)(inputs), exact)
