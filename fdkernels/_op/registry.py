"""How an op is registered and differentiated: one schema, one fake and one autograd function for every backend.

`csrc/torch/` registers the implementations `<op>_native` for the same schemas. The first call imports Triton's.

A linear op maps its first argument x linearly to y, the first of its results (`run_linear`). Its backward is the op
itself on y's gradient, with the other arguments of `adjoint()`.

A loss is an op whose results are (loss, then a gradient and its unscale for each of `Op.gradients`, then figures, if it
has any). Its forward stores the gradients for an upstream of 1, and its backward only scales them. A float16 gradient
would underflow, so it is stored times a power of two; `unscale` is its inverse.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd import Function
from torch.autograd.graph import increment_version

from fdkernels._op.arguments import ArgumentList
from fdkernels._op.views import dense_samples

KERNELS = ("native", "triton")


class Op(NamedTuple):
    """An op `<name>_<backend>`."""

    name: str
    public: str
    """The function that users call, as errors name it, or what several functions have in common."""
    arguments: ArgumentList
    results: str
    """The results as written in a schema."""
    outputs: Callable[[Any], tuple[Tensor, ...]]
    """Maps a call to its results, uninitialized; the fakes return these."""
    reference: Callable[[Any], tuple[Tensor, ...]]
    """The specification: maps a call to its results."""
    gradients: tuple[tuple[str, str], ...] = ()
    """A loss's arguments that get a gradient, each with the name of the flag that asks for it: fields of a call."""
    gradients_at: tuple[tuple[int, int], ...] = ()
    """The same as positions among the operands; `register` sets them."""

    def is_in_torch(self, backend: str, first: Tensor) -> bool:
        """Whether the reference serves a call: an empty batch runs no kernel, whatever the backend."""
        return backend == "reference" or first.shape[0] == 0

    def run(self, backend: str, call: Any, inputs: Sequence[Tensor | None]) -> Any:
        """The results of a call, whose first `gradients` are replaced by `inputs`."""
        if self.is_in_torch(backend, call[0]):
            return self.reference(call._replace(**{self.gradients[n][0]: given for n, given in enumerate(inputs)}))
        operands = self.arguments.operands(call)
        for n, given in enumerate(inputs):
            operands[self.gradients_at[n][0]] = given
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
    names = op.arguments.names
    op = op._replace(gradients_at=tuple((names.index(name), names.index(flag)) for name, flag in op.gradients))
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
    """Define the ops that scale a loss's stored gradients (`_Loss`): `scale_<backend>` and `scale_<backend>_`.

    One launch scales up to three gradients. The in-place op moves no data where the factor is 1.
    """
    scaled, in_place = f"scale_{backend}", f"scale_{backend}_"
    library.define(f"{scaled}(Tensor[] gradients, Tensor upstream, Tensor[] unscales) -> Tensor[]")
    library.define(f"{in_place}(Tensor(a!)[] gradients, Tensor upstream, Tensor[] unscales) -> ()")
    torch.library.register_fake(
        f"{library.ns}::{scaled}", lambda gradients, *_: [torch.empty_like(v) for v in gradients], lib=library
    )
    torch.library.register_fake(f"{library.ns}::{in_place}", lambda *_: None, lib=library)


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


# ---- autograd


def run(op: Op, backend: str, call: Any) -> tuple[Tensor, ...]:
    """(loss, figures, if the op has any), differentiable with respect to the arguments of `op.gradients` alone."""
    inputs = [getattr(call, name) for name, _ in op.gradients]
    while inputs[-1] is None:  # an argument that the call does not have: autograd need not see it
        inputs.pop()
    # Do not use is_exporting(): torch 2.10 and 2.11 treat it as true in every torch.compile graph.
    if torch.compiler._is_exporting_flag:
        return _exported(op, backend, call, inputs)
    is_plain = not (torch.compiler.is_compiling() or torch._C._are_functorch_transforms_active())
    apply = _plain_apply if is_plain else _Loss.apply
    results: tuple[Tensor, ...] = apply(op, backend, call, *inputs)
    return results


def _exported(op: Op, backend: str, call: Any, inputs: Sequence[Tensor | None]) -> tuple[Tensor, ...]:
    """An exported graph loses an autograd function, so it must hold an op that knows its own gradient."""
    if backend not in KERNELS and any(getattr(call, flag) for _, flag in op.gradients):
        raise RuntimeError(
            f"{op.public}: torch.export would lose the gradient of the {backend} backend; export with backend= "
            f"one of {', '.join(KERNELS)}, or under torch.no_grad()"
        )
    results = op.run(backend, call, inputs)
    return (results[0], *results[1 + 2 * len(op.gradients) :])


def _keep(ctx: Any, op: Op, backend: str, results: tuple[Tensor, ...], count: int, may_write_in_place: bool) -> None:
    """Save the first `count` gradients, each with what it is multiplied by."""
    ctx.save_for_backward(*results[1 : 1 + 2 * count])
    ctx.of = op, backend, may_write_in_place
    ctx.set_materialize_grads(False)  # else each backward would fill zeros for the figures


_hooks = getattr(torch._C._autograd, "_top_saved_tensors_default_hooks", None)


class _Loss(Function):
    @staticmethod
    def forward(ctx: Any, op: Op, backend: str, call: Any, *inputs: Tensor | None) -> Any:
        # All other tensors are inside `call`, where autograd does not see them: they are constants of the loss.
        results = op.run(backend, call, inputs)
        # A saved-tensor hook may return a tensor of its own, which the backward must not write to.
        may_write_in_place = not torch.compiler.is_compiling() and _hooks is not None and _hooks(True) is None
        _keep(ctx, op, backend, results, len(inputs), may_write_in_place)
        figures = results[1 + 2 * len(op.gradients) :]
        ctx.mark_non_differentiable(*figures)
        return (results[0], *figures)

    @staticmethod
    def backward(ctx: Any, upstream: Tensor | None, *_: Tensor | None) -> tuple[Any, ...]:
        op, backend, may_write_in_place = ctx.of
        if torch.is_grad_enabled() and not torch.compiler.is_compiling():
            raise RuntimeError(f"{op.public}: double backward (create_graph=True) is not supported")
        gradients: list[Tensor | None] = [None] * len(ctx.needs_input_grad)
        wanted = [n for n, is_needed in enumerate(ctx.needs_input_grad[3:]) if is_needed]
        if upstream is None or not wanted:  # what consumed the loss sent no gradient back
            return tuple(gradients)
        saved, in_place = ctx.saved_tensors, may_write_in_place and _graph_is_freed()
        stored, unscales = [saved[2 * n] for n in wanted], [saved[2 * n + 1] for n in wanted]
        for n, gradient in zip(wanted, _scaled(backend, stored, upstream, unscales, in_place), strict=True):
            gradients[3 + n] = gradient
        return tuple(gradients)


# Function.apply without its preparations for torch.func, which take a third of its time.
_plain_apply: Any = super(Function, _Loss).apply


def _scaled(
    backend: str, gradients: list[Tensor], upstream: Tensor, unscales: list[Tensor], in_place: bool
) -> list[Tensor]:
    if backend == "reference":
        return [scaled(gradient, upstream, unscale) for gradient, unscale in zip(gradients, unscales, strict=True)]
    if in_place:
        kernels[f"scale_{backend}_"](gradients, upstream, unscales)
        increment_version(gradients)
        return gradients
    results: list[Tensor] = kernels[f"scale_{backend}"](gradients, upstream, unscales)
    return results


class _RawLoss(_Loss):
    """The autograd function of a raw op, for graphs that do not hold `_Loss`, such as exported ones."""

    @staticmethod
    def forward(ctx: Any, op: Op, backend: str, operands: Any, *inputs: Tensor | None) -> tuple[Tensor, ...]:
        operands = list(operands)
        for n, given in enumerate(inputs):
            operands[op.gradients_at[n][0]] = given
        results: tuple[Tensor, ...] = kernels[f"{op.name}_{backend}"](*operands)
        _keep(ctx, op, backend, results, len(inputs), False)  # the caller has the gradients too
        ctx.mark_non_differentiable(*results[1:])
        return results


def run_linear(op: Op, backend: str, call: Any) -> Any:
    """The results of a linear op, the first differentiable with respect to the first argument, any number of times."""
    first: Tensor = call[0]
    if op.is_in_torch(backend, first):
        return op.reference(call)
    operands = op.arguments.operands(call)
    if torch.compiler._is_exporting_flag:  # an exported graph loses an autograd function
        return getattr(torch.ops.fdkernels, f"{op.name}_{backend}").default(*operands)
    needs_graph = torch.is_grad_enabled() and first.requires_grad
    if not needs_graph and torch.autograd.forward_ad._current_level < 0:
        return kernels[f"{op.name}_{backend}"](*operands)
    return _Linear.apply(first, op, backend, operands)


class _Linear(Function):
    @staticmethod
    def forward(ctx: Any, first: Tensor, op: Op, backend: str, operands: Sequence[Any]) -> tuple[Tensor, ...]:
        results: tuple[Tensor, ...] = kernels[f"{op.name}_{backend}"](first, *operands[1:])
        ctx.mark_non_differentiable(*results[1:])
        ctx.set_materialize_grads(False)
        *values, numbers = operands
        adjoint = [None, *op.arguments.flat(op.arguments.build(values).adjoint())[1:], numbers]
        tensors = {at: value for at, value in enumerate(adjoint) if isinstance(value, Tensor)}
        ctx.save_for_backward(*tensors.values())
        ctx.op, ctx.backend, ctx.at = op, backend, tuple(tensors)
        ctx.others = [None if at in tensors else value for at, value in enumerate(adjoint)]
        return results

    @staticmethod
    def backward(ctx: Any, *upstreams: Tensor) -> tuple[Any, ...]:
        if upstreams[0] is None:  # what consumed y sent no gradient back
            return None, None, None, None
        operands = list(ctx.others)
        for at, tensor in zip(ctx.at, ctx.saved_tensors, strict=True):
            operands[at] = tensor
        operands[0] = dense_samples(upstreams[0])
        if torch.is_grad_enabled() and not torch.compiler.is_compiling():
            gradient = _Linear.apply(operands[0], ctx.op, ctx.backend, operands)[0]
        else:
            gradient = kernels[f"{ctx.op.name}_{ctx.backend}"](*operands)[0]
        return gradient, None, None, None


def differentiable_linear(op: Op) -> None:
    """Register the gradient of a linear op's raw ops."""
    for backend in KERNELS:
        _library.impl(f"{op.name}_{backend}", _raw_linear(op, backend), "Autograd")


def _raw_linear(op: Op, backend: str) -> Any:
    raw = getattr(torch.ops.fdkernels, f"{op.name}_{backend}").default

    def call(*operands: Any) -> tuple[Tensor, ...]:
        missing = len(op.arguments.names) + 1 - len(operands)  # a call may leave `numbers` out
        if torch.is_grad_enabled():
            for name, value in zip(op.arguments.names[1:], operands[1:], strict=False):
                if isinstance(value, Tensor) and value.requires_grad:
                    raise RuntimeError(f"{name}: expected a tensor without gradient, which it would not get")
        if torch.is_grad_enabled() and operands[0] is not None and operands[0].requires_grad:
            return _Linear.apply(operands[0], op, backend, (*operands, *(None,) * missing))
        with torch._C._AutoDispatchBelowAutograd():
            return raw(*operands)

    return call


def differentiable(op: Op) -> None:
    """Register the gradient of the raw ops."""
    for backend in KERNELS:
        _library.impl(f"{op.name}_{backend}", _raw(op, backend), "Autograd")


def _raw(op: Op, backend: str) -> Any:
    raw = getattr(torch.ops.fdkernels, f"{op.name}_{backend}").default

    def call(*operands: Any) -> tuple[Tensor, ...]:
        inputs = [operands[at] for at, _ in op.gradients_at]
        needs = [v is not None and v.requires_grad for v in inputs]
        if torch.is_grad_enabled() and any(needs):
            given = list(operands)
            for (_, flag), need in zip(op.gradients_at, needs, strict=True):
                given[flag] = given[flag] or need
            return _RawLoss.apply(op, backend, given, *inputs)
        # Not `kernels`: while a compiler traces, it would call this function again.
        with torch._C._AutoDispatchBelowAutograd():
            return raw(*operands)

    return call


@torch.no_grad()
def scaled(gradient: Tensor, upstream: Tensor, unscale: Tensor) -> Tensor:
    """upstream · unscale · gradient, rounded once: the specification of the ops `scale_<backend>`."""
    wide = torch.float64 if gradient.dtype == torch.float64 else torch.float32
    factor = upstream.to(wide) * unscale.to(wide) if unscale.numel() else upstream.to(wide)
    if factor.dim():
        factor = factor.view(-1, *(1,) * (gradient.dim() - 1))
    return (gradient.to(wide) * factor).to(gradient.dtype)


def _graph_is_freed() -> bool:
    """Whether the running backward is the last one to read the saved tensors."""
    if torch.compiler.is_compiling():
        return False
    keep_graph = getattr(torch._C._autograd, "_get_current_graph_task_keep_graph", None)
    return keep_graph is not None and not keep_graph()


def inside_backward() -> bool:
    """Whether autograd is running in this thread: a forward is then the second one of an activation checkpoint.

    Do not update state then. The first forward updated it; a second update would give this forward, and so the
    gradient, different weights from those of the loss.
    """
    return torch._C._current_graph_task_id() != -1


def mark_updated(state: Tensor | None, updated: bool) -> None:
    """Tell autograd that a kernel wrote to `state`, as PyTorch's own in-place ops do."""
    if state is not None and updated and not torch.compiler.is_compiling() and not inside_backward():
        increment_version(state)
