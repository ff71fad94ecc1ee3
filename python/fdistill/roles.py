"""A trained network with its optimizer, schedule and clip; the average of its weights; means of logged values."""

from __future__ import annotations

import copy
import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import clip_grads_with_norm_, get_total_norm
from torch.optim.swa_utils import get_ema_multi_avg_fn

from fdistill.config import OptimizerConfig

TITLES = {"student": "student", "fake": "fake score", "discriminator": "discriminator"}


class Role:
    """One network and how it is updated.

    Args:
        network: all its parameters are trained.
        total_updates: updates in the whole run, after which the cosine schedule ends.
    """

    def __init__(self, name: str, network: nn.Module, cfg: OptimizerConfig, total_updates: int) -> None:
        self.name = name
        self.network = network
        self.cfg = cfg
        self.total_updates = max(total_updates, 1)
        self.updates = 0
        self.skipped = torch.zeros((), device=next(network.parameters()).device)
        self.optimizer = torch.optim.AdamW(
            network.parameters(), lr=cfg.lr, betas=cfg.betas, weight_decay=cfg.weight_decay, fused=True
        )

    def learning_rate(self) -> float:
        warm = min(1.0, (self.updates + 1) / (self.cfg.warmup + 1))
        decay = 0.5 + 0.5 * math.cos(math.pi * self.updates / self.total_updates)
        return self.cfg.lr * warm * (decay if self.cfg.schedule == "cosine" else 1.0)

    def update(self, loss: Tensor) -> Tensor:
        """Backward, clip (unless clip is 0) and step. Returns the gradient norm before the clip.

        A step whose gradient is not finite changes no weight and is counted in `skipped`. The fused optimizer reads
        that from a tensor, as for GradScaler, so the host never waits.
        """
        loss.backward()
        parameters = list(self.network.parameters())
        norm = get_total_norm([p.grad for p in parameters if p.grad is not None], foreach=True)
        if self.cfg.clip:
            clip_grads_with_norm_(parameters, self.cfg.clip, norm, foreach=True)
        skipped = (~norm.isfinite()).float()
        self.optimizer.found_inf = skipped  # type: ignore[attr-defined]
        for group in self.optimizer.param_groups:
            group["lr"] = self.learning_rate()
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.updates += 1
        self.skipped += skipped
        return norm.detach()

    def state_dict(self) -> dict[str, Any]:
        return {"optimizer": self.optimizer.state_dict(), "updates": self.updates, "skipped": self.skipped}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.optimizer.load_state_dict(state["optimizer"])
        self.updates, self.skipped = state["updates"], state["skipped"].to(self.skipped.device)


class Average:
    """Exponential moving average of a network's weights; the decay warms up over the first updates."""

    def __init__(self, network: nn.Module, decay: float) -> None:
        # Not AveragedModel: at each update the host would wait for a GPU, to which the model's counter is copied.
        self.network = copy.deepcopy(network).requires_grad_(False).eval()
        self.decay = decay

    def update(self, network: nn.Module, updates: int) -> None:
        average = get_ema_multi_avg_fn(min(self.decay, (1 + updates) / (10 + updates)))
        average(list(self.network.parameters()), list(network.parameters()), None)


class Meter:
    """Running means of device scalars, which `fetch` gets in one transfer."""

    def __init__(self) -> None:
        self.sums: dict[str, Tensor] = {}
        self.counts: dict[str, int] = {}

    def add(self, name: str, value: Tensor) -> None:
        value = value.detach().double()
        self.sums[name] = self.sums[name] + value if name in self.sums else value
        self.counts[name] = self.counts.get(name, 0) + 1

    def fetch(self) -> dict[str, float]:
        if not self.sums:
            return {}
        values = torch.stack(list(self.sums.values())).tolist()
        means = {name: value / self.counts[name] for name, value in zip(self.sums, values, strict=True)}
        # JSON has no NaN: leave out a figure that a call does not have.
        means = {name: mean for name, mean in means.items() if math.isfinite(mean)}
        self.sums, self.counts = {}, {}
        return means

    def state_dict(self) -> dict[str, Any]:
        return {"sums": dict(self.sums), "counts": dict(self.counts)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.sums, self.counts = dict(state["sums"]), dict(state["counts"])
