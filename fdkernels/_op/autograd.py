"""The autograd function around every loss: the forward also stores the gradient, and the backward only scales it.

A loss is an op whose results are (loss, gradient of the first argument, unscale, figures). The stored gradient is for
an upstream of 1. A float16 gradient would underflow, so it is stored times a power of two; `unscale` is its inverse.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function
from torch.autograd.graph import increment_version

from fdkernels._op import library
from fdkernels._op.library import KERNELS, Op


def run(op: Op, backend: str, call: Any) -> tuple[Tensor, Tensor]:
    """(loss, figures), differentiable with respect to the first argument alone."""
    # Do not use is_exporting(): torch 2.10 and 2.11 treat it as true in every torch.compile graph.
    if torch.compiler._is_exporting_flag:
        return _exported(op, backend, call)
    return _Loss.apply(call[0], op, backend, call)


def _exported(op: Op, backend: str, call: Any) -> tuple[Tensor, Tensor]:
    """An exported graph loses an autograd function, so it must hold an op that knows its own gradient."""
    if backend not in KERNELS and call.with_grad:
        raise RuntimeError(
            f"{op.public}: torch.export would lose the gradient of the {backend} backend; export with backend= "
            f"one of {', '.join(KERNELS)}, or under torch.no_grad()"
        )
    loss, _, _, figures = op.run(backend, call, call[0])
    return loss, figures


def _keep(ctx: Any, op: Op, backend: str, results: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    ctx.save_for_backward(*results[1:3])
    ctx.op, ctx.backend = op, backend
    ctx.set_materialize_grads(False)  # else each backward would fill zeros for the figures
    return results


class _Loss(Function):
    @staticmethod
    def forward(ctx: Any, first: Tensor, op: Op, backend: str, call: Any) -> tuple[Tensor, ...]:
        # All other tensors are inside `call`, where autograd does not see them: they are constants of the loss.
        loss, _, _, figures = _keep(ctx, op, backend, op.run(backend, call, first))
        # A saved-tensor hook may return a tensor of its own, which the backward must not write to.
        hooks = getattr(torch._C._autograd, "_top_saved_tensors_default_hooks", None)
        ctx.may_write_in_place = hooks is not None and not torch.compiler.is_compiling() and hooks(True) is None
        ctx.mark_non_differentiable(figures)
        return loss, figures

    @staticmethod
    def backward(ctx: Any, *upstreams: Tensor) -> tuple[Any, ...]:
        if torch.is_grad_enabled() and not torch.compiler.is_compiling():
            raise RuntimeError(f"{ctx.op.public}: double backward (create_graph=True) is not supported")
        upstream = upstreams[0]
        if upstream is None:  # what consumed the loss sent no gradient back
            return None, None, None, None
        gradient, unscale = ctx.saved_tensors
        if ctx.backend == "reference":
            gradient = scaled(gradient, upstream, unscale)
        elif ctx.may_write_in_place and _graph_is_freed():
            library.kernels[f"scale_{ctx.backend}_"](gradient, upstream, unscale)
            increment_version(gradient)
        else:
            gradient = library.kernels[f"scale_{ctx.backend}"](gradient, upstream, unscale)
        return gradient, None, None, None


class _RawLoss(_Loss):
    """The autograd function of a raw op, for graphs that do not hold `_Loss`, such as exported ones."""

    @staticmethod
    def forward(ctx: Any, first: Tensor, op: Op, backend: str, operands: Any) -> tuple[Tensor, ...]:
        results = _keep(ctx, op, backend, library.kernels[f"{op.name}_{backend}"](first, *operands[1:]))
        ctx.may_write_in_place = False  # the caller has the gradient too
        ctx.mark_non_differentiable(*results[1:])
        return results


def differentiable(op: Op) -> Op:
    """Register the gradient of the raw ops."""
    for backend in KERNELS:
        library.implement_autograd(op, backend, _raw(op, backend))
    return op


def _raw(op: Op, backend: str) -> Any:
    raw = getattr(torch.ops.fdkernels, f"{op.name}_{backend}").default

    def call(*operands: Any) -> tuple[Tensor, ...]:
        if torch.is_grad_enabled() and operands[0] is not None and operands[0].requires_grad:
            at = op.arguments.names.index("with_grad")
            given = (*operands[:at], True, *operands[at + 1 :])
            return _RawLoss.apply(given[0], op, backend, given)
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
