"""The raw ops of the flagship: schemas, fakes, and the autograd function around them.

Python defines every schema once; `csrc/` implements `*_native`. An op takes the batch first, each sample dense in the
student's memory order (`fdkernels/layout.py`), tables as (B or 1, R) with their run lengths, and computes the loss and
its gradient in one pass, so that the backward only scales.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function
from torch.autograd.graph import increment_version

from fdkernels.fdiv import reference
from fdkernels.fdiv.arguments import FdivArguments
from fdkernels.fdiv.weight import WEIGHT_STATS, inside_backward

_library = torch.library.Library("fdkernels", "DEF")

_FDIV = """(
    Tensor student, Tensor teacher, Tensor fake, Tensor? teacher_uncond, Tensor? fake_uncond,
    float guidance_scale, float fake_guidance_scale,
    Tensor? noisy, Tensor? a, Tensor? c, SymInt coefficient_inner,
    Tensor? logits, Tensor? t, Tensor? weight,
    Tensor(a!)? ratio_mean, Tensor? edges, float t_min, float t_max, float decay, bool update,
    str divergence, float alpha, float log_ratio_min, float log_ratio_max, bool normalize_weight,
    bool dmd_scale, float eps, Tensor? scale, SymInt scale_inner, Tensor? mask, SymInt mask_inner,
    bool zero_nonfinite, str reduction, bool with_grad, bool with_stats, Tensor? divisor=None, Tensor? numbers=None
) -> (Tensor loss, Tensor gradient, Tensor unscale, Tensor stats)"""

_FDIV_WEIGHT = """(
    Tensor logits, Tensor? t, Tensor(a!)? ratio_mean, Tensor? edges, float t_min, float t_max, float decay, bool update,
    str divergence, float alpha, float log_ratio_min, float log_ratio_max, bool normalize_weight, Tensor? numbers=None
) -> (Tensor weight, Tensor stats)"""

# The limits of a GPU, which native plans its launches by: `csrc/fdkernels/plan.h`, DeviceLimits in its order.
_CUDA_LIMITS = "cuda_limits(int device) -> Tensor"


def _fdiv_fake(*args: Any) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    return FdivArguments(*args).outputs()


def _fdiv_weight_fake(logits: Tensor, *_: Any) -> tuple[Tensor, Tensor]:
    return (
        logits.new_empty((logits.shape[0],), dtype=torch.float64),
        logits.new_empty((WEIGHT_STATS,), dtype=torch.float64),
    )


def _define(library: torch.library.Library, backend: str) -> None:
    """The schemas of a backend's ops in a library's namespace, and their fakes."""
    for name, schema, fake in (
        (f"fdiv_{backend}", _FDIV, _fdiv_fake),
        (f"fdiv_weight_{backend}", _FDIV_WEIGHT, _fdiv_weight_fake),
        (
            f"fdiv_backward_{backend}",
            "(Tensor gradient, Tensor upstream, Tensor unscale) -> Tensor",
            lambda gradient, upstream, unscale: torch.empty_like(gradient),
        ),
        # In place, for a graph that is not kept: where the factor is 1 it moves nothing.
        (
            f"fdiv_backward_{backend}_",
            "(Tensor(a!) gradient, Tensor upstream, Tensor unscale) -> ()",
            lambda gradient, upstream, unscale: None,
        ),
    ):
        library.define(name + schema)
        torch.library.register_fake(f"{library.ns}::{name}", fake, lib=library)


_BACKENDS = ("native", "triton")
for _backend in _BACKENDS:
    _define(_library, _backend)
_library.define(_CUDA_LIMITS)


def _implement_in_triton(op: str, function: str) -> None:
    """Register a function of `triton_launch`, which is imported, and Triton with it, by the first call."""

    def implementation(*arguments: Any) -> Any:
        from fdkernels.fdiv import triton_launch

        return getattr(triton_launch, function)(*arguments)

    for key in ("CUDA", "CPU"):  # ROCm's devices are CUDA's to PyTorch; on CPU, Triton's interpreter
        _library.impl(op, implementation, key)


_implement_in_triton("fdiv_triton", "fdiv")
_implement_in_triton("fdiv_weight_triton", "fdiv_weight")
_implement_in_triton("fdiv_backward_triton", "fdiv_backward")
_implement_in_triton("fdiv_backward_triton_", "fdiv_backward_")


def _below_autograd(op: Callable[..., Any]) -> Callable[..., Any]:
    """`op` past its own autograd kernel: around it is an autograd function already."""

    def call(*arguments: Any) -> Any:
        if torch.compiler.is_compiling():
            return op(*arguments)
        with torch._C._AutoDispatchBelowAutograd():
            return op(*arguments)

    return call


_FORWARD: dict[str, Callable[..., tuple[Tensor, Tensor, Tensor, Tensor]]] = {
    "reference": lambda *arguments: reference.fdiv(FdivArguments(*arguments)),
    "native": _below_autograd(torch.ops.fdkernels.fdiv_native.default),
    "triton": _below_autograd(torch.ops.fdkernels.fdiv_triton.default),
}
_BACKWARD: dict[str, Callable[[Tensor, Tensor, Tensor], Tensor]] = {
    "reference": reference.fdiv_backward,
    "native": torch.ops.fdkernels.fdiv_backward_native.default,
    "triton": torch.ops.fdkernels.fdiv_backward_triton.default,
}
_BACKWARD_IN_PLACE: dict[str, Callable[[Tensor, Tensor, Tensor], None]] = {
    "native": torch.ops.fdkernels.fdiv_backward_native_.default,
    "triton": torch.ops.fdkernels.fdiv_backward_triton_.default,
}
WEIGHT: dict[str, Callable[..., tuple[Tensor, Tensor]]] = {
    "native": torch.ops.fdkernels.fdiv_weight_native.default,
    "triton": torch.ops.fdkernels.fdiv_weight_triton.default,
}


def _graph_is_freed() -> bool:
    """Inside a backward: whether nothing will read the saved tensors again."""
    if torch.compiler.is_compiling():
        return False
    keep_graph = getattr(torch._C._autograd, "_get_current_graph_task_keep_graph", None)
    return keep_graph is not None and not keep_graph()


def _forward(ctx: Any, student: Tensor, backend: str, call: FdivArguments) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    # Every other tensor travels inside `call`, unseen by autograd: a constant of the loss.
    outputs = _FORWARD[backend](student, *call[1:])
    ctx.save_for_backward(*outputs[1:3])
    ctx.backend = backend
    ctx.set_materialize_grads(False)  # or each backward would fill zeros for the figures
    return outputs


class _FusedFdivLoss(Function):
    @staticmethod
    def forward(ctx: Any, student: Tensor, backend: str, call: FdivArguments) -> tuple[Tensor, Tensor]:
        loss, _, _, stats = _forward(ctx, student, backend, call)
        # A saved-tensor hook may hand its own tensor back, which is not ours to write to.
        hooks = getattr(torch._C._autograd, "_top_saved_tensors_default_hooks", None)
        ctx.may_write_in_place = hooks is not None and not torch.compiler.is_compiling() and hooks(True) is None
        ctx.mark_non_differentiable(stats)
        return loss, stats

    @staticmethod
    def backward(ctx: Any, *upstreams: Tensor) -> tuple[Any, ...]:
        if torch.is_grad_enabled() and not torch.compiler.is_compiling():
            raise RuntimeError("fused_fdiv_loss: double backward (create_graph=True) is not supported")
        upstream = upstreams[0]
        if upstream is None:  # the loss fed something that sent no gradient back
            return None, None, None
        gradient, unscale = ctx.saved_tensors
        in_place = _BACKWARD_IN_PLACE.get(ctx.backend)
        if in_place is not None and ctx.may_write_in_place and _graph_is_freed():
            in_place(gradient, upstream, unscale)
            increment_version(gradient)
        else:
            gradient = _BACKWARD[ctx.backend](gradient, upstream, unscale)
        return gradient, None, None


class _RawFdiv(_FusedFdivLoss):
    """The same around the raw op, of which a graph without the autograd function is made, such as an exported one."""

    @staticmethod
    def forward(ctx: Any, student: Tensor, backend: str, call: FdivArguments) -> tuple[Tensor, ...]:  # type: ignore[override]
        outputs = _forward(ctx, student, backend, call)
        ctx.may_write_in_place = False  # the caller has the gradient too
        ctx.mark_non_differentiable(*outputs[1:])
        return outputs


def _implement_autograd(backend: str) -> None:
    op = getattr(torch.ops.fdkernels, f"fdiv_{backend}").default

    def differentiable(*arguments: Any) -> tuple[Tensor, ...]:
        if torch.is_grad_enabled() and arguments[0].requires_grad:
            call = FdivArguments(*arguments)._replace(with_grad=True)
            return _RawFdiv.apply(call.student, backend, call)
        with torch._C._AutoDispatchBelowAutograd():
            return op(*arguments)

    _library.impl(f"fdiv_{backend}", differentiable, "Autograd")


for _backend in _BACKENDS:
    _implement_autograd(_backend)


def fdiv(backend: str, call: FdivArguments) -> tuple[Tensor, Tensor]:
    """(loss, stats), differentiable with respect to the student alone."""
    # Not is_exporting(), which torch 2.10 and 2.11 take as true in every graph of torch.compile.
    if torch.compiler._is_exporting_flag:
        return _exported(backend, call)
    loss, stats = _FusedFdivLoss.apply(call.student, backend, call)
    if backend != "reference":
        mark_updated(call.ratio_mean, call.update)
    return loss, stats


def _exported(backend: str, call: FdivArguments) -> tuple[Tensor, Tensor]:
    """An exported graph keeps no autograd function: it has to hold an op that knows its own gradient."""
    if backend not in _BACKENDS and call.with_grad:
        raise RuntimeError(
            f"fused_fdiv_loss: torch.export would lose the gradient of the {backend} backend; export with backend= "
            f"one of {', '.join(_BACKENDS)}, or under torch.no_grad()"
        )
    loss, _, _, stats = _FORWARD[backend](*call)
    return loss, stats


def mark_updated(state: Tensor | None, updated: bool) -> None:
    """Tell autograd of a kernel's raw write, as an in-place op of PyTorch's own would."""
    if state is not None and updated and not torch.compiler.is_compiling() and not inside_backward():
        increment_version(state)
