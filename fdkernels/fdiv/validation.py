"""Checks of the public functions' arguments. They all run before any state changes."""

from __future__ import annotations

import math
import numbers
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from fdkernels._op.checks import (
    FLOATS,
    as_float,
    check_choice,
    check_like,
    check_number,
    check_per_sample,
    check_tensor,
    is_readable,
    one_per_sample,
    shown,
    warn_once,
)
from fdkernels._op.floats import filled, logarithm
from fdkernels._op.views import readable
from fdkernels.divergences import Divergence, resolve
from fdkernels.fdiv import t_range
from fdkernels.fdiv.arguments import WeightArguments
from fdkernels.fdiv.scale import DMD, DmdScale
from fdkernels.normalizer import RatioNormalizer
from fdkernels.prediction import Prediction

WIDEST_LOG_RATIO = 80.0  # ratio_range=None: e^±80 and its inverse are normal float32 numbers
WIDEST_RATIO = (math.exp(-WIDEST_LOG_RATIO) * (1 - 1e-12), math.exp(WIDEST_LOG_RATIO) * (1 + 1e-12))
SMALLEST_BATCH = 8  # below it, dividing h by its batch mean leaves little of the divergence


class Weighting(NamedTuple):
    """The checked arguments that decide the weight h."""

    arguments: WeightArguments
    divergence: Divergence
    group: Any | None
    in_torch: bool
    """Whether steps 1 to 5 run in PyTorch, before the kernel. A field, because torch 2.10's Dynamo can't trace a
    property of a named tuple."""


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
        raise TypeError(f"normalize_weight: expected a bool, got {shown(normalize_weight)}")
    low, high = check_ratio_range(ratio_range)
    if t is not None:
        check_per_sample("t", t, batch, device)
    if logits is not None:
        check_per_sample("logits", logits, batch, device, heads=True)
        if logits.dtype not in FLOATS:
            raise ValueError(f"logits: expected a floating dtype, got {logits.dtype}")
    elif needs_logits and resolved.kernel != "rkl":
        raise ValueError(f"logits: divergence {resolved.name!r} needs logits (or weight=), got None")
    mean = edges = None
    if normalizer is not None:
        mean, edges = _check_normalizer(normalizer, logits, t, device)
        if t is not None and not torch.compiler.is_compiling():
            complaint = t_range.complaint(normalizer, t)
            if complaint is not None:
                # Once per t_range: a trainer may rebuild its loss every step, and another range is another mistake.
                warn_once(f"t_range {normalizer.t_range}", complaint)
    if group is not None:
        if not (dist.is_available() and isinstance(group, dist.ProcessGroup)):
            raise TypeError(f"group: expected a torch.distributed.ProcessGroup or None, got {type(group).__name__}")
    elif logits is not None and not torch.compiler.is_compiling():
        _warn_about_statistics(resolved, batch, normalizer is not None, normalize_weight)
    t_min, t_max = (0.0, 1.0) if normalizer is None else normalizer.t_range
    arguments = WeightArguments(
        None if logits is None else logits.detach(), t, mean, edges, t_min, t_max,
        0.0 if normalizer is None else normalizer.decay, normalizer is not None and normalizer.training,
        resolved.kernel or "rkl", 0.0 if resolved.alpha is None else resolved.alpha, low, high, normalize_weight,
    )  # fmt: skip
    return Weighting(arguments, resolved, group, in_torch=group is not None or resolved.kernel is None)


def check_ratio_range(ratio_range: tuple[float, float] | None) -> tuple[float | Tensor, float | Tensor]:
    """(log lo, log hi)."""
    if ratio_range is None:
        return -WIDEST_LOG_RATIO, WIDEST_LOG_RATIO
    try:
        low, high = (float(end) for end in (() if isinstance(ratio_range, str) else ratio_range))
    except (TypeError, ValueError, OverflowError):
        raise ValueError(f"ratio_range: expected two numbers (lo, hi) or None, got {shown(ratio_range)}") from None
    if not 0.0 < low < high < math.inf:
        raise ValueError(f"ratio_range: expected 0 < lo < hi < inf (None: the widest, e^±80), got ({low}, {high})")
    if low < WIDEST_RATIO[0] or high > WIDEST_RATIO[1]:
        # Beyond this range the normalizer's float32 mean overflows and never recovers.
        raise ValueError(f"ratio_range: expected within e^±80, {WIDEST_RATIO}, got ({low}, {high}); None is the widest")
    return logarithm(low), logarithm(high)


def check_weight_alone(weight: Tensor, student: Tensor, **excluded: Any) -> Tensor:
    """weight as (B,), from one number per sample, (B,) or (B, 1, ...), or one for all, () or (1, ...).

    A Python number is refused: one that a compiled function computes would become a constant of the graph.
    """
    for name, value in excluded.items():
        if value is not None:
            raise ValueError(f"{name}: expected None beside weight=, which is h itself, got {type(value).__name__}")
    _check_no_number("weight", weight)
    return one_per_sample("weight", weight, student.shape[0], student.device)


def check_options(scale: str | DmdScale | None, nonfinite: str, reduction: str) -> DmdScale | None:
    """The scale as a `DmdScale`, or None."""
    if isinstance(scale, str) and scale == "dmd":
        scale = DMD
    if isinstance(scale, Tensor):
        raise TypeError("scale: expected 'dmd', a DmdScale or None, got a tensor; pass it as multiplier=")
    if scale is not None and not isinstance(scale, DmdScale):
        raise (ValueError if isinstance(scale, str) else TypeError)(
            f"scale: expected 'dmd', a DmdScale or None, got {shown(scale)}"
        )
    check_choice("nonfinite", nonfinite, ("propagate", "zero"))
    check_choice("reduction", reduction, ("mean", "sum", "none"))
    return scale


def check_guidance(
    name: str, uncond: Tensor | None, scale_name: str, scale: float | Tensor | None, student: Tensor
) -> float | Tensor:
    """The guidance scale: a number, or a tensor if the host can't read it; 1 without guidance."""
    if uncond is None and scale is None:
        return 1.0
    if scale is None:
        raise ValueError(f"{scale_name}: expected beside {name}, got None")
    scale = _as_tensor(scale)
    number = _check_scalar(scale_name, scale) if isinstance(scale, Tensor) else check_number(scale_name, scale)
    if uncond is None:
        if isinstance(number, Tensor) or number != 1.0:
            raise ValueError(f"{name}: expected beside {scale_name} = {shown(scale)}, got None")
        return 1.0
    check_like(name, uncond, student)
    return number


def _as_tensor(value: Any) -> Any:
    """NumPy arrays as tensors: torch.compile turns NumPy scalars into arrays."""
    return torch.as_tensor(value) if isinstance(value, np.ndarray) else value


def _check_scalar(name: str, value: Tensor) -> float | Tensor:
    """The number in a 0-d CPU tensor; the tensor itself if its value must not be read (`is_readable`)."""
    check_tensor(name, value)
    if value.dim() or value.device.type != "cpu" or value.is_complex() or value.dtype == torch.bool:
        raise ValueError(
            f"{name}: expected a number or a real 0-d CPU tensor, got {tuple(value.shape)}, {value.dtype} on "
            f"{value.device}"
        )
    return check_number(name, value.item()) if is_readable(value) else value.detach()


def check_count(count: int | Tensor | None, reduction: str, student: Tensor, of: str = "student") -> Tensor | None:
    """N of the mean, as the ops take it. of: student's name in messages."""
    if count is None:
        return None
    if reduction != "mean":
        raise ValueError(f"count: expected with reduction='mean', got reduction={reduction!r}")
    count = _as_tensor(count)
    if not isinstance(count, Tensor):
        whole = isinstance(count, numbers.Integral) and not isinstance(count, bool)
        if not whole or not 1 <= as_float(count) < math.inf:
            raise ValueError(f"count: expected a whole number of at least 1 or a tensor, got {shown(count)}")
        # The launcher reads a CPU tensor. In a compiled graph, a CPU tensor would keep CUDA graphs from being used.
        device = student.device if torch.compiler.is_compiling() else torch.device("cpu")
        return filled((), as_float(count), device)
    check_tensor("count", count)
    if count.numel() != 1 or count.is_complex() or count.dtype == torch.bool:
        raise ValueError(f"count: expected one real value, got shape {tuple(count.shape)}, {count.dtype}")
    if count.device not in (student.device, torch.device("cpu")):
        raise ValueError(f"count: expected device {student.device} like {of}, or cpu, got {count.device}")
    if is_readable(count):
        check_number("count", count.item())
    return count.detach().reshape(())


def check_gan_weight(gan_weight: Any) -> float:
    number = check_number("gan_weight", gan_weight)
    if number < 0:
        raise ValueError(f"gan_weight: expected a number of at least 0, got {shown(gan_weight)}")
    return number


def check_generator_term(gan_weight: Any, logits: Tensor | None, count: Any) -> float:
    """The factor of the generator's term."""
    number = check_gan_weight(gan_weight)
    if logits is None:
        raise ValueError("gan_weight: expected beside logits, got None; beside weight= add fdkernels.generator_loss")
    if count is not None:
        raise ValueError(
            "gan_weight: expected without count, the number of elements; add fdkernels.generator_loss of each part"
        )
    return number


def check_prediction(prediction: Prediction, student: Tensor) -> None:
    if not isinstance(prediction, Prediction):
        raise TypeError(f"prediction: expected an fdkernels.Prediction or None, got {type(prediction).__name__}")
    if prediction.kind != "sample":
        check_like("noisy", prediction.noisy, student)


def _check_no_number(name: str, value: Any) -> None:
    if isinstance(value, numbers.Real) and not isinstance(value, bool):
        made = f"torch.full((), {as_float(value)}, device=student.device)"
        raise TypeError(f"{name}: expected a tensor, got {shown(value)}; write {made}")


def check_multiplier(multiplier: Tensor) -> Tensor:
    _check_no_number("multiplier", multiplier)
    check_tensor("multiplier", multiplier)
    if multiplier.dtype not in FLOATS:
        raise ValueError(f"multiplier: expected a floating dtype, got {multiplier.dtype}")
    return readable(multiplier.detach())


def check_mask(mask: Tensor) -> None:
    check_tensor("mask", mask)
    if mask.dtype != torch.bool:
        raise ValueError(
            f"mask: expected dtype torch.bool (True is kept), got {mask.dtype}; pass mask != 0, and weights of "
            "elements as multiplier="
        )


def _check_normalizer(
    normalizer: RatioNormalizer, logits: Tensor | None, t: Tensor | None, device: torch.device
) -> tuple[Tensor, Tensor | None]:
    """(mean, edges)"""
    if not isinstance(normalizer, RatioNormalizer):
        raise TypeError(f"normalizer: expected a RatioNormalizer, got {type(normalizer).__name__}")
    if logits is None:
        raise ValueError("logits: a normalizer needs them, got None")
    if t is None:
        raise ValueError("t: a normalizer needs the noise level of each sample, got None")
    mean, edges, bins = normalizer.mean, normalizer.edges, normalizer.bins
    _check_state("mean", mean, (bins,), torch.float32, device)
    if not torch.compiler.is_compiling() and mean.is_inference() and not torch.is_inference_mode_enabled():
        raise ValueError("normalizer: made under torch.inference_mode, so its state can't change outside; make it anew")
    if edges is not None:
        _check_state("edges", edges, (bins - 1,), torch.float64, device)
        if not torch.compiler.is_compiling() and not normalizer.knows_edges():
            raise ValueError(
                "normalizer.edges: expected values, got a module made on the meta device from edges without any; "
                "load its state_dict, or pass edges as numbers"
            )
    return mean, edges


def _check_state(name: str, value: Any, shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> None:
    """Check a normalizer's buffer, which a load, a wrapper or an assignment may have changed."""
    check_tensor(f"normalizer.{name}", value)
    if value.device != device:
        raise ValueError(f"normalizer: expected device {device}, got {value.device}; call .to({str(device)!r})")
    if value.shape != shape:
        raise ValueError(f"normalizer.{name}: expected shape {shape}, got {tuple(value.shape)}")
    if value.dtype != dtype:
        raise ValueError(
            f"normalizer.{name}: expected {dtype}, got {value.dtype}; keep it out of what casts buffers (FSDP's "
            f"buffer_dtype), or convert it back: normalizer.{name} = normalizer.{name}.to({dtype})"
        )
    if not value.is_contiguous():
        raise ValueError(f"normalizer.{name}: expected a contiguous tensor, got strides {value.stride()}")


def _warn_about_statistics(divergence: Divergence, batch: int, has_normalizer: bool, normalize_weight: bool) -> None:
    flat = divergence.kernel == "rkl"
    if normalize_weight and not flat and batch < SMALLEST_BATCH:
        warn_once(
            "small batch",
            f"normalize_weight over {batch} samples flattens the weight (at 1 every divergence is rkl): "
            "pass group= for statistics over all ranks, or compute fdiv_weight over more samples and pass weight=",
        )
    statistics = has_normalizer or (normalize_weight and not flat)
    if statistics and dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1:
        warn_once(
            "group",
            f"group=None takes the weight's statistics over this process alone, in a world of {dist.get_world_size()}: "
            "pass group=torch.distributed.group.WORLD for the global batch",
        )
