"""The public functions: signature, validation, choice of backend."""

from __future__ import annotations

import copy
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from fdkernels import backends
from fdkernels.checks import check_choice, check_like_student, check_student, check_tensor, warn
from fdkernels.divergences import Divergence, resolve
from fdkernels.fdiv import ops
from fdkernels.fdiv.arguments import STATS
from fdkernels.fdiv.validation import (
    check_count,
    check_guidance,
    check_mask,
    check_options,
    check_prediction,
    check_ratio_range,
    check_scale,
    check_weight_alone,
    check_weighting,
)
from fdkernels.fdiv.weight import WEIGHT_STATS, RatioState
from fdkernels.floats import carried
from fdkernels.layout import as_table, dense_samples, memory_order
from fdkernels.normalizer import RatioNormalizer
from fdkernels.prediction import Prediction


class FDivStats(NamedTuple):
    """What tells a healthy run from a sick one; 0-d float64 tensors (`weight`: (B,)) on the student's device, no sync.

    The weight's statistics are over this process's samples that have one, before `normalize_weight`; ratio_mean and the
    two fractions over those whose logit and t are finite. A figure that a call does not have (ratio_mean without
    logits, out_of_range_fraction without a normalizer) is NaN.
    """

    weight: Tensor
    """(B,), h as the loss used it: after `normalize_weight`, over all ranks of `group`; NaN where logit or t is not
    finite, or log h not below infinity."""
    weight_min: Tensor
    weight_mean: Tensor
    weight_max: Tensor
    effective_sample_size: Tensor
    """(Σh)² / (B·Σh²), in (0, 1]: 1 where all samples weigh the same. NaN where every weight is 0."""
    ratio_mean: Tensor
    """mean of r, clamped to ratio_range, before the normalizer; 1 for a perfect discriminator."""
    clip_fraction: Tensor
    """Fraction of samples whose ratio lay outside ratio_range."""
    out_of_range_fraction: Tensor
    """Fraction of samples whose t lay outside the normalizer's t_range."""
    grad_norm: Tensor
    """‖∂loss/∂student‖₂ at upstream 1."""
    relative_gap: Tensor
    """mean|f-τ| / mean|x-τ| over the finite samples: how much of the error the score difference sees."""
    nonfinite_samples: Tensor


def fused_fdiv_loss(
    student: Tensor,
    teacher: Tensor,
    fake: Tensor,
    logits: Tensor | None = None,
    t: Tensor | None = None,
    *,
    divergence: str | Divergence = "js",
    weight: Tensor | None = None,
    normalizer: RatioNormalizer | None = None,
    ratio_range: tuple[float, float] | None = (0.1, 20.0),
    normalize_weight: bool = True,
    scale: str | Tensor | None = "dmd",
    eps: float = 1e-6,
    mask: Tensor | None = None,
    prediction: Prediction | None = None,
    teacher_uncond: Tensor | None = None,
    guidance_scale: float | Tensor | None = None,
    fake_uncond: Tensor | None = None,
    fake_guidance_scale: float | Tensor | None = None,
    nonfinite: str = "propagate",
    reduction: str = "mean",
    count: int | Tensor | None = None,
    group: Any | None = None,
    backend: str = "auto",
    return_stats: bool = False,
) -> Any:
    """The f-distill loss of a one-step student: the teacher's and the fake score's difference, weighted by h(r).

        s_b  = 1 / (mean_i |x_bi - τ_bi| + eps)              scale="dmd"
        g_bi = h_b · s_b · (f_bi - τ_bi)
        loss = ½ · mean_{b,i} g_bi²,    ∂loss/∂x = upstream · g / N

    with x the student's sample, τ the teacher's and f the fake score's x0 prediction at the same noised student sample,
    and h_b the f-divergence weight of the discriminator's logits (`fdiv_weight`). Only `student` receives a gradient:
    teacher, fake, logits and everything else are constants of this loss, also where they require grad. The value is
    that of 0.5·mse(x, stop_gradient(x - g)) without forming x - g, whose rounding costs bf16 up to 11 % of g.

    Args:
        student: (B, *S), x; float16, bfloat16, float32 or float64; any strides.
        teacher, fake: (B, *S), τ and f, in any mix of those dtypes; raw network outputs where `prediction` is given.
        logits: (B,) or (B, H), the discriminator's on x_t, log r = logit; H heads are averaged. Not needed for rkl.
        t: (B,), the noise level in the normalizer's units, any real dtype.
        divergence: a name of `fdkernels.divergences()`, "alpha(0.5)", or a `Divergence`.
        weight: h itself, in place of logits, normalizer and group: one number a sample, (B,) or (B, 1, ...), or one
            for all, () or (1,).
        normalizer: divides r by its running mean per noise level (`RatioNormalizer`); needs logits and t.
        ratio_range: r is clamped to it; None means (e^-80, e^80).
        normalize_weight: divide h by its mean over the batch.
        scale: "dmd", None (s = 1), or a tensor: (B,) or of student's rank and broadcastable to it.
        eps: of the dmd scale, in units of x.
        mask: bool, (B,) or of student's rank and broadcastable to it; True is kept. The loss divides by the number of
            kept elements; the dmd mean stays over all n.
        prediction: how raw predictions map to x0 (`Prediction`); None: teacher and fake are x0.
        teacher_uncond, guidance_scale: with both, τ's prediction is u + g·(teacher - u). fake_* likewise. g: a number,
            or a 0-d CPU tensor; 1 may be given without an unconditional output.
        nonfinite: a sample is non-finite if its combined logit, t, weight, scale or a kept element of x (with
            scale="dmd"), τ or f is. "propagate" makes its gradient and loss NaN; "zero" drops it (N is unchanged).
        reduction: "mean", "sum" (½ Σ g²), or "none": (B,), ½ mean_i g_bi² of each sample.
        count: N of reduction="mean", in place of this call's kept elements, where the call is a part of a batch: what
            all micro-batches (or ranks, if gradients are then added) keep together. A whole number, or a tensor of one
            value on the student's device or the CPU; below 1 it counts as 1.
        group: process group over which the batch statistics of r and h are taken; None: this process alone.
        backend: "auto", "reference", "native" or "triton"; one asked for by name is used or refused.
        return_stats: also return `FDivStats`.

    Returns:
        The loss, float32 (float64 for a float64 student), or (loss, FDivStats).

    Raises:
        ValueError, TypeError: a bad argument, before anything ran; names it, what was expected and what came.
        RuntimeError: the backend is not available (says why); double backward, torch.func, forward-mode AD.

    Source: f-distill (arXiv 2502.15681), Algorithm 1; DMD (arXiv 2311.18828), equations 7 and 8, for the scale.

    Example:
        >>> loss = fdk.fused_fdiv_loss(x, teacher_x0, fake_x0, logits, t, divergence="js", normalizer=normalizer)
        >>> loss.backward()
    """
    check_student(student)
    check_like_student("teacher", teacher, student)
    check_like_student("fake", fake, student)
    if student.shape[0] == 0 and group is None and weight is None:
        raise ValueError(
            "student: expected at least one sample (an empty batch needs group= or weight=), "
            f"got {tuple(student.shape)}"
        )
    if weight is not None:
        weight = check_weight_alone(weight, student, logits=logits, normalizer=normalizer, group=group)
    weighting = check_weighting(
        student.shape[0], student.device, logits, t, divergence, normalizer, ratio_range, normalize_weight, group,
        needs_logits=weight is None,
    )  # fmt: skip
    check_options(scale, eps, nonfinite, reduction)
    teacher_guidance = check_guidance("teacher_uncond", teacher_uncond, "guidance_scale", guidance_scale, student)
    fake_guidance = check_guidance("fake_uncond", fake_uncond, "fake_guidance_scale", fake_guidance_scale, student)
    count = check_count(count, reduction, student)
    chosen = backends.choose(backend, student.device.type)
    backends.log_choice("fused_fdiv_loss", chosen, student.device.type)

    order = memory_order(student)
    x = dense_samples(student if order is None else student.permute(order))

    def image(v: Tensor) -> Tensor:
        return dense_samples(v.detach() if order is None else v.detach().permute(order))

    dmd_scale = isinstance(scale, str)
    noisy = a = c = None
    coefficient_inner = 1
    if prediction is not None and check_prediction(prediction, student):
        a, c = prediction.coefficients(student)
        (a, coefficient_inner), (c, _) = as_table(a, order, x.shape), as_table(c, order, x.shape)
        # f - τ = c·(pred_f - pred_τ) needs no x_t: only the error x - τ does.
        if prediction.noisy is not None and (dmd_scale or return_stats):
            noisy = image(prediction.noisy)
    scale_table, scale_inner = (None, 1)
    if isinstance(scale, Tensor):
        scale_table, scale_inner = as_table(check_scale(scale, student), order, x.shape)
    mask_table, mask_inner = (None, 1)
    if mask is not None:
        mask_table, mask_inner = as_table(check_mask(mask, student), order, x.shape)

    weight_stats = None
    if logits is not None and weighting.in_torch:
        weight, weight_stats = weighting.compute(chosen, logits, t)
        logits = t = None
    state = weighting.state if logits is not None else RatioState()
    (t_min, t_max, decay, alpha, low, high, teacher_scale, fake_scale, epsilon), numbers = carried(
        (*weighting.floats(state), teacher_guidance, fake_guidance, float(eps))
    )
    call = ops.FdivArguments(
        x, image(teacher), image(fake), None if teacher_uncond is None else image(teacher_uncond),
        None if fake_uncond is None else image(fake_uncond), teacher_scale, fake_scale, noisy, a, c, coefficient_inner,
        logits if logits is None else logits.detach().contiguous(), t, weight if weight is None else weight.detach(),
        state.mean, state.edges, t_min, t_max, decay, state.update, weighting.divergence.kernel or "rkl", alpha, low,
        high, weighting.normalize_weight, dmd_scale, epsilon, scale_table, scale_inner, mask_table, mask_inner,
        nonfinite == "zero", reduction, student.requires_grad and torch.is_grad_enabled(), return_stats, count, numbers,
    )  # fmt: skip
    loss, stats = ops.fdiv(chosen, call)
    if not return_stats:
        return loss
    if weight_stats is not None:
        stats = torch.cat((weight_stats, stats[WEIGHT_STATS:]))
    figures, weight = stats.split((STATS, student.shape[0]))
    return loss, FDivStats(weight, *figures.unbind(0))


def fdiv_weight(
    logits: Tensor,
    t: Tensor | None = None,
    *,
    divergence: str | Divergence = "js",
    normalizer: RatioNormalizer | None = None,
    ratio_range: tuple[float, float] | None = (0.1, 20.0),
    normalize_weight: bool = True,
    group: Any | None = None,
    backend: str = "auto",
) -> Tensor:
    """The f-divergence weight h(r) = r² f''(r) of a density ratio r = p/q, from the discriminator's logits.

        L_b = clamp(mean_k logits[b, k], log lo, log hi)
        L_b = L_b - log m_{i_b}                  with a normalizer, whose running means are updated first
        h_b = r_b² f''(r_b) at r_b = e^L_b
        h_b = h_b / mean_b h_b                   normalize_weight

    In float64 and in the log domain throughout. The arguments are those of `fused_fdiv_loss`, which computes the same
    weight in its own pass. Call this one for gradient accumulation: once per optimizer step, over all its logits, then
    pass slices as `weight=`.

    Returns:
        (B,), float32 (float64 for float64 logits), without gradient; NaN for a sample whose combined logit or t is not
        finite, which takes part in no mean. So for one whose log h is not below infinity, as in a bin whose running
        mean was loaded as 0.

    Raises:
        ValueError, TypeError, RuntimeError: as `fused_fdiv_loss`.

    Source: f-distill (arXiv 2502.15681), Table 1.

    Example:
        >>> fdk.fdiv_weight(torch.zeros(8), divergence="js", normalize_weight=False)  # r = 1: h = 1/2
        tensor([0.5000, 0.5000, 0.5000, 0.5000, 0.5000, 0.5000, 0.5000, 0.5000])
    """
    check_tensor("logits", logits)
    if logits.dim() == 0 or (logits.shape[0] == 0 and group is None):
        raise ValueError(f"logits: expected shape (B,) or (B, heads) with B > 0, got {tuple(logits.shape)}")
    weighting = check_weighting(
        logits.shape[0], logits.device, logits, t, divergence, normalizer, ratio_range, normalize_weight, group
    )
    chosen = backends.choose(backend, logits.device.type)
    backends.log_choice("fdiv_weight", chosen, logits.device.type)
    h, _ = weighting.compute(chosen, logits.detach(), t)
    return h if logits.dtype == torch.float64 else h.float()


class FDivLoss(nn.Module):
    """`fused_fdiv_loss` with its settings; stateless but for the normalizer.

    Args:
        divergence, ratio_range, normalize_weight, scale, eps, nonfinite, reduction, group, backend: as there.
        bins, t_range, decay: of the `RatioNormalizer`; bins=None does without one.
        normalizer: one of your own (`RatioNormalizer.from_samples`, say), in place of bins, t_range and decay.

    Example:
        >>> loss_fn = fdk.FDivLoss("kl", bins=10, t_range=(0.0, 1.0))
        >>> loss = loss_fn(x, teacher_x0, fake_x0, logits, t)
        >>> loss, stats = loss_fn(x, teacher_eps, fake_eps, logits, t, prediction=prediction, return_stats=True)
    """

    def __init__(
        self,
        divergence: str | Divergence = "js",
        bins: int | None = 10,
        t_range: tuple[float, float] = (0.0, 1.0),
        decay: float = 0.9,
        *,
        normalizer: RatioNormalizer | None = None,
        ratio_range: tuple[float, float] | None = (0.1, 20.0),
        normalize_weight: bool = True,
        scale: str | None = "dmd",
        eps: float = 1e-6,
        nonfinite: str = "propagate",
        reduction: str = "mean",
        group: Any | None = None,
        backend: str = "auto",
    ) -> None:
        super().__init__()
        self.divergence = resolve(divergence)
        check_choice("backend", backend, ("auto", *backends.BACKENDS))
        if isinstance(scale, Tensor):
            raise TypeError("scale: expected 'dmd' or None here, got a tensor; pass it with each call")
        if normalizer is None and bins is not None:
            normalizer = RatioNormalizer(bins, t_range, decay)
        self.normalizer = normalizer
        check_ratio_range(ratio_range)
        check_options(scale, eps, nonfinite, reduction)
        self.options = {
            "ratio_range": ratio_range, "normalize_weight": normalize_weight, "scale": scale, "eps": eps,
            "nonfinite": nonfinite, "reduction": reduction, "group": group, "backend": backend,
        }  # fmt: skip

    def forward(
        self,
        student: Tensor,
        teacher: Tensor,
        fake: Tensor,
        logits: Tensor | None = None,
        t: Tensor | None = None,
        **per_call: Any,
    ) -> Any:
        """The loss; `per_call` takes any keyword of `fused_fdiv_loss` (mask, prediction, return_stats, ...)."""
        options = {"divergence": self.divergence, "normalizer": self.normalizer, **self.options, **per_call}
        # Without logits there is no ratio, hence nothing to normalize or to reduce.
        if logits is None and (options.get("weight") is not None or resolve(options["divergence"]).kernel == "rkl"):
            options |= {"normalizer": None, "group": None}
        return fused_fdiv_loss(student, teacher, fake, logits, t, **options)

    def extra_repr(self) -> str:
        return f"divergence={self.divergence.name!r}, " + ", ".join(f"{k}={v!r}" for k, v in self.options.items())

    def __getstate__(self) -> dict[str, Any]:
        """For pickle and torch.save, which can't hold a process group: it is left out."""
        state = {**self._state(), "options": dict(self.options)}
        if self.options["group"] is not None:
            warn("FDivLoss: a pickle can't hold the process group: group is None once loaded")
            state["options"]["group"] = None
        return state

    def __copy__(self) -> FDivLoss:
        copied = type(self).__new__(type(self))
        copied.__dict__.update(self._state())
        return copied

    def _state(self) -> dict[str, Any]:
        """Without what `compile()` made: it belongs to this process, and computes with this module."""
        return {name: value for name, value in self.__dict__.items() if name != "_compiled_call_impl"}

    def __deepcopy__(self, memo: dict[int, Any]) -> FDivLoss:
        """A copy that shares the process group, so that `AveragedModel` can make one."""
        group = self.options["group"]
        if group is not None:
            memo[id(group)] = group
        copied = memo[id(self)] = type(self).__new__(type(self))
        copied.__dict__.update(copy.deepcopy(self._state(), memo))
        return copied
