"""The expected results of the score-difference loss, in float64 NumPy, written from the formulas alone.

The oracle is independent of the package: mpmath differentiates f to get h, tensors become float64, loops are plain
NumPy. Normalizers and predictions are read by their public attributes. Backends are compared with the oracle.
"""

from __future__ import annotations

import functools
import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import mpmath
import numpy as np
import torch

# f(r) as the papers define the divergences: generators of D_f(p||q) = E_q[f(p/q)].
F: dict[str, Callable[[Any], Any]] = {
    "rkl": lambda r: -mpmath.log(r),
    "kl": lambda r: r * mpmath.log(r),
    "js": lambda r: r * mpmath.log(r) - (r + 1) * mpmath.log((r + 1) / 2),
    "softened_rkl": lambda r: (r + 1) * mpmath.log(mpmath.mpf(1) / 2 + 1 / (2 * r)),
    "squared_hellinger": lambda r: 1 - mpmath.sqrt(r),
    "jeffreys": lambda r: (r - 1) * mpmath.log(r),
    "neyman": lambda r: (1 - r) ** 2 / r,
    "pearson": lambda r: (r - 1) ** 2,
    "le_cam": lambda r: (r - 1) ** 2 / (r + 1),
}
ALIASES = {
    "reverse_kl": "rkl",
    "forward_kl": "kl",
    "jensen_shannon": "js",
    "sf": "softened_rkl",
    "sh": "squared_hellinger",
    "jf": "jeffreys",
}
UNBOUNDED_LOG_RATIO = 80.0  # the bound of |log r| where ratio_range=None


def amari(a: float) -> Callable[[Any], Any]:
    """The generator with f''(r) = r^(a-2): (r^a - 1) / (a(a-1)), and its limits at a = 0 and 1."""
    if a == 0:
        return F["rkl"]
    if a == 1:
        return F["kl"]
    return lambda r: (mpmath.power(r, a) - 1) / (mpmath.mpf(a) * (mpmath.mpf(a) - 1))


def generator(name: str) -> Callable[[Any], Any]:
    call = re.fullmatch(r"alpha\((.+)\)", name)
    return amari(float(call[1])) if call else F[ALIASES.get(name, name)]


@functools.lru_cache(maxsize=100_000)
def _weight_at(name: str, log_ratio: float, extra_digits: int = 0) -> float:
    # The second difference cancels up to r^2 of f, and mpmath's step is relative to r: the digits must grow with |L|.
    with mpmath.workdps(50 + int(2.6 * abs(log_ratio)) + extra_digits):
        r = mpmath.exp(mpmath.mpf(log_ratio))
        return float(mpmath.diff(generator(name), r, 2, relative=True) * r**2)


def weight_function(divergence: Any, log_ratio: np.ndarray, extra_digits: int = 0) -> np.ndarray:
    """h(r) = r^2 f''(r) at r = e^L, differentiated from f; NaN stays NaN."""
    name = divergence if isinstance(divergence, str) else divergence.name
    return np.array([_weight_at(name, float(v), extra_digits) if math.isfinite(v) else math.nan for v in log_ratio])


def float64(x: Any) -> np.ndarray:
    if isinstance(x, torch.Tensor):
        return np.array(x.detach().to(torch.float64).cpu().numpy(), dtype=np.float64)
    return np.array(x, dtype=np.float64)


@dataclass
class Weights:
    weight: np.ndarray  # after step 5 if normalize_weight, else after step 4
    raw: np.ndarray  # after step 4
    ratio: np.ndarray  # after step 2
    clipped: np.ndarray
    finite: np.ndarray  # whether the sample's combined logit and t are finite
    mean: np.ndarray | None  # the normalizer's state afterwards


def bin_index(t: np.ndarray, normalizer: Any) -> np.ndarray:
    edges = getattr(normalizer, "edges", None)
    bins = len(float64(normalizer.mean))
    index = np.zeros(len(t), dtype=np.int64)
    for b, value in enumerate(t):
        if not math.isfinite(value):
            continue
        if edges is not None:
            index[b] = int((float64(edges) <= value).sum())
        else:
            t0, t1 = normalizer.t_range
            index[b] = min(max(math.floor((value - t0) / ((t1 - t0) / bins)), 0), bins - 1)
    return index


def weights(
    logits: Any,
    t: Any = None,
    *,
    divergence: Any = "js",
    normalizer: Any = None,
    ratio_range: tuple[float, float] | None = (0.1, 20.0),
    normalize_weight: bool = True,
    **_: Any,
) -> Weights:
    """Steps 1 to 5 of the f-divergence weight, from logits."""
    ell = float64(logits)
    with np.errstate(invalid="ignore", over="ignore"):
        combined = ell.reshape(len(ell), -1).mean(axis=1)
    finite = np.isfinite(combined)
    if t is not None:
        finite &= np.isfinite(float64(t))
    bound = UNBOUNDED_LOG_RATIO
    low, high = (-bound, bound) if ratio_range is None else (math.log(ratio_range[0]), math.log(ratio_range[1]))
    log_ratio = np.where(finite, np.clip(combined, low, high), np.nan)
    ratio, clipped = np.exp(log_ratio), finite & ((combined < low) | (combined > high))
    mean = None
    if normalizer is not None:
        index, mean = bin_index(float64(t), normalizer), float64(normalizer.mean)
        if normalizer.training:
            for i in range(len(mean)):
                members = finite & (index == i)
                if members.any():
                    mean[i] = normalizer.decay * mean[i] + (1 - normalizer.decay) * ratio[members].mean()
        log_ratio = log_ratio - np.log(mean[index])
    raw = weight_function(divergence, log_ratio)
    final = raw / raw[finite].mean() if normalize_weight and finite.any() else raw
    return Weights(final, raw, ratio, clipped, finite, mean)


def coefficients(prediction: Any, student: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(a, c) with x0 = a x_t + c pred, broadcastable to the student."""

    def level(value: Any) -> np.ndarray:
        return leading(float64(value), student.ndim)

    kind, sd = prediction.kind, prediction.sigma_data
    if kind == "sample":
        return np.zeros(()), np.ones(())
    sigma = level(prediction.sigma)
    if kind == "epsilon":
        return 1 / level(prediction.alpha), -sigma / level(prediction.alpha)
    if kind == "v_prediction":
        return level(prediction.alpha), -sigma
    if kind == "flow_prediction":
        return np.ones(()), -sigma
    if kind == "edm":
        return sd**2 / (sigma**2 + sd**2), sigma * sd / np.sqrt(sigma**2 + sd**2)
    if kind == "affine":
        return level(prediction.alpha), sigma
    raise ValueError(kind)


def leading(value: np.ndarray, rank: int) -> np.ndarray:
    """Append dimensions of 1 to `value`, up to `rank`."""
    return value.reshape(*value.shape, *(1,) * (rank - value.ndim))


@dataclass
class Expected:
    loss: Any
    grad: np.ndarray  # for an upstream gradient of 1
    per_sample: np.ndarray  # (B, elements of a sample): w = h s m
    guidance_bound: np.ndarray | None  # for the error of grad, in units of 2^-24 (fp32) or 2^-53 (fp64)
    weights: Weights | None
    h: np.ndarray  # (B,): the weight as used
    bad: np.ndarray  # (sets,): whether a set of `_sets`, by default a sample, is non-finite
    stats: dict[str, float]
    logits_grad: np.ndarray | None = None  # of the generator's term


def score_difference(
    student: Any,
    teacher: Any,
    fake: Any,
    logits: Any = None,
    t: Any = None,
    *,
    divergence: Any = "js",
    weight: Any = None,
    scale: Any = "dmd",
    multiplier: Any = None,
    mask: Any = None,
    prediction: Any = None,
    teacher_uncond: Any = None,
    guidance_scale: float | None = None,
    fake_uncond: Any = None,
    fake_guidance_scale: float | None = None,
    nonfinite: str = "propagate",
    reduction: str = "mean",
    count: Any = None,
    gan_weight: float | None = None,
    **options: Any,
) -> Expected:
    """Loss, gradient and figures of the weighted score-difference loss."""
    # The oracle of a float64 kernel needs more digits than float64.
    exact = np.longdouble if student.dtype == torch.float64 else np.float64
    x = float64(student).astype(exact)
    batch = len(x)
    column = (batch, *(1,) * (x.ndim - 1))
    given = None
    if weight is not None:
        h = float64(weight)
    elif logits is not None:
        given = weights(logits, t, divergence=divergence, **options)
        h = given.weight
    else:
        h = np.ones(batch)
    a, c = (np.zeros(()), np.ones(())) if prediction is None else coefficients(prediction, x)
    anchor = (
        0.0
        if prediction is None or prediction.noisy is None or prediction.kind == "sample"
        else a * float64(prediction.noisy)
    )

    with np.errstate(invalid="ignore", over="ignore", divide="ignore"):
        raw_teacher, teacher_size = _guided(teacher, teacher_uncond, guidance_scale, exact)
        raw_fake, fake_size = _guided(fake, fake_uncond, fake_guidance_scale, exact)
        difference = np.broadcast_to(c * (raw_fake - raw_teacher), x.shape)
        distance = np.abs(x - (anchor + c * raw_teacher))
        keep = np.ones(x.shape, dtype=bool) if mask is None else _mask(mask, x)
        m = np.ones(column) if multiplier is None else leading(float64(multiplier), x.ndim)
        # Unless kept_only, a masked element counts in the mean of |x - tau|; a non-finite one counts as 0.
        kept_only = scale is not None and scale != "dmd" and scale.kept_only
        distance = np.where(~keep & (kept_only | ~np.isfinite(distance)), 0.0, distance)
        sets = _sets(scale, x.shape)
        counted = keep.reshape(sets, -1).sum(axis=1) if kept_only else x.size // sets
        gap = distance.reshape(sets, -1).sum(axis=1) / np.maximum(counted, 1)
        s = np.ones(sets)
        if scale is not None:
            eps, floor = (1e-6, 0.0) if scale == "dmd" else (scale.eps, scale.floor)
            s = np.where(np.asarray(counted) > 0, 1 / (np.maximum(gap, floor) + eps), 1.0)
        s = np.repeat(s, x.size // sets).reshape(x.shape)
        w = h.reshape(column) * s * m
        g = np.where(keep, np.broadcast_to(w, x.shape) * difference, 0.0)
        level = np.zeros(batch) if t is None else float64(t)
        good = np.isfinite(g) & np.isfinite(s) & np.isfinite((h + level).reshape(column))
        read = keep | (m[0].size == 1)  # a masked element of m is not read, unless m has one value per sample
        good &= np.isfinite(np.broadcast_to(m, x.shape)) | ~read
        if scale is not None:
            tau = anchor + c * raw_teacher
            good &= np.isfinite(np.where(keep, x + tau, 0.0))
        bad = ~good.reshape(sets, -1).all(axis=1)
        replaced = np.nan if nonfinite == "propagate" else 0.0
        g = np.where(np.repeat(bad, x.size // sets).reshape(x.shape) & keep, replaced, g)

        total = keep.sum() if count is None else float(count)
        counts = keep.reshape(batch, -1).sum(axis=1)
        squares = (g**2).reshape(batch, -1).sum(axis=1)
        if reduction == "mean":
            loss, divisor = 0.5 * squares.sum() / max(total, 1), np.full(column, max(total, 1), dtype=np.float64)
        elif reduction == "sum":
            loss, divisor = 0.5 * squares.sum(), np.ones(column)
        else:
            divisor = np.maximum(counts, 1).astype(np.float64)
            loss, divisor = 0.5 * squares / divisor, divisor.reshape(column)
        grad = g / divisor
        bound = None
        if teacher_uncond is not None or fake_uncond is not None:
            bound = np.broadcast_to(4 * (teacher_size + fake_size) * np.abs(c * w) / divisor, x.shape).astype(
                np.float64
            )
        used = h if t is None else np.where(np.isfinite(float64(t)), h, np.nan)
        stats = _figures(
            h, given, bad, grad, difference, distance, keep, t, options.get("normalizer"), x.shape, kept_only
        )
    w = np.broadcast_to(w, x.shape)
    logits_grad, stats["generator_loss"] = None, math.nan
    if gan_weight is not None:
        term, logits_grad = generator_term(logits, reduction, nonfinite == "zero")
        loss, logits_grad = loss + gan_weight * term, gan_weight * logits_grad
        stats["generator_loss"] = float(term.mean())
    return Expected(
        np.float64(loss), grad.astype(np.float64), w.reshape(batch, -1), bound, given, used, bad, stats, logits_grad
    )


def generator_term(logits: Any, reduction: str, drops: bool) -> tuple[np.ndarray, np.ndarray]:
    """(mean softplus(-l), its gradient); "none": of each sample."""
    ell = float64(logits)
    ell = ell.reshape(len(ell), -1)
    with np.errstate(invalid="ignore", over="ignore"):
        used = np.isfinite(ell.mean(axis=1, keepdims=True)) | (not drops)
        terms = np.where(used, np.logaddexp(0.0, -ell), 0.0)
        gradient = np.where(used, -np.exp(-np.logaddexp(0.0, ell)), 0.0)
    count = {"mean": ell.size, "none": ell.shape[1], "sum": 1}[reduction]
    total = terms.sum(axis=1) if reduction == "none" else terms.sum()
    return total / count, (gradient / count).reshape(tuple(logits.shape))


def _sets(scale: Any, shape: tuple[int, ...]) -> int:
    """The number of sets of elements. Each set has its own mean of |x - tau|."""
    over = "sample" if scale in (None, "dmd") else scale.over
    frames = 1 if over == "frame" else over
    return {"sample": shape[0], "batch": 1}.get(over) or shape[0] * shape[1] // frames


def _mask(mask: Any, x: np.ndarray) -> np.ndarray:
    keep = np.asarray(mask.cpu().numpy() if isinstance(mask, torch.Tensor) else mask)
    return np.broadcast_to(leading(keep, x.ndim), x.shape)


def _guided(cond: Any, uncond: Any, guidance: float | None, exact: Any) -> tuple[np.ndarray, np.ndarray]:
    """The guided prediction, and the sum of magnitudes that bounds its rounding error."""
    cond = float64(cond).astype(exact)
    if uncond is None:
        return cond, np.abs(cond)
    u, g = float64(uncond).astype(exact), float(guidance)  # type: ignore[arg-type]
    return u + g * (cond - u), np.abs(u) + abs(g) * (np.abs(cond) + np.abs(u))


def _figures(h, given, bad, grad, difference, distance, keep, t, normalizer, shape, kept_only) -> dict[str, float]:  # type: ignore[no-untyped-def]
    """FDivStats over the finite samples. The effective sample size is relative to the whole batch."""
    raw = h if given is None else given.raw
    finite = np.isfinite(raw) if t is None else np.isfinite(raw) & np.isfinite(float64(t))
    mean = functools.partial(np.mean, where=finite) if finite.any() else lambda _: np.nan
    used = raw[finite] if finite.any() else np.full(1, np.nan)
    gap = np.abs(difference)
    gap = np.where(~keep & (kept_only | ~np.isfinite(gap)), 0.0, gap)
    figures = {
        "weight_min": used.min(),
        "weight_mean": used.mean(),
        "weight_max": used.max(),
        "effective_sample_size": used.sum() ** 2 / (len(raw) * (used**2).sum()),
        "ratio_mean": np.nan if given is None else mean(given.ratio),
        "clip_fraction": np.nan if given is None else mean(given.clipped),
        "grad_norm": np.sqrt((grad**2).sum()),
        "relative_gap": np.divide(gap.reshape(len(bad), -1)[~bad].sum(), distance.reshape(len(bad), -1)[~bad].sum()),
        "nonfinite_samples": float(bad.sum()),
        "out_of_range_fraction": np.nan,
    }
    if normalizer is not None:
        t0, t1 = normalizer.t_range
        level = float64(t)
        figures["out_of_range_fraction"] = mean((level < t0) | (level > t1))
    return {name: float(value) for name, value in figures.items()}
