"""The public functions: signature, validation, choice of backend."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from fdkernels import backends
from fdkernels._op import registry
from fdkernels._op.arguments import Table
from fdkernels._op.checks import check_like, check_samples, check_tensor
from fdkernels._op.views import as_table, dense_samples, memory_order
from fdkernels.adversarial.api import generator_loss
from fdkernels.divergences import Divergence
from fdkernels.fdiv import reference
from fdkernels.fdiv.arguments import (
    FDIV,
    FDIV_WEIGHT,
    STATS,
    WEIGHT_STATS,
    FdivArguments,
    WeightArguments,
    fdiv_outputs,
    fdiv_weight_outputs,
)
from fdkernels.fdiv.scale import DmdScale
from fdkernels.fdiv.sets import over_sets
from fdkernels.fdiv.validation import (
    Weighting,
    check_count,
    check_generator_term,
    check_guidance,
    check_mask,
    check_multiplier,
    check_options,
    check_prediction,
    check_weight_alone,
    check_weighting,
)
from fdkernels.fdiv.weight import fdiv_weight as weight_in_torch
from fdkernels.fdiv.weight import given_weight, given_weight_stats
from fdkernels.normalizer import RatioNormalizer
from fdkernels.prediction import Prediction

_TRITON = "fdkernels.fdiv.triton_launch"
_LOSS = registry.register(
    registry.Op(
        "fdiv", "fused_fdiv_loss", FDIV,
        "Tensor loss, Tensor gradient, Tensor unscale, Tensor gan_gradient, Tensor gan_unscale, Tensor stats",
        fdiv_outputs, reference.fdiv, (("student", "with_grad"), ("gan_logits", "gan_grad")),
    ),
    _TRITON,
)  # fmt: skip
_WEIGHT = registry.register(
    registry.Op(
        "fdiv_weight", "fdiv_weight", FDIV_WEIGHT, "Tensor weight, Tensor stats", fdiv_weight_outputs, weight_in_torch
    ),
    _TRITON,
)
registry.differentiable(_LOSS)


class FDivStats(NamedTuple):
    """Figures that show a run's health: 0-d float64 tensors (`weight`: (B,)) on the student's device, without a sync.

    The statistics of the weight cover this process's samples that have a weight, before `normalize_weight`. ratio_mean
    and the two fractions cover the samples whose logit and t are finite. A figure that a call does not have (ratio_mean
    without logits, out_of_range_fraction without a normalizer) is NaN.

    Example:
        >>> h, stats = fdk.fdiv_weight(torch.linspace(-1, 1, 16), divergence="kl", return_stats=True)
        >>> print(f"{stats.weight_max.item():.3f} {stats.effective_sample_size.item():.3f}")  # e, and (Σh)² / (B·Σh²)
        2.718 0.740
    """

    weight: Tensor
    """(B,), h as the loss uses it, after `normalize_weight` over all ranks of `group`; NaN where the logit or t is not
    finite, or log h overflows."""
    weight_min: Tensor
    """The least h of the batch."""
    weight_mean: Tensor
    """The mean of h over the batch."""
    weight_max: Tensor
    """The largest h of the batch."""
    effective_sample_size: Tensor
    """(Σh)² / (B·Σh²), in (0, 1]: 1 if all samples weigh the same. NaN if every weight is 0."""
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
    """The number of non-finite samples, or of non-finite sets if `DmdScale(over=...)` is not "sample"."""
    generator_loss: Tensor
    """The generator's term before `gan_weight`, the mean over the batch with reduction="none"; NaN without one."""


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
    scale: str | DmdScale | None = "dmd",
    multiplier: Tensor | None = None,
    mask: Tensor | None = None,
    prediction: Prediction | None = None,
    teacher_uncond: Tensor | None = None,
    guidance_scale: float | Tensor | None = None,
    fake_uncond: Tensor | None = None,
    fake_guidance_scale: float | Tensor | None = None,
    nonfinite: str = "propagate",
    reduction: str = "mean",
    count: int | Tensor | None = None,
    gan_weight: float | None = None,
    group: Any | None = None,
    backend: str = "auto",
    return_stats: bool = False,
) -> Any:
    """The f-distill loss of a one-step student: the difference of fake score and teacher, weighted by h(r).

        s_b  = 1 / (max(mean_i |x_bi - τ_bi|, floor) + eps)  scale="dmd" = DmdScale(eps=1e-6, floor=0); None: 1
        g_bi = h_b · s_b · m_bi · (f_bi - τ_bi)              m: multiplier, else 1
        loss = ½ · mean_{b,i} g_bi²,    ∂loss/∂x = upstream · g / N

    with x the student's sample, τ the teacher's and f the fake score's x0 prediction at the same noised student sample,
    and h_b the f-divergence weight of the discriminator's logits (`fdiv_weight`). With gan_weight=λ, the generator's
    term λ · mean_{b,k} softplus(-ℓ_bk) is added in the same pass. `student` receives a gradient, and `logits` that of
    the generator's term: teacher, fake, h and everything else are constants of this loss, even if they require grad.
    Without that term the value is that of 0.5·mse(x, stop_gradient(x - g)), but x - g is never formed. In bf16 its
    rounding costs more the smaller g is beside x: 0.28, 1.4, 4.4 and 13 % of g (relative L2) where mean|g| is 1, 0.1,
    0.03 and 0.01 of x's standard deviation. With the dmd scale mean|g| is about `FDivStats.relative_gap`. Here it is
    0.17 % at each of them.

    Args:
        student: (B, *S), x; float16, bfloat16, float32 or float64; any strides.
        teacher, fake: (B, *S), τ and f, in any mix of those dtypes; raw network outputs where `prediction` is given.
        logits: (B,) or (B, H), the discriminator's logits on x_t, log r = logit; H heads are averaged. Not needed for
            rkl.
        t: (B,), the noise level in the normalizer's units, any real dtype.
        divergence: a name of `fdkernels.divergences()`, "alpha(0.5)", or a `Divergence`.
        weight: h itself, in place of logits, normalizer and group: one number per sample, (B,) or (B, 1, ...), or one
            for all, () or (1,).
        normalizer: divides r by its running mean per noise level (`RatioNormalizer`); needs logits and t.
        ratio_range: r is clamped to it; None means (e^-80, e^80).
        normalize_weight: divide h by its mean over the batch.
        scale: "dmd", a `DmdScale`, or None (s = 1).
        multiplier: m, floating: student's leading dimensions, as (B,) or (B, F), or student's rank and broadcastable to
            it.
        mask: bool, with the shapes of multiplier; True is kept. The loss divides by the number of kept elements; the
            dmd mean is over all n unless `DmdScale(kept_only=True)`.
        prediction: how raw predictions map to x0 (`Prediction`); None: teacher and fake are x0.
        teacher_uncond, guidance_scale: with both, τ's prediction is u + g·(teacher - u). fake_* likewise. g: a number,
            or a 0-d CPU tensor; 1 may be given without an unconditional output.
        nonfinite: a sample is non-finite if its combined logit, t, weight or scale is, or a kept element of τ, f, the
            multiplier or the prediction's c. With a dmd scale, kept elements of x, x_t and the prediction's a count
            too. "propagate" makes its gradient and loss NaN; "zero" drops it (N is unchanged).
        reduction: "mean", "sum" (½ Σ g²), or "none": (B,), ½ mean_i g_bi² of each sample.
        count: N of reduction="mean", if this call is a part of a batch: the number of elements that all micro-batches
            (or ranks, if their gradients are added) keep together. A whole number, or a tensor of one value on the
            student's device or the CPU; below 1 it counts as 1. None: this call's kept elements.
        gan_weight: λ, at least 0; needs logits, excludes count. reduction="sum" adds λ Σ softplus(-ℓ), and "none" each
            sample's mean over heads. With nonfinite="zero", a sample whose combined logit is not finite adds 0. With
            group, the mean is this process's own, like the loss. With `DmdScale(over=...)` other than "sample" the term
            is a launch of its own.
        group: process group over which the batch statistics of r and h are taken; None: this process alone.
        backend: "auto", "reference", "native" or "triton"; a backend asked for by name is used or refused.
        return_stats: also return `FDivStats`.

    Returns:
        The loss, float32 (float64 for a float64 student), or (loss, FDivStats).

    Raises:
        ValueError, TypeError: a bad argument, before anything runs; the message names it, what was expected and what
            was given.
        RuntimeError: the backend is not available (says why); double backward, torch.func, forward-mode AD.

    Source: f-distill (arXiv 2502.15681), Algorithm 1; DMD (arXiv 2311.18828), equations 7 and 8, for the scale.

    Example:
        >>> x, logits, t = torch.zeros(8, 3, 16, 16, requires_grad=True), torch.zeros(8, 2), torch.rand(8)
        >>> tau, f = torch.full_like(x, 0.5), torch.full_like(x, 0.75)  # s = 1 / 0.5, g = 0.25 · s = 0.5
        >>> normalizer = fdk.RatioNormalizer(bins=10, t_range=(0.0, 1.0))
        >>> loss = fdk.fused_fdiv_loss(x, tau, f, logits, t, divergence="js", normalizer=normalizer)
        >>> loss.backward()
        >>> print(f"{loss.item():.4f} {x.grad.sum().item():.4f}")  # ½ g², and N elements of g / N
        0.1250 0.5000
    """
    check_samples("student", student)
    check_like("teacher", teacher, student)
    check_like("fake", fake, student)
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
    dmd = check_options(scale, nonfinite, reduction)
    teacher_guidance = check_guidance("teacher_uncond", teacher_uncond, "guidance_scale", guidance_scale, student)
    fake_guidance = check_guidance("fake_uncond", fake_uncond, "fake_guidance_scale", fake_guidance_scale, student)
    if prediction is not None:
        check_prediction(prediction, student)
    if mask is not None:
        check_mask(mask)
    if multiplier is not None:
        multiplier = check_multiplier(multiplier)
    gan = None if gan_weight is None else check_generator_term(gan_weight, logits, count)
    given_count, count = count, check_count(count, reduction, student)
    chosen = backends.choose(backend, student.device.type)
    backends.log_choice("fused_fdiv_loss", chosen, student.device.type)
    if dmd is not None and dmd.over != "sample" and student.shape[0]:
        tensors = {
            "student": student, "teacher": teacher, "fake": fake, "teacher_uncond": teacher_uncond,
            "fake_uncond": fake_uncond,
        }  # fmt: skip
        call_with_weight = over_sets(
            fused_fdiv_loss, dmd, tensors, {"multiplier": multiplier, "mask": mask}, prediction, reduction,
            guidance_scale=guidance_scale, fake_guidance_scale=fake_guidance_scale, nonfinite=nonfinite,
            count=given_count, backend=backend, divergence="rkl", return_stats=return_stats,
        )  # fmt: skip
        h, figures = _weigh_or_take(chosen, weighting, weight, student)  # after all checks: it may update state
        result = call_with_weight(h)
        loss, stats = result if return_stats else (result, None)
        term = None
        if gan is not None and logits is not None:
            term = _generator_loss(logits, nonfinite, reduction, chosen)
            loss = (loss + gan * term).to(loss.dtype)
        if stats is None:
            return loss
        h = given_weight(None, None, student) if h is None else h
        figures = given_weight_stats(h) if figures is None else figures
        of_term = stats.generator_loss if term is None else term.detach().double().mean()
        return loss, FDivStats._make((h, *figures.unbind(0), *stats[1 + WEIGHT_STATS : -1], of_term))
    order = memory_order(student)
    alpha, sigma = (1.0, 1.0) if prediction is None else prediction.levels()
    tables = [
        as_table(name if prediction is None else prediction.argument(name), value, student, order)
        if isinstance(value, Tensor)
        else Table()
        for name, value in (("alpha", alpha), ("sigma", sigma), ("multiplier", multiplier), ("mask", mask))
    ]
    arguments = weighting.arguments
    ahead: Tensor | None = None
    if logits is not None and weighting.in_torch:
        weight, ahead = _weigh(chosen, weighting)
        arguments = WeightArguments()

    def samples(v: Tensor | None) -> Any:
        return None if v is None else dense_samples(v.detach() if order is None else v.detach().permute(order))

    raw = None if prediction is None or prediction.kind == "sample" else prediction
    # f - τ = c·(pred_f - pred_τ) needs no x_t: only the error x - τ does.
    noisy = raw.noisy if raw is not None and (dmd is not None or return_stats) else None
    call = FdivArguments(
        student=dense_samples(student if order is None else student.permute(order)),
        teacher=samples(teacher),
        fake=samples(fake),
        teacher_uncond=samples(teacher_uncond),
        fake_uncond=samples(fake_uncond),
        guidance_scale=teacher_guidance,
        fake_guidance_scale=fake_guidance,
        noisy=samples(noisy),
        prediction="sample" if raw is None else raw.kind,
        alpha=tables[0],
        sigma=tables[1],
        fixed_alpha=1.0 if isinstance(alpha, Tensor) else alpha,
        fixed_sigma=1.0 if isinstance(sigma, Tensor) else sigma,
        sigma_data=1.0 if raw is None else float(raw.sigma_data),
        weight=None if weight is None else weight.detach(),
        dmd_scale=dmd is not None,
        eps=0.0 if dmd is None else float(dmd.eps),
        floor=0.0 if dmd is None else float(dmd.floor),
        kept_only=dmd is not None and dmd.kept_only,
        multiplier=tables[2],
        mask=tables[3],
        zero_nonfinite=nonfinite == "zero",
        reduction=reduction,
        divisor=count,
        gan_logits=None if gan is None else logits,
        gan_weight=0.0 if gan is None else gan,
        gan_grad=gan is not None and logits is not None and logits.requires_grad and torch.is_grad_enabled(),
        with_grad=student.requires_grad and torch.is_grad_enabled(),
        with_stats=return_stats,
        weighting=arguments,
    )
    loss, stats = registry.run(_LOSS, chosen, call)
    if chosen != "reference":
        registry.mark_updated(arguments.ratio_mean, arguments.update)
    if not return_stats:
        return loss
    if ahead is not None:
        stats = torch.cat((ahead, stats[WEIGHT_STATS:]))
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
    return_stats: bool = False,
) -> Any:
    """The f-divergence weight h(r) = r² f''(r) of a density ratio r = p/q, from the discriminator's logits.

        L_b = clamp(mean_k logits[b, k], log lo, log hi)
        L_b = L_b - log m_{i_b}                  with a normalizer, whose running means are updated first
        h_b = r_b² f''(r_b) at r_b = e^L_b
        h_b = h_b / mean_b h_b                   normalize_weight

    Computed in float64 and in the log domain. The arguments are those of `fused_fdiv_loss`, which computes the same
    weight in its own pass. Call this function for gradient accumulation: once per optimizer step, over all logits of
    the step, then pass slices as `weight=`.

    Returns:
        h (B,), float32 (float64 for float64 logits), without gradient, or (h, FDivStats), where grad_norm,
        relative_gap and generator_loss are NaN. The weight is NaN where the combined logit or t is not finite, or log h
        overflows, as in a bin whose running mean was loaded as 0. Such a sample takes part in no mean of h. If only log
        h overflows, its ratio still counts.

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
    h, stats = _weigh(chosen, weighting)
    weight = h if logits.dtype == torch.float64 else h.float()
    if not return_stats:
        return weight
    nan = torch.full((), torch.nan, dtype=torch.float64, device=h.device)
    return weight, FDivStats._make((h, *stats.unbind(0), nan, nan, (~torch.isfinite(h)).sum().double(), nan))


def _generator_loss(logits: Tensor, nonfinite: str, reduction: str, backend: str) -> Tensor:
    """The generator's term where the score difference's samples are sets."""
    if nonfinite == "zero":
        combined = logits.detach().double().reshape(len(logits), -1).mean(1)
        finite = torch.isfinite(combined).reshape(-1, *(1,) * (logits.dim() - 1))
        logits = torch.where(finite, logits, torch.inf)  # softplus(-inf) = 0
    return generator_loss(logits, reduction=reduction, backend=backend)


def _weigh_or_take(
    backend: str, weighting: Weighting, weight: Tensor | None, student: Tensor
) -> tuple[Tensor | None, Tensor | None]:
    """(h in float64, None if it is 1 for every sample; its statistics, None unless logits give it)"""
    call = weighting.arguments
    if call.logits is not None:
        return _weigh(backend, weighting)
    return None if weight is None and call.t is None else given_weight(weight, call.t, student), None


def _weigh(backend: str, weighting: Weighting) -> tuple[Tensor, Tensor]:
    """(h in float64, its statistics)"""
    call = weighting.arguments
    if weighting.in_torch:
        return weight_in_torch(call, None if weighting.divergence.kernel else weighting.divergence, weighting.group)
    assert call.logits is not None
    result: tuple[Tensor, Tensor] = _WEIGHT.run(backend, call, ())
    if backend != "reference":
        registry.mark_updated(call.ratio_mean, call.update)
    return result
