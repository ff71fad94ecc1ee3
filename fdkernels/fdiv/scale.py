"""The dmd scale divides a sample's gradient, so that the gradient's size does not depend on the noise level."""

from __future__ import annotations

from dataclasses import dataclass

from fdkernels._op.checks import check_number, shown


@dataclass(frozen=True)
class DmdScale:
    """s_b = 1 / (max(mean_i |x_bi - τ_bi|, floor) + eps), for `fused_fdiv_loss(scale=...)`; "dmd" is `DmdScale()`.

    Args:
        eps: in units of x, at least 0.
        floor: the smallest mean, in units of x, at least 0. A trainer that writes `clamp(min=1e-5)` in place of `+ eps`
            has `DmdScale(eps=0.0, floor=1e-5)`.
        over: the set over which one mean is taken: "sample", "batch", "frame", or k for blocks of k frames; frames are
            dimension 1 of student. If one element or weight of a set is not finite, the whole set counts as
            non-finite. Unless it is "sample", the weights are computed before the kernel.
        kept_only: take the mean over the elements that a mask keeps, not over all, also for `FDivStats.relative_gap`.
            cosmos-framework does so. With many masked elements, the two means can differ by a large factor.

    Raises:
        ValueError: a number is not finite or below 0; an unknown set.
        TypeError: kept_only is not a bool.

    Source: DMD (arXiv 2311.18828), equation 8.

    Example:
        >>> x = torch.zeros(8, 3, 16, 16, requires_grad=True)
        >>> tau, f = torch.full_like(x, 0.5), torch.full_like(x, 0.75)
        >>> loss = fdk.fused_fdiv_loss(x, tau, f, divergence="rkl", scale=fdk.DmdScale(eps=0.0, floor=1.0))
        >>> loss.item()  # g = 0.25 / max(0.5, 1)
        0.03125
    """

    eps: float = 1e-6
    floor: float = 0.0
    over: str | int = "sample"
    kept_only: bool = False

    def __post_init__(self) -> None:
        for name in ("eps", "floor"):
            if check_number(name, getattr(self, name)) < 0.0:
                raise ValueError(f"{name}: expected a number >= 0, got {shown(getattr(self, name))}")
        is_block = isinstance(self.over, int) and not isinstance(self.over, bool) and self.over >= 1
        if not is_block and self.over not in ("sample", "batch", "frame"):
            raise ValueError(
                f"over: expected 'sample', 'batch', 'frame' or a number of frames, at least 1, got {shown(self.over)}"
            )
        if not isinstance(self.kept_only, bool):
            raise TypeError(f"kept_only: expected a bool, got {shown(self.kept_only)}")


DMD = DmdScale()
