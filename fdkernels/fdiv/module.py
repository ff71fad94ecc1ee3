"""`fused_fdiv_loss` as a module."""

from __future__ import annotations

import copy
from typing import Any

from torch import Tensor, nn

from fdkernels import backends
from fdkernels._op.checks import check_choice, warn
from fdkernels.divergences import Divergence, resolve
from fdkernels.fdiv.api import fused_fdiv_loss
from fdkernels.fdiv.scale import DmdScale
from fdkernels.fdiv.validation import check_gan_weight, check_options, check_ratio_range
from fdkernels.normalizer import RatioNormalizer


class FDivLoss(nn.Module):
    """`fused_fdiv_loss` with fixed settings; the normalizer is its only state.

    Args:
        divergence, ratio_range, normalize_weight, scale, nonfinite, reduction, gan_weight, group, backend: as in
            `fused_fdiv_loss`.
        bins, t_range, decay: arguments of the `RatioNormalizer`; bins=None: no normalizer.
        normalizer: your own (`RatioNormalizer.from_samples`, say), in place of bins, t_range and decay.

    Example:
        >>> loss_fn = fdk.FDivLoss("kl", bins=10, t_range=(0.0, 1.0))
        >>> x, teacher_x0, fake_x0 = torch.randn(3, 16, 3, 8, 8).unbind()
        >>> logits, t = torch.randn(16, 2), torch.rand(16)
        >>> loss, stats = loss_fn(x.requires_grad_(), teacher_x0, fake_x0, logits, t, return_stats=True)
        >>> loss.backward()
        >>> print(f"{stats.weight.mean().item():.3f}")  # h is divided by its mean over the batch
        1.000
        >>> list(loss_fn.state_dict())
        ['normalizer.mean']
    """

    def __init__(
        self,
        divergence: str | Divergence = "js",
        bins: int | None = 10,
        t_range: tuple[float, float] = (0.0, 1.0),
        decay: float = 0.9,
        *,
        normalizer: RatioNormalizer | None = None,
        ratio_range: tuple[float, float] | None = (0.1, 20.0),
        normalize_weight: bool = True,
        scale: str | DmdScale | None = "dmd",
        nonfinite: str = "propagate",
        reduction: str = "mean",
        gan_weight: float | None = None,
        group: Any | None = None,
        backend: str = "auto",
    ) -> None:
        super().__init__()
        self.divergence = resolve(divergence)
        check_choice("backend", backend, ("auto", *backends.BACKENDS))
        if normalizer is None and bins is not None:
            normalizer = RatioNormalizer(bins, t_range, decay)
        self.normalizer = normalizer
        check_ratio_range(ratio_range)
        check_options(scale, nonfinite, reduction)
        if gan_weight is not None:
            check_gan_weight(gan_weight)
        self.options = {
            "ratio_range": ratio_range, "normalize_weight": normalize_weight, "scale": scale,
            "nonfinite": nonfinite, "reduction": reduction, "gan_weight": gan_weight, "group": group,
            "backend": backend,
        }  # fmt: skip

    def forward(
        self,
        student: Tensor,
        teacher: Tensor,
        fake: Tensor,
        logits: Tensor | None = None,
        t: Tensor | None = None,
        **per_call: Any,
    ) -> Any:
        """The loss; `per_call` takes any keyword of `fused_fdiv_loss` (mask, prediction, return_stats, ...)."""
        options = {"divergence": self.divergence, "normalizer": self.normalizer, **self.options, **per_call}
        # Without logits there is no ratio: nothing to normalize, and no statistics to take over the group.
        if logits is None and (options.get("weight") is not None or resolve(options["divergence"]).kernel == "rkl"):
            options |= {"normalizer": None, "group": None}
        return fused_fdiv_loss(student, teacher, fake, logits, t, **options)

    def extra_repr(self) -> str:
        return f"divergence={self.divergence.name!r}, " + ", ".join(f"{k}={v!r}" for k, v in self.options.items())

    def __getstate__(self) -> dict[str, Any]:
        """The state for pickle and torch.save, without the process group, which they can't hold."""
        state = {**self._state(), "options": dict(self.options)}
        if self.options["group"] is not None:
            warn("FDivLoss: a pickle can't hold the process group: group is None once loaded")
            state["options"]["group"] = None
        return state

    def __copy__(self) -> FDivLoss:
        copied = type(self).__new__(type(self))
        copied.__dict__.update(self._state())
        return copied

    def _state(self) -> dict[str, Any]:
        """All attributes but the function that `compile()` made: it belongs to this process and calls this module."""
        return {name: value for name, value in self.__dict__.items() if name != "_compiled_call_impl"}

    def __deepcopy__(self, memo: dict[int, Any]) -> FDivLoss:
        """A copy that shares the process group, so that `AveragedModel` can make one."""
        group = self.options["group"]
        if group is not None:
            memo[id(group)] = group
        copied = memo[id(self)] = type(self).__new__(type(self))
        copied.__dict__.update(copy.deepcopy(self._state(), memo))
        return copied
