"""How an op is registered: one schema and one fake for every backend, Triton's implementation behind its first call.

`csrc/torch/` registers the implementations `<op>_native`, for the same schemas.
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
    """As a schema has them."""
    outputs: Callable[[Any], tuple[Tensor, ...]]
    """From a call to its results, uninitialized: what the fakes return."""
    reference: Callable[[Any], tuple[Tensor, ...]]
    """The specification, from a call to its results."""

    def run(self, backend: str, call: Any, first: Tensor) -> Any:
        """The results of a call, `first` in the place of its first argument.

        No kernel runs over an empty batch: its results are the reference's on every backend.
        """
        if backend == "reference" or first.shape[0] == 0:
            return self.reference(call._replace(**{self.arguments.names[0]: first}))
        operands = self.arguments.operands(call)
        operands[0] = first
        return kernels[f"{self.name}_{backend}"](*operands)


ops: dict[str, Op] = {}
kernels: dict[str, Callable[..., Any]] = {}
"""Registered ops by name, past their own autograd kernels: around them is an autograd function already."""

# The limits of a GPU, which native plans its launches by: `csrc/core/plan.h`, DeviceLimits in its order.
CUDA_LIMITS = "cuda_limits(int device) -> Tensor"

_library = torch.library.Library("fdkernels", "DEF")
_library.define(CUDA_LIMITS)


def register(op: Op, triton: str) -> Op:
    """Make an op callable on every backend; `triton`: the module with a function of its name for that backend."""
    ops[op.name] = op
    for backend in KERNELS:
        define(_library, op, backend)
        name = f"{op.name}_{backend}"
        kernels[name] = below_autograd(getattr(torch.ops.fdkernels, name).default)
    _implement_in_triton(f"{op.name}_triton", triton, op.name)
    return op


def define(library: torch.library.Library, op: Op, backend: str) -> None:
    """An op's schema in a library's namespace, and its fake."""
    library.define(f"{op.name}_{backend}({op.arguments.schema}) -> ({op.results})")

    def fake(*operands: Any) -> tuple[Tensor, ...]:
        return op.outputs(op.arguments.build(operands))

    torch.library.register_fake(f"{library.ns}::{op.name}_{backend}", fake, lib=library)


def define_scale(library: torch.library.Library, backend: str) -> None:
    """The two ops that scale the gradient a loss has stored (`autograd.py`): `scale_<backend>`, `scale_<backend>_`.

    In place, a factor of 1 moves nothing.
    """
    scaled, in_place = f"scale_{backend}", f"scale_{backend}_"
    library.define(f"{scaled}(Tensor gradient, Tensor upstream, Tensor unscale) -> Tensor")
    library.define(f"{in_place}(Tensor(a!) gradient, Tensor upstream, Tensor unscale) -> ()")
    torch.library.register_fake(f"{library.ns}::{scaled}", lambda gradient, *_: torch.empty_like(gradient), lib=library)
    torch.library.register_fake(f"{library.ns}::{in_place}", lambda *_: None, lib=library)


def implement_autograd(op: Op, backend: str, function: Callable[..., Any]) -> None:
    _library.impl(f"{op.name}_{backend}", function, "Autograd")


def _implement_in_triton(op: str, module: str, function: str) -> None:
    """The module is imported, and Triton with it, by the first call."""

    def implementation(*operands: Any) -> Any:
        return getattr(importlib.import_module(module), function)(*operands)

    for key in ("CUDA", "CPU"):  # ROCm's devices are CUDA's to PyTorch; on CPU, Triton's interpreter
        _library.impl(op, implementation, key)


def below_autograd(op: Callable[..., Any]) -> Callable[..., Any]:
    """`op` past its own autograd kernel."""

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
