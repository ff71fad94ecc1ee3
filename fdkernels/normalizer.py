"""The running mean of the density ratio per noise level, which removes the discriminator's bias at that level."""

from __future__ import annotations

import itertools
import math
import numbers
import sys
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from fdkernels._op.checks import check_number, check_real, check_tensor, is_readable, is_traced, shown

DTYPES = {"mean": torch.float32, "edges": torch.float64}


class RatioNormalizer(nn.Module):
    """Divides each sample's density ratio by the running mean of the ratio in its noise-level bin.

    E_q[p/q] = 1 at every noise level, for every q that covers p. A learned ratio violates it. With i_b the bin of t_b,
    this update enforces it:

        m_i ← decay·m_i + (1-decay)·mean{ r_b : i_b = i }     for bins that received samples
        r_b ← r_b / m_{i_b}                                    after the update

    The state changes once per call of the loss, only in training mode (also under `no_grad`). It stays float32 whatever
    `.to(dtype)` the model gets. `decay` weights the old value, unlike BatchNorm's `momentum`. Source: f-distill
    (arXiv 2502.15681), section 4, with a running mean in place of the batch's.

    Args:
        bins: number of bins; `mean` has shape (bins,) and starts at ones.
        t_range: (t0, t1); bin i covers t0 + [i, i+1)·(t1-t0)/bins, and values outside go to the end bins.
        decay: in [0, 1); 0 takes the current batch alone, which at small batches drives every ratio towards 1.
        edges: the bins-1 interior edges of unequal bins within t_range, increasing and right-open, in place of uniform
            ones; a tensor or numbers. Saved in state_dict, unlike t_range: build the module with the same arguments
            before loading.

    With several activation-checkpointed calls before one backward, compute `fdiv_weight` outside and pass `weight=`. A
    call inside a backward, such as a checkpoint's second forward, reads the state but does not update it. Its weights
    equal the first forward's only if no other call updated the state in between.

    `to_empty` fills a module that was made on the meta device with ones and its edges.

    Raises:
        ValueError: bins < 1, decay outside [0, 1), t0 >= t1 or not finite, edges of a wrong number or order.

    Example:
        >>> normalizer = fdk.RatioNormalizer(bins=2, t_range=(0.0, 1.0), decay=0.5)
        >>> logits, t = torch.full((8,), 3.0).log(), torch.full((8,), 0.7)  # r = 3 in the second bin
        >>> h = fdk.fdiv_weight(logits, t, divergence="kl", normalizer=normalizer)
        >>> normalizer.mean  # 0.5·1 + 0.5·3
        tensor([1., 2.])
    """

    mean: Tensor
    edges: Tensor | None
    bins: int
    t_range: tuple[float, float]
    decay: float
    # The checks of t against t_range (`fdiv/t_range.py`).
    watch: Any = None
    # The edges that the module was built with, on the host: the meta device keeps no values.
    _first_edges: tuple[float, ...] | None = None

    def __init__(
        self,
        bins: int = 10,
        t_range: tuple[float, float] = (0.0, 1.0),
        decay: float = 0.9,
        edges: Tensor | None = None,
    ) -> None:
        super().__init__()
        _check_bins(bins)
        if not 0.0 <= check_number("decay", decay) < 1.0:
            raise ValueError(f"decay: expected a number in [0, 1), got {shown(decay)}")
        if not isinstance(t_range, Sequence) or len(t_range) != 2:
            raise ValueError(f"t_range: expected two numbers (t0, t1), got {shown(t_range)}")
        t0, t1 = (check_number("t_range", end) for end in t_range)
        if t0 >= t1:
            raise ValueError(f"t_range: expected t0 < t1, got ({t0}, {t1})")
        if edges is None and not sys.float_info.min <= (t1 - t0) / bins < math.inf:
            raise ValueError(f"t_range: expected bins of a width that float64 holds, got ({t0}, {t1}) in {bins}")
        self.bins = int(bins)
        self.t_range = (t0, t1)
        self.decay = float(decay)
        if edges is not None:
            edges = _as_edges(edges, self.bins, self.t_range)
            self._first_edges = _values(edges)
            if self._first_edges is not None:
                edges = torch.tensor(self._first_edges, dtype=torch.float64)  # on the device where `mean` goes
        self.register_buffer("mean", torch.ones(self.bins, dtype=torch.float32))
        self.register_buffer("edges", edges)

    @classmethod
    def from_samples(cls, t: Tensor, bins: int = 10, decay: float = 0.9) -> RatioNormalizer:
        """Bins of equal population, from samples of the noise level as training will draw it.

        Karras' noise levels put 64 % of their mass into the first of ten uniform bins; these bins get 10 % each.

        Raises:
            ValueError: non-finite values, or too few distinct ones for that many bins.

        Example:
            >>> sigma = torch.linspace(0.0, 3.0, 1001).exp()  # as training will draw it
            >>> fdk.RatioNormalizer.from_samples(sigma, bins=3).edges
            tensor([2.7156, 7.3964], dtype=torch.float64)
        """
        t = (t if isinstance(t, Tensor) else torch.as_tensor(t, device="cpu")).detach()
        _check_bins(bins)
        check_tensor("t", t)
        check_real("t", t)
        if t.is_meta:
            raise ValueError("t: expected samples, got a meta tensor, which has no values; draw them on device='cpu'")
        ordered = t.double().cpu().reshape(-1).sort().values
        if ordered.numel() < max(2, bins):
            raise ValueError(f"t: expected at least {max(2, bins)} samples, got {ordered.numel()}")
        # Edges are samples, not interpolated between them. torch.quantile is limited to 16 million elements.
        picked = torch.tensor([i * ordered.numel() // bins for i in range(1, bins)], dtype=torch.int64, device="cpu")
        edges = ordered[picked]
        if not is_readable(ordered):
            return cls(bins, decay=decay, edges=edges)
        if not bool(torch.isfinite(ordered).all()):
            raise ValueError(f"t: expected finite samples, got {int((~torch.isfinite(ordered)).sum())} others")
        if bool((edges.diff() <= 0).any()) or float(ordered[0]) >= float(ordered[-1]):
            raise ValueError(f"t: too few distinct values for {bins} bins; pass fewer bins, or edges of your own")
        return cls(bins, (float(ordered[0]), float(ordered[-1])), decay, edges)

    def reset_parameters(self) -> None:
        """Reset the mean to ones, and the edges to those that the module was built with."""
        for name in self._buffers:
            self._reset(name)

    @torch.no_grad()
    def _reset(self, name: str) -> None:
        buffer = self._buffers[name]
        if buffer is None:
            return
        if name == "mean":
            buffer.fill_(1.0)
        elif self._first_edges is None:
            buffer.fill_(torch.nan)  # built on the meta device from edges without values; a call refuses NaN edges
        else:
            buffer.copy_(torch.tensor(self._first_edges, dtype=torch.float64, device="cpu"))

    def knows_edges(self) -> bool:
        """False after a construction from edges without values (on the meta device), until `load_state_dict`."""
        if self.edges is None or self._first_edges is not None:
            return True
        values = _values(self.edges)
        if values is None:  # there are no values to know while ops are faked
            return True
        if not all(map(math.isfinite, values)):
            return False
        self._first_edges = values
        return True

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> RatioNormalizer:
        before = {name: buffer for name, buffer in self._buffers.items() if buffer is not None}
        super()._apply(fn, recurse)
        for name, old in before.items():
            new = self._buffers[name]
            if new is None:
                continue
            if old.is_meta and not new.is_meta:  # to_empty
                self._buffers[name] = new if new.dtype == old.dtype else torch.empty_like(old, device=new.device)
                self._reset(name)
            elif new.dtype != old.dtype:
                self._buffers[name] = old.to(new.device)
        return self

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        for name, dtype in DTYPES.items():
            value = state_dict.get(prefix + name)
            if isinstance(value, Tensor) and not value.is_complex():
                # load_state_dict(assign=True) would keep the dtype of a checkpoint, also half precision.
                state_dict[prefix + name] = value.detach().to(dtype).contiguous()
        super()._load_from_state_dict(state_dict, prefix, *args)

    def extra_repr(self) -> str:
        bins = f"t_range={self.t_range}" if self.edges is None else "edges=custom"
        return f"bins={self.bins}, {bins}, decay={self.decay}"

    def forward(self, *_: Any) -> Tensor:
        raise TypeError(
            "RatioNormalizer holds the state only: pass it as normalizer= to fused_fdiv_loss or fdiv_weight"
        )


def _check_bins(bins: Any) -> None:
    if isinstance(bins, bool) or not isinstance(bins, numbers.Integral) or not 1 <= int(bins) < 2**31:
        raise ValueError(f"bins: expected a whole number of at least 1 (and below 2^31), got {shown(bins)}")


def _as_edges(edges: Any, bins: int, t_range: tuple[float, float]) -> Tensor:
    """edges in float64. Their values are checked if the host can read them."""
    if not isinstance(edges, Tensor):
        try:
            edges = torch.as_tensor(edges, dtype=torch.float64, device="cpu")
        except (TypeError, ValueError, RuntimeError, OverflowError):
            raise TypeError(f"edges: expected a tensor or numbers, got {shown(edges)}") from None
    check_tensor("edges", edges)
    check_real("edges", edges)
    edges = edges.detach().to(torch.float64)
    if edges.shape != (bins - 1,):
        raise ValueError(f"edges: expected shape ({bins - 1},) for {bins} bins, got {tuple(edges.shape)}")
    values = _values(edges)
    if values is None:
        return edges
    if not all(map(math.isfinite, values)) or any(after <= before for before, after in itertools.pairwise(values)):
        raise ValueError(f"edges: expected finite, strictly increasing values, got {shown(list(values))}")
    if values and not t_range[0] <= values[0] <= values[-1] <= t_range[1]:
        raise ValueError(f"edges: expected within t_range {t_range}, got {shown(list(values))}; pass t_range too")
    return edges


def _values(edges: Tensor) -> tuple[float, ...] | None:
    """The values of edges; None on the meta device and while ops are traced or faked."""
    if edges.is_meta or is_traced():
        return None
    edges = edges.detach().cpu()
    return tuple(edges.tolist()) if is_readable(edges) else None
