"""The flagship's checks: what a call asks for, made sure of before any state changes."""

from __future__ import annotations

import math
import warnings
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor

from fdkernels.checks import FLOATS, check_choice, check_like_student, check_number, check_per_sample, check_tensor
from fdkernels.divergences import Divergence, resolve
from fdkernels.fdiv import ops
from fdkernels.fdiv import weight as torch_weight
from fdkernels.fdiv.weight import RatioState
from fdkernels.layout import broadcastable
from fdkernels.normalizer import RatioNormalizer
from fdkernels.prediction import Prediction

WIDEST_LOG_RATIO = 80.0  # ratio_range=None: e^±80 and its inverse are normal float32 numbers
WIDEST_RATIO = (math.exp(-WIDEST_LOG_RATIO) * (1 - 1e-12), math.exp(WIDEST_LOG_RATIO) * (1 + 1e-12))
SMALLEST_BATCH = 8  # below it, dividing h by its batch mean leaves little of the divergence

_warned: set[str] = set()


class Weighting(NamedTuple):
    """Everything that decides the weight h, checked."""

    divergence: Divergence
    state: RatioState
    log_ratio_range: tuple[float, float]
    normalize_weight: bool
    group: Any | None
    in_torch: bool
    """Whether steps 1 to 5 run in PyTorch, ahead of the kernel. A field: torch 2.10's Dynamo traces no property of a
    named tuple."""

    def compute(self, backend: str, logits: Tensor, t: Tensor | None) -> tuple[Tensor, Tensor]:
        """(h in float64, its statistics)."""
        state, (low, high) = self.state, self.log_ratio_range
        op = None if self.in_torch else ops.WEIGHT.get(backend)
        if op is None:
            return torch_weight.fdiv_weight(
                logits, t, state, self.divergence, (low, high), self.normalize_weight, self.group
            )
        kernel, alpha = self.divergence.kernel, self.divergence.alpha or 0.0
        result = op(logits.contiguous(), t, *state, kernel, alpha, low, high, self.normalize_weight)
        ops.mark_updated(state.mean, state.update)
        return result


def check_weighting(
    batch: int,
    device: torch.device,
    logits: Tensor | None,
    t: Tensor | None,
    divergence: str | Divergence,
    normalizer: RatioNormalizer | None,
    ratio_range: tuple[float, float] | None,
    normalize_weight: bool,
    group: Any | None,
    *,
    needs_logits: bool = True,
) -> Weighting:
    resolved = resolve(divergence)
    if not isinstance(normalize_weight, bool):
        raise TypeError(f"normalize_weight: expected a bool, got {normalize_weight!r}")
    log_ratio_range = check_ratio_range(ratio_range)
    if t is not None:
        check_per_sample("t", t, batch, device)
    state = RatioState()
    if logits is not None:
        check_per_sample("logits", logits, batch, device, heads=True)
        if logits.dtype not in FLOATS:
            raise ValueError(f"logits: expected a floating dtype, got {logits.dtype}")
    elif needs_logits and resolved.kernel != "rkl":
        raise ValueError(f"logits: divergence {resolved.name!r} needs logits (or weight=), got None")
    if normalizer is not None:
        state = _check_normalizer(normalizer, logits, t, device)
    if group is not None:
        _check_group(group)
    elif logits is not None and not torch.compiler.is_compiling():
        _warn_about_statistics(resolved, batch, normalizer is not None, normalize_weight)
    in_torch = group is not None or resolved.kernel is None
    return Weighting(resolved, state, log_ratio_range, normalize_weight, group, in_torch)


def check_ratio_range(ratio_range: tuple[float, float] | None) -> tuple[float, float]:
    """(log lo, log hi)."""
    if ratio_range is None:
        return -WIDEST_LOG_RATIO, WIDEST_LOG_RATIO
    try:
        low, high = (float(end) for end in ratio_range)
    except (TypeError, ValueError):
        raise ValueError(f"ratio_range: expected two numbers (lo, hi) or None, got {ratio_range!r}") from None
    if not 0.0 < low < high < math.inf:
        raise ValueError(f"ratio_range: expected 0 < lo < hi < inf (None: the widest, e^±80), got ({low}, {high})")
    if low < WIDEST_RATIO[0] or high > WIDEST_RATIO[1]:
        # Beyond, the normalizer's float32 mean overflows, and stays so.
        raise ValueError(f"ratio_range: expected within e^±80, {WIDEST_RATIO}, got ({low}, {high}); None is the widest")
    return math.log(low), math.log(high)


def check_weight_alone(weight: Tensor, student: Tensor, **excluded: Any) -> None:
    for name, value in excluded.items():
        if value is not None:
            raise ValueError(f"{name}: expected None beside weight=, which is h itself, got {type(value).__name__}")
    check_per_sample("weight", weight, student.shape[0], student.device)


def check_options(scale: str | Tensor | None, eps: float, nonfinite: str, reduction: str) -> None:
    if isinstance(scale, str):
        if scale != "dmd":
            raise ValueError(f"scale: expected 'dmd', a tensor or None, got {scale!r}")
    elif scale is not None:
        check_tensor("scale", scale)
    if check_number("eps", eps) < 0.0:
        raise ValueError(f"eps: expected a number >= 0, got {eps!r}")
    check_choice("nonfinite", nonfinite, ("propagate", "zero"))
    check_choice("reduction", reduction, ("mean", "sum", "none"))


def check_guidance(name: str, uncond: Tensor | None, scale_name: str, scale: float | None, student: Tensor) -> None:
    if (uncond is None) != (scale is None):
        given, missing = (scale_name, name) if uncond is None else (name, scale_name)
        raise ValueError(f"{missing}: expected beside {given}, got None")
    if uncond is not None:
        check_like_student(name, uncond, student)
        check_number(scale_name, scale)


def check_prediction(prediction: Prediction, student: Tensor) -> bool:
    """Whether the predictions are other than x0 itself."""
    if not isinstance(prediction, Prediction):
        raise TypeError(f"prediction: expected an fdkernels.Prediction or None, got {type(prediction).__name__}")
    if prediction.kind == "sample":
        return False
    check_like_student("noisy", prediction.noisy, student)
    return True


def check_scale(scale: Tensor, student: Tensor) -> Tensor:
    if scale.dtype not in FLOATS:
        raise ValueError(f"scale: expected a floating dtype, got {scale.dtype}")
    scale = broadcastable("scale", scale.detach(), student)
    return scale.double() if student.dtype == torch.float64 else scale.float()


def check_mask(mask: Tensor, student: Tensor) -> Tensor:
    check_tensor("mask", mask)
    if mask.dtype != torch.bool:
        raise ValueError(f"mask: expected dtype torch.bool (True is kept), got {mask.dtype}")
    return broadcastable("mask", mask, student)


def _check_normalizer(
    normalizer: RatioNormalizer, logits: Tensor | None, t: Tensor | None, device: torch.device
) -> RatioState:
    if not isinstance(normalizer, RatioNormalizer):
        raise TypeError(f"normalizer: expected a RatioNormalizer, got {type(normalizer).__name__}")
    if logits is None:
        raise ValueError("logits: a normalizer needs them, got None")
    if t is None:
        raise ValueError("t: a normalizer needs the noise level of each sample, got None")
    compiling = torch.compiler.is_compiling()
    if not compiling and normalizer.mean.is_inference() and not torch.is_inference_mode_enabled():
        raise ValueError("normalizer: made under torch.inference_mode, so its state can't change outside; make it anew")
    if normalizer.mean.device != device:
        raise ValueError(
            f"normalizer: expected device {device}, got {normalizer.mean.device}; call .to({str(device)!r})"
        )
    return RatioState(normalizer.mean, normalizer.edges, *normalizer.t_range, normalizer.decay, normalizer.training)


def _check_group(group: Any) -> None:
    if not (dist.is_available() and isinstance(group, dist.ProcessGroup)):
        raise TypeError(f"group: expected a torch.distributed.ProcessGroup or None, got {type(group).__name__}")


def _warn_about_statistics(divergence: Divergence, batch: int, has_normalizer: bool, normalize_weight: bool) -> None:
    flat = divergence.kernel == "rkl"
    if normalize_weight and not flat and batch < SMALLEST_BATCH:
        _warn_once(
            "small batch",
            f"normalize_weight over {batch} samples flattens the weight (at 1 every divergence is rkl): "
            "pass group= for statistics over all ranks, or compute fdiv_weight over more samples and pass weight=",
        )
    statistics = has_normalizer or (normalize_weight and not flat)
    if statistics and dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1:
        _warn_once(
            "group",
            f"group=None takes the weight's statistics over this process alone, in a world of {dist.get_world_size()}: "
            "pass group=torch.distributed.group.WORLD for the global batch",
        )


def _warn_once(key: str, message: str) -> None:
    if key not in _warned:
        _warned.add(key)
        warnings.warn(message, stacklevel=5)
