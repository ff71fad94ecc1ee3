"""The running mean of the density ratio per noise level, which removes the discriminator's bias at that level."""

from __future__ import annotations

import numbers
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from fdkernels.checks import check_number


class RatioNormalizer(nn.Module):
    """Divides each sample's density ratio by the running mean of the ratio in its noise-level bin.

    E_q[p/q] = 1 at every noise level, for every q that covers p. A learned ratio violates it; with i_b the bin of t_b,

        m_i ← decay·m_i + (1-decay)·mean{ r_b : i_b = i }     for bins that received samples
        r_b ← r_b / m_{i_b}                                    after the update

    enforces it. The state changes once per call of the loss, in training mode only (also under `no_grad`), in float32
    whatever `.to(dtype)` the model gets. `decay` weights the old value, unlike BatchNorm's `momentum`. Source:
    f-distill (arXiv 2502.15681), section 4, with a running mean in place of the batch's.

    Args:
        bins: how many; `mean` has shape (bins,), ones at first.
        t_range: (t0, t1); bin i covers t0 + [i, i+1)·(t1-t0)/bins, and values outside go to the end bins.
        decay: in [0, 1); 0 takes the current batch alone, which at small batches drives every ratio towards 1.
        edges: the bins-1 interior edges of unequal bins within t_range, increasing and right-open, in place of uniform
            ones. Saved in state_dict, unlike t_range: build the module with the same arguments before loading.

    Raises:
        ValueError: bins < 1, decay outside [0, 1), t0 >= t1 or not finite, edges of a wrong number or order.
    """

    mean: Tensor
    edges: Tensor | None
    bins: int
    t_range: tuple[float, float]
    decay: float

    def __init__(
        self,
        bins: int = 10,
        t_range: tuple[float, float] = (0.0, 1.0),
        decay: float = 0.9,
        edges: Tensor | None = None,
    ) -> None:
        super().__init__()
        if isinstance(bins, bool) or not isinstance(bins, numbers.Integral) or bins < 1:
            raise ValueError(f"bins: expected a whole number of at least 1, got {bins!r}")
        if not 0.0 <= check_number("decay", decay) < 1.0:
            raise ValueError(f"decay: expected a number in [0, 1), got {decay}")
        if not isinstance(t_range, Sequence) or len(t_range) != 2:
            raise ValueError(f"t_range: expected two numbers (t0, t1), got {t_range!r}")
        t0, t1 = (check_number("t_range", end) for end in t_range)
        if t0 >= t1:
            raise ValueError(f"t_range: expected t0 < t1, got ({t0}, {t1})")
        if edges is not None:
            edges = torch.as_tensor(edges).detach().to(torch.float64, copy=True)
            if edges.shape != (bins - 1,):
                raise ValueError(f"edges: expected shape ({bins - 1},) for {bins} bins, got {tuple(edges.shape)}")
            if not bool(torch.isfinite(edges).all()) or bool((edges.diff() <= 0).any()):
                raise ValueError(f"edges: expected finite, strictly increasing values, got {edges.tolist()}")
            if edges.numel() and not t0 <= float(edges[0]) <= float(edges[-1]) <= t1:
                raise ValueError(f"edges: expected within t_range ({t0}, {t1}), got {edges.tolist()}; pass t_range too")
        self.bins = int(bins)
        self.t_range = (t0, t1)
        self.decay = float(decay)
        self.register_buffer("mean", torch.ones(self.bins, dtype=torch.float32))
        self.register_buffer("edges", edges)

    @classmethod
    def from_samples(cls, t: Tensor, bins: int = 10, decay: float = 0.9) -> RatioNormalizer:
        """Bins of equal population, from samples of the noise level as training will draw it.

        Karras' noise levels put 64 % of their mass into the first of ten uniform bins; this puts 10 % into each.

        Raises:
            ValueError: non-finite values, or too few distinct ones for that many bins.
        """
        t = torch.as_tensor(t).detach().double().cpu().reshape(-1)
        if t.numel() < max(2, bins):
            raise ValueError(f"t: expected at least {max(2, bins)} samples, got {t.numel()}")
        if not bool(torch.isfinite(t).all()):
            raise ValueError(f"t: expected finite samples, got {int((~torch.isfinite(t)).sum())} others")
        ordered = t.sort().values
        # Picked, not interpolated, and without torch.quantile's limit of 16 million elements.
        edges = ordered[[i * t.numel() // bins for i in range(1, bins)]] if bins > 1 else ordered[:0]
        if bool((edges.diff() <= 0).any()) or float(ordered[0]) >= float(ordered[-1]):
            raise ValueError(f"t: too few distinct values for {bins} bins; pass fewer bins, or edges of your own")
        return cls(bins, (float(ordered[0]), float(ordered[-1])), decay, edges)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> RatioNormalizer:
        before = {name: buffer for name, buffer in self._buffers.items() if buffer is not None}
        super()._apply(fn, recurse)
        for name, old in before.items():
            new = self._buffers[name]
            if new is not None and new.dtype != old.dtype:
                self._buffers[name] = old.to(new.device)
        return self

    def extra_repr(self) -> str:
        bins = f"t_range={self.t_range}" if self.edges is None else "edges=custom"
        return f"bins={self.bins}, {bins}, decay={self.decay}"

    def forward(self, *_: Any) -> Tensor:
        raise TypeError(
            "RatioNormalizer holds the state only: pass it as normalizer= to fused_fdiv_loss or fdiv_weight"
        )
