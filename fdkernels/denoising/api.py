"""The public function over the op `denoising`: signature, validation, choice of backend."""

from __future__ import annotations

import numbers
from typing import Any

import torch
from torch import Tensor

from fdkernels import backends
from fdkernels._op import registry
from fdkernels._op.arguments import Table
from fdkernels._op.checks import check_choice, check_dense, check_like, check_number, check_real, check_samples, shown
from fdkernels._op.views import as_table, dense_samples, memory_order, readable
from fdkernels.denoising import reference
from fdkernels.denoising.arguments import DENOISING, DenoisingArguments, denoising_outputs
from fdkernels.denoising.weighting import weighting_of
from fdkernels.fdiv.validation import check_count
from fdkernels.prediction import check_level, check_levels

_DENOISING = registry.register(
    registry.Op(
        "denoising", "denoising_loss", DENOISING, "Tensor loss, Tensor gradient, Tensor unscale, Tensor nothing",
        denoising_outputs, reference.denoising,
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
        prediction: the kind of pred; alpha, sigma: its levels, as in `Prediction`. The weightings need both.
        sigma_data: EDM's σd.
        target: (p, q) of your own, numbers or tensors with the shapes of levels, in place of prediction and levels.
        weight: w; a number, or a tensor of pred's leading dimensions, as (B,), or broadcastable to pred.
        weighting: a name of the table below, which is a factor of the squared error of x0. With weight, both multiply.
            The weight of pred's own squared error is λ·c², where x0 = a·x_t + c·prediction.

            | name        | λ                    | for example                                              |
            |-------------|----------------------|----------------------------------------------------------|
            | `x0`        | 1                    |                                                          |
            | `epsilon`   | α²/σ²                | DDPM's simple loss: w = 1 with an epsilon prediction     |
            | `v`         | α²/σ² + 1            | w = 1 with a v prediction                                |
            | `snr_ratio` | SNR / (SNR + 1)      | SNR = α²/σ²                                              |
            | `min_snr`   | min(SNR, snr_gamma)  | min-SNR-γ                                                |
            | `edm`       | (σ²+σd²) / (σ·σd)²   | EDM: w = 1 with an edm prediction                        |
            | `trig`      | 1 / sin²t, σ = sin t | TrigFlow                                                 |
        reduction: mean, sum, or none: each sample's mean, (B,).
        count: N of the mean, where one call is a part of a batch; int or tensor of one element.
        backend: as in `fused_fdiv_loss`.

    Returns:
        The loss, float32 (float64 for float64 pred).

    Raises:
        ValueError: a shape, dtype or device that does not fit; an unknown kind or name (the message has the nearest);
            a missing level; levels beside target; a weighting beside target.
        TypeError: not a tensor; a level or weight that is neither a number nor a real tensor.
        RuntimeError: a backend that is not available, with the reason; double backward.

    Source: Ho et al. 2020; Karras et al. 2022, Eq. 8; Hang et al. 2023 (min-SNR-γ); FastGen's
    denoising_score_matching_loss.

    Example:
        >>> x_t, noise = fdk.add_noise(x0, alpha, sigma, return_noise=True)
        >>> loss = fdk.denoising_loss(fake(x_t, t), x0, noise, "v_prediction", alpha, sigma, weighting="min_snr")
    """
    check_samples("pred", pred)
    if pred.shape[0] == 0:
        raise ValueError(f"pred: expected at least one sample, got shape {tuple(pred.shape)}")
    check_like("x0", x0, pred, "pred")
    check_like("noise", noise, pred, "pred")
    check_choice("reduction", reduction, REDUCTIONS)
    sigma_data = check_number("sigma_data", sigma_data)
    if sigma_data <= 0:
        raise ValueError(f"sigma_data: expected a positive number, got {shown(sigma_data)}")
    kind, levels = _target(prediction, alpha, sigma, target)
    factors = [] if weight is None else [_weight(weight)]
    if weighting is not None:
        if target is not None:
            raise ValueError("weighting: expected without target, which has no levels; pass weight=")
        for name, level in (("alpha", alpha), ("sigma", sigma)):
            check_level(name, level, f"weighting {shown(weighting)}")
        assert alpha is not None and sigma is not None  # check_level
        factors.append(weighting_of(weighting, kind, _constant(alpha), _constant(sigma), sigma_data, snr_gamma))
    divisor = check_count(count, reduction, pred, "pred")
    chosen = backends.choose(backend, pred.device.type)
    backends.log_choice("denoising_loss", chosen, pred.device.type)
    order = memory_order(pred)

    def samples(v: Tensor) -> Tensor:
        return dense_samples(v if order is None else v.permute(order))

    def table(name: str, value: float | Tensor) -> Table:
        return as_table(name, readable(value), pred, order, "pred") if isinstance(value, Tensor) else Table()

    names = ("alpha", "sigma") if target is None else ("target[0]", "target[1]")
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


def _target(
    prediction: str, alpha: Any, sigma: Any, target: tuple[float | Tensor, float | Tensor] | None
) -> tuple[str, tuple[float | Tensor, float | Tensor]]:
    """(the kind, its levels); affine with p and q for a target."""
    if target is not None:
        if alpha is not None or sigma is not None:
            raise ValueError("target: expected without alpha and sigma")
        if not isinstance(target, tuple) or len(target) != 2:
            raise TypeError(f"target: expected (p, q), got {shown(target)}")
        for at, value in enumerate(target):
            check_level(f"target[{at}]", value, "it")
        return "affine", (_constant(target[0]), _constant(target[1]))
    check_levels(prediction, alpha, sigma)
    needs = {"v_prediction": ("alpha", "sigma"), "edm": ("sigma",)}.get(prediction, ())
    for name, level in (("alpha", alpha), ("sigma", sigma)):
        if name in needs:
            check_level(name, level, prediction)
    return prediction, (
        _constant(alpha) if "alpha" in needs else 1.0,
        _constant(sigma) if "sigma" in needs else 1.0,
    )


def _constant(level: float | Tensor) -> float | Tensor:
    return level.detach() if isinstance(level, Tensor) else level


def _weight(weight: float | Tensor) -> Tensor:
    if isinstance(weight, Tensor):
        check_dense("weight", weight)
        check_real("weight", weight)
        return weight.detach()
    if isinstance(weight, bool) or not isinstance(weight, numbers.Real):
        raise TypeError(f"weight: expected a number or a tensor, got {type(weight).__name__}")
    return torch.tensor(check_number("weight", weight), dtype=torch.float64)


def _product(factors: list[Tensor], pred: Tensor, order: tuple[int, ...] | None) -> Table:
    """The table of all weights."""
    if not factors:
        return Table()
    placed = [v.to(pred.device) if v.dim() == 0 else v for v in factors]
    if len(placed) == 1:
        return as_table("weight", readable(placed[0]), pred, order, "pred")
    rank = pred.dim()
    wide = [v.double().reshape(*v.shape, *(1,) * (rank - v.dim())) for v in placed]
    return as_table("weight", wide[0] * wide[1], pred, order, "pred")
