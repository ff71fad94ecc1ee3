"""The dmd scale: what a sample's gradient is divided by, so that its size says nothing of the noise level."""

from __future__ import annotations

from dataclasses import dataclass

from fdkernels._op.checks import check_number, shown


@dataclass(frozen=True)
class DmdScale:
    """s_b = 1 / (mean_i |x_bi - τ_bi| + eps), for `fused_fdiv_loss(scale=...)`; "dmd" is `DmdScale()`.

    Args:
        eps: in units of x, at least 0.

    Raises:
        ValueError: a number that is not finite, or below 0.

    Source: DMD (arXiv 2311.18828), equation 8.

    Example:
        >>> loss = fdk.fused_fdiv_loss(x, teacher_x0, fake_x0, divergence="rkl", scale=fdk.DmdScale(eps=0.0))
    """

    eps: float = 1e-6

    def __post_init__(self) -> None:
        if check_number("eps", self.eps) < 0.0:
            raise ValueError(f"eps: expected a number >= 0, got {shown(self.eps)}")


DMD = DmdScale()
