"""The public function over the op `denoising`: signature, validation, choice of backend."""

from __future__ import annotations

import math
import numbers
import sys
from typing import Any

import torch
from torch import Tensor

from fdkernels import backends
from fdkernels._op import registry
from fdkernels._op.arguments import Table
from fdkernels._op.checks import (
    check_choice,
    check_constant,
    check_like,
    check_number,
    check_positive,
    check_real,
    check_samples,
    check_tensor,
    shown,
)
from fdkernels._op.floats import filled
from fdkernels._op.views import as_table, broadcastable, dense_samples, memory_order, readable, unexpanded
from fdkernels.denoising import reference
from fdkernels.denoising.arguments import DENOISING, DenoisingArguments, denoising_outputs
from fdkernels.denoising.weighting import check_weighting, weighting_of
from fdkernels.fdiv.validation import check_count
from fdkernels.prediction import Prediction, beyond, check_level, check_levels, host_range

_DENOISING = registry.register(
    registry.Op(
        "denoising", "denoising_loss", DENOISING, "Tensor loss, Tensor gradient, Tensor unscale",
        denoising_outputs, reference.denoising, (("pred", "with_grad"),),
    ),
    "fdkernels.denoising.triton_launch",
)  # fmt: skip
registry.differentiable(_DENOISING)

REDUCTIONS = ("mean", "sum", "none")


def denoising_loss(
    pred: Tensor,
    x0: Tensor,
    noise: Tensor,
    prediction: str = "epsilon",
    alpha: float | Tensor | None = None,
    sigma: float | Tensor | None = None,
    *,
    sigma_data: float = 0.5,
    target: tuple[float | Tensor, float | Tensor] | None = None,
    weight: float | Tensor | None = None,
    weighting: str | None = None,
    snr_gamma: float = 5.0,
    reduction: str = "mean",
    count: int | Tensor | None = None,
    backend: str = "auto",
) -> Tensor:
    """The denoising loss of a (fake) score network, with its gradient in the same pass.

        target = p·x0 + q·noise                       of the prediction's kind; never in memory
        loss   = mean over elements of w·(pred - target)²            no factor 1/2

    | prediction        | target                                  | levels       |
    |-------------------|-----------------------------------------|--------------|
    | `sample`          | x0                                      |              |
    | `epsilon`         | noise                                   |              |
    | `v_prediction`    | α·noise - σ·x0                          | alpha, sigma |
    | `flow_prediction` | noise - x0                              |              |
    | `edm`             | (σ·x0/σd - σd·noise) / √(σ²+σd²)        | sigma        |
    | `target=(p, q)`   | p·x0 + q·noise                          |              |

    Args:
        pred: (B, *S), floating: the network's raw output; gets the gradient 2·w·(pred - target) / N.
        x0, noise: shaped like pred, of any floating dtype; constants. noise is what `add_noise` took or drew.
        prediction: the kind of pred; alpha, sigma: its levels, as in `Prediction`. The weightings need both, but alpha
            is 1 for edm, and 1 - sigma for flow_prediction if it is not given.
        sigma_data: EDM's σd.
        target: (p, q) of your own, numbers or tensors with the shapes of levels, in place of prediction and levels.
        weight: w; a number, or a tensor of pred's leading dimensions, as (B,), or broadcastable to pred. Levels, target
            and weight are constants. With a float16 pred, 2·w·|pred - target| must stay below 65504.
        weighting: a name of the table below, which is a factor of the squared error of x0. With weight, both multiply.
            The weight of pred's own squared error is λ·c², where x0 = a·x_t + c·prediction.

            | name        | λ                    | for example                                              |
            |-------------|----------------------|----------------------------------------------------------|
            | `x0`        | 1                    |                                                          |
            | `epsilon`   | α²/σ²                | DDPM's simple loss: w = 1 with an epsilon prediction     |
            | `v`         | α²/σ² + 1            | w = 1 with a v prediction                                |
            | `snr_ratio` | SNR / (SNR + 1)      | SNR = α²/σ²                                              |
            | `min_snr`   | min(SNR, snr_gamma)  | min-SNR-γ                                                |
            | `edm`       | (s²+σd²) / (s·σd)²   | EDM, s = σ/α: w = 1 with an edm prediction               |
            | `trig`      | 1 / sin²t, σ = sin t | TrigFlow, where α² + σ² = 1                              |
        reduction: mean, sum, or none: each sample's mean, (B,).
        count: N of the mean, where one call is a part of a batch; int or tensor of one element.
        backend: as in `fused_fdiv_loss`.

    Returns:
        The loss, float32 (float64 for float64 pred).

    Raises:
        ValueError: a shape, dtype or device that does not fit; an unknown kind or name (the message has the nearest);
            a missing level; levels that do not fit the kind, as in `Prediction`; levels or a weighting beside target;
            a level or weight that requires a gradient, which it would not get.
        TypeError: not a tensor; a level or weight that is neither a number nor a real tensor.
        RuntimeError: a backend that is not available, with the reason; double backward.

    Source: Ho et al. 2020; Karras et al. 2022, Eq. 8; Hang et al. 2023 (min-SNR-γ); FastGen's
    denoising_score_matching_loss.

    Example:
        >>> x0, alpha, sigma = torch.randn(8, 3, 16, 16), torch.full((8,), 0.8), torch.full((8,), 0.6)
        >>> x_t, noise = fdk.add_noise(x0, alpha, sigma, return_noise=True)
        >>> network = torch.nn.Conv2d(3, 3, 3, padding=1)
        >>> loss = fdk.denoising_loss(network(x_t), x0, noise, "v_prediction", alpha, sigma, weighting="min_snr")
        >>> loss.backward()  # down to the network's parameters
        >>> perfect = fdk.Prediction("v_prediction", x_t, alpha, sigma).from_x0(x0)
        >>> print(f"{fdk.denoising_loss(perfect, x0, noise, 'v_prediction', alpha, sigma).item():.6f}")
        0.000000
    """
    check_samples("pred", pred)
    if pred.shape[0] == 0:
        raise ValueError(f"pred: expected at least one sample, got shape {tuple(pred.shape)}")
    check_like("x0", x0, pred, "pred")
    check_like("noise", noise, pred, "pred")
    check_choice("reduction", reduction, REDUCTIONS)
    sigma_data = check_positive("sigma_data", sigma_data)
    check_positive("snr_gamma", snr_gamma)
    if target is not None:
        kind, levels, names = "affine", _own_target(target, alpha, sigma, weighting), ("target[0]", "target[1]")
    else:
        kind, names = prediction, ("alpha", "sigma")
        levels = _levels(prediction, alpha, sigma, sigma_data, weighting, pred)
    factors = [] if weight is None else [_weight(weight, pred)]
    if weighting is not None:
        a, s = (_expanded(name, level, pred) for name, level in zip(names, levels, strict=True))
        factors.append(weighting_of(weighting, kind, a, s, sigma_data, snr_gamma))
    divisor = check_count(count, reduction, pred, "pred")
    chosen = backends.choose(backend, pred.device.type)
    backends.log_choice("denoising_loss", chosen, pred.device.type)
    order = memory_order(pred)
    # An input that is multiplied by 0 is not read: the other one stands in for it.
    x0, noise = {"epsilon": (noise, noise), "sample": (x0, x0)}.get(kind, (x0, noise))
    if kind in ("epsilon", "sample", "flow_prediction"):
        levels = (1.0, 1.0)  # the target has none

    def samples(v: Tensor) -> Tensor:
        return dense_samples(v if order is None else v.permute(order))

    def table(name: str, value: float | Tensor) -> Table:
        return as_table(name, readable(value), pred, order, "pred") if isinstance(value, Tensor) else Table()

    call = DenoisingArguments(
        pred=samples(pred),
        x0=samples(x0.detach()),
        noise=samples(noise.detach()),
        prediction=kind,
        alpha=table(names[0], levels[0]),
        sigma=table(names[1], levels[1]),
        fixed_alpha=1.0 if isinstance(levels[0], Tensor) else float(levels[0]),
        fixed_sigma=1.0 if isinstance(levels[1], Tensor) else float(levels[1]),
        sigma_data=sigma_data,
        weight=_product(factors, pred, order),
        reduction=reduction,
        divisor=divisor,
        with_grad=pred.requires_grad and torch.is_grad_enabled(),
    )
    return registry.run(_DENOISING, chosen, call)[0]


def _own_target(target: Any, alpha: Any, sigma: Any, weighting: Any) -> tuple[float | Tensor, float | Tensor]:
    """p and q."""
    if alpha is not None or sigma is not None:
        raise ValueError("target: expected without alpha and sigma")
    if weighting is not None:
        raise ValueError("weighting: expected without target, which has no levels; pass weight=")
    if not isinstance(target, (tuple, list)) or len(target) != 2:
        raise TypeError(f"target: expected (p, q), got {shown(target)}")
    for at, value in enumerate(target):
        check_level(f"target[{at}]", value, "it")
        check_constant(f"target[{at}]", value)
        known = None if torch.compiler.is_compiling() else host_range(value)
        if known is not None and not (-math.inf < known[0] and known[1] < math.inf):
            raise ValueError(f"target[{at}]: expected finite numbers, got {beyond(value, -sys.float_info.max)}")
    return target[0], target[1]


def _levels(
    prediction: Any, alpha: Any, sigma: Any, sigma_data: float, weighting: Any, pred: Tensor
) -> tuple[float | Tensor, float | Tensor]:
    """alpha and sigma; 1 where neither the target nor the weighting needs them."""
    check_levels(prediction, alpha, sigma)
    needs = {"v_prediction": ("alpha", "sigma"), "edm": ("sigma",)}.get(prediction, ())
    if weighting is not None:
        check_weighting(weighting)
        needs = {"edm": ("sigma",), "flow_prediction": ("sigma",)}.get(prediction, ("alpha", "sigma"))
    for name, level in (("alpha", alpha), ("sigma", sigma)):
        if name in needs:
            check_level(name, level, prediction if weighting is None else f"weighting {shown(weighting)}")
        check_constant(name, level)
    if prediction in ("v_prediction", "edm") or (prediction == "flow_prediction" and "sigma" in needs):
        Prediction(prediction, pred.detach(), alpha, sigma, sigma_data)  # checks levels against the kind's schedule
    if prediction == "edm":
        alpha = 1.0
    elif prediction == "flow_prediction" and "sigma" in needs:
        alpha = 1.0 - sigma if alpha is None else alpha
    return (1.0 if alpha is None else alpha), (1.0 if sigma is None else sigma)


def _expanded(name: str, level: float | Tensor, pred: Tensor) -> Tensor:
    """A level or weight in float64 at pred's rank, without what was expanded."""
    if not isinstance(level, Tensor):
        return filled((), level, pred.device)
    return unexpanded(broadcastable(name, level, pred, "pred")).double()


def _weight(weight: Any, pred: Tensor) -> Tensor:
    if isinstance(weight, Tensor):
        check_tensor("weight", weight)
        check_real("weight", weight)
        check_constant("weight", weight)
    elif isinstance(weight, bool) or not isinstance(weight, numbers.Real):
        raise TypeError(f"weight: expected a number or a tensor, got {type(weight).__name__}")
    else:
        weight = check_number("weight", weight)
    return _expanded("weight", weight, pred)


def _product(factors: list[Tensor], pred: Tensor, order: tuple[int, ...] | None) -> Table:
    """The table of all weights."""
    if not factors:
        return Table()
    return as_table("weight", factors[0] if len(factors) == 1 else factors[0] * factors[1], pred, order, "pred")
