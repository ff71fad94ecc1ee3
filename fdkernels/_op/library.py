"""How an op is registered: one schema and one fake for every backend. The first call imports Triton's implementation.

`csrc/torch/` registers the implementations `<op>_native` for the same schemas.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fdkernels._op.arguments import ArgumentList

KERNELS = ("native", "triton")


class Op(NamedTuple):
    """An op `<name>_<backend>`."""

    name: str
    public: str
    """The function that users call, as errors name it."""
    arguments: ArgumentList
    results: str
    """The results as written in a schema."""
    outputs: Callable[[Any], tuple[Tensor, ...]]
    """Maps a call to its results, uninitialized; the fakes return these."""
    reference: Callable[[Any], tuple[Tensor, ...]]
    """The specification: maps a call to its results."""

    def run(self, backend: str, call: Any, first: Tensor) -> Any:
        """The results of a call whose first argument is replaced by `first`.

        An empty batch runs no kernel: on every backend its results are the reference's.
        """
        if backend == "reference" or first.shape[0] == 0:
            return self.reference(call._replace(**{self.arguments.names[0]: first}))
        operands = self.arguments.operands(call)
        operands[0] = first
        return kernels[f"{self.name}_{backend}"](*operands)


ops: dict[str, Op] = {}
kernels: dict[str, Callable[..., Any]] = {}
"""Registered ops by name, called below their own autograd kernels: the caller is already an autograd function."""

# The limits of a GPU, from which native plans its launches: the fields of DeviceLimits in `csrc/core/plan.h`, in order.
CUDA_LIMITS = "cuda_limits(int device) -> Tensor"

_library = torch.library.Library("fdkernels", "DEF")
_library.define(CUDA_LIMITS)


def register(op: Op, triton: str) -> Op:
    """Make an op callable on every backend. `triton` names the module with Triton's function of the op's name."""
    ops[op.name] = op
    for backend in KERNELS:
        define(_library, op, backend)
        name = f"{op.name}_{backend}"
        kernels[name] = below_autograd(getattr(torch.ops.fdkernels, name).default)
    _implement_in_triton(f"{op.name}_triton", triton, op.name)
    return op


def define(library: torch.library.Library, op: Op, backend: str) -> None:
    """Define an op's schema and its fake in a library's namespace."""
    library.define(f"{op.name}_{backend}({op.arguments.schema}) -> ({op.results})")

    def fake(*operands: Any) -> tuple[Tensor, ...]:
        return op.outputs(op.arguments.build(operands))

    torch.library.register_fake(f"{library.ns}::{op.name}_{backend}", fake, lib=library)


def define_scale(library: torch.library.Library, backend: str) -> None:
    """Define the ops that scale a loss's stored gradient (`autograd.py`): `scale_<backend>` and `scale_<backend>_`.

    The in-place op moves no data where the factor is 1.
    """
    scaled, in_place = f"scale_{backend}", f"scale_{backend}_"
    library.define(f"{scaled}(Tensor gradient, Tensor upstream, Tensor unscale) -> Tensor")
    library.define(f"{in_place}(Tensor(a!) gradient, Tensor upstream, Tensor unscale) -> ()")
    torch.library.register_fake(f"{library.ns}::{scaled}", lambda gradient, *_: torch.empty_like(gradient), lib=library)
    torch.library.register_fake(f"{library.ns}::{in_place}", lambda *_: None, lib=library)


def implement_autograd(op: Op, backend: str, function: Callable[..., Any]) -> None:
    _library.impl(f"{op.name}_{backend}", function, "Autograd")


def _implement_in_triton(op: str, module: str, function: str) -> None:
    """The first call imports the module, and Triton with it."""

    def implementation(*operands: Any) -> Any:
        return getattr(importlib.import_module(module), function)(*operands)

    for key in ("CUDA", "CPU"):  # PyTorch dispatches ROCm as CUDA; Triton's interpreter runs on the CPU
        _library.impl(op, implementation, key)


def below_autograd(op: Callable[..., Any]) -> Callable[..., Any]:
    """`op` without its own autograd kernel."""

    def call(*operands: Any) -> Any:
        if torch.compiler.is_compiling():
            return op(*operands)
        with torch._C._AutoDispatchBelowAutograd():
            return op(*operands)

    return call


for _backend in KERNELS:
    define_scale(_library, _backend)
    for _name in (f"scale_{_backend}", f"scale_{_backend}_"):
        kernels[_name] = getattr(torch.ops.fdkernels, _name).default
_implement_in_triton("scale_triton", "fdkernels._triton.scale", "scale")
_implement_in_triton("scale_triton_", "fdkernels._triton.scale", "scale_")
