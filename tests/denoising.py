"""Cases of the op denoising, and its expected results, written from the formulas alone."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from fdkernels import testing
from fdkernels._op.arguments import Table
from fdkernels.denoising.arguments import DenoisingArguments
from tests.cases import Inputs, Outcome, assert_loss
from tests.device import place
from tests.noising import doubled

# The target of x0, noise, alpha, sigma and sigma_data in float64, as the papers define it.
TARGETS = {
    "sample": lambda x0, noise, alpha, sigma, data: x0,
    "epsilon": lambda x0, noise, alpha, sigma, data: noise,
    "v_prediction": lambda x0, noise, alpha, sigma, data: alpha * noise - sigma * x0,
    "flow_prediction": lambda x0, noise, alpha, sigma, data: noise - x0,
    # F with D = c_skip·x_t + c_out·F = x0 (Karras et al. 2022, Table 1 and Eq. 8)
    "edm": lambda x0, noise, alpha, sigma, data: (
        (x0 - data**2 / (sigma**2 + data**2) * (x0 + sigma * noise)) / (sigma * data / (sigma**2 + data**2).sqrt())
    ),
}


@dataclass
class DenoisingCase(Inputs):
    """One call of `denoising_loss`."""

    OP = "denoising"
    ORDER = ("pred", "x0", "noise")
    GRADIENTS = ("pred",)

    pred: Tensor
    x0: Tensor
    noise: Tensor
    options: dict[str, Any] = field(default_factory=dict)

    def expected(self) -> tuple[Tensor, Tensor]:
        """(loss, gradient)"""
        options = {"prediction": "epsilon", "alpha": None, "sigma": None, "sigma_data": 0.5, **self.options}
        pred, x0, noise = (v.detach().cpu().double() for v in (self.pred, self.x0, self.noise))
        if options.get("target") is not None:
            p, q = (doubled(v, pred) for v in options["target"])
            target = p * x0 + q * noise
        else:
            levels = (doubled(1.0 if options[name] is None else options[name], pred) for name in ("alpha", "sigma"))
            target = TARGETS[options["prediction"]](x0, noise, *levels, options["sigma_data"])
        weight = doubled(1.0 if options.get("weight") is None else options["weight"], pred)
        difference = pred - target
        energy = (weight * difference**2).reshape(len(pred), -1).sum(1)
        reduction, count = options.get("reduction", "mean"), options.get("count")
        n = (
            {"mean": pred.numel(), "none": pred[0].numel(), "sum": 1}[reduction]
            if count is None
            else max(1, float(count))
        )
        return (energy if reduction == "none" else energy.sum()) / n, 2 * weight * difference / n

    def hold(self, outcome: Outcome, expected: tuple[Tensor, Tensor], upstream: Tensor | None = None) -> None:
        factor = torch.ones((), dtype=torch.float64) if upstream is None else upstream.double()
        if factor.dim():
            factor = factor.reshape(-1, *(1,) * (self.pred.dim() - 1))
        assert outcome.grad.dtype == self.pred.dtype
        assert outcome.loss.dtype == (torch.float64 if self.pred.dtype == torch.float64 else torch.float32)
        testing.assert_gradient(outcome.grad, expected[1] * factor, upstream_is_one=upstream is None)
        assert_loss(outcome.loss, expected[0])


def make_denoising(
    shape: tuple[int, ...] = (4, 3, 8, 8),
    dtype: torch.dtype = torch.float32,
    *,
    levels: str = "per sample",
    seed: int = 0,
    gap: float = 0.5,
    **options: Any,
) -> DenoisingCase:
    """pred is near the target of an epsilon prediction. levels: per sample, or per row (B, C)."""
    generator = torch.Generator().manual_seed(seed)

    def normal() -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    x0, noise = normal(), normal()
    if options.get("prediction") in ("v_prediction", "edm"):
        angle = 0.1 + 1.3 * torch.rand(shape[:1] if levels == "per sample" else shape[:2], generator=generator)
        options = {"alpha": angle.cos(), "sigma": angle.sin().double(), **options}
    return DenoisingCase((noise + gap * normal()).to(dtype), x0.to(dtype), noise.to(dtype), options)


def weighted(shape: tuple[int, ...], dtype: torch.dtype, **options: Any) -> DenoisingCase:
    """With levels and weights of every row."""
    weight = 0.2 + torch.rand(shape[:2], generator=torch.Generator().manual_seed(9))
    return make_denoising(shape, dtype, levels="per row", prediction="v_prediction", weight=weight, **options)


def raw_denoising(dtype: torch.dtype = torch.float32, **changes: Any) -> DenoisingArguments:
    generator = torch.Generator().manual_seed(1)

    def entries(*size: int, dtype: torch.dtype = torch.float32) -> Tensor:
        return 0.2 + torch.rand(size, generator=generator, dtype=dtype)

    case = make_denoising((4, 3, 6, 5), dtype)
    call = DenoisingArguments(
        pred=case.pred, x0=case.x0, noise=case.noise, prediction="v_prediction",
        alpha=Table(entries(4, 3, dtype=torch.float64), 30), sigma=Table(entries(4, 45), 2), fixed_alpha=0.7,
        fixed_sigma=1.3, sigma_data=0.5, weight=Table(entries(4, 90), 1), reduction="mean", divisor=None,
        with_grad=True,
    )  # fmt: skip
    return DenoisingArguments(*map(place, call._replace(**changes)))
