"""The prediction kinds as affine maps to x0: x0 = a·x_t + c·prediction.

Sources: Ho et al. 2020 (epsilon), Salimans & Ho 2022 (v), Lipman et al. 2023 (flow), Karras et al. 2022, Table 1 (edm).
"""

from __future__ import annotations

import math
import numbers
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from fdkernels import schedulers
from fdkernels._op.checks import as_float, check_dense, check_positive, did_you_mean, is_readable, shown, warn_once
from fdkernels._op.views import broadcastable, column_or_expanded, readable

# Below this alpha, x0 is only the rounding error of the epsilon prediction, multiplied by 1/alpha.
MIN_EPSILON_ALPHA = 1e-4
# The dtypes that aminmax supports.
_ORDERED = (torch.float32, torch.float64, torch.float16, torch.bfloat16)


# Zero for levels that are on a schedule. Half-precision levels miss zero by about 1e-3.
_SCHEDULES: dict[str, Callable[[Any, Any], Any]] = {
    "VP": lambda alpha, sigma: alpha * alpha + sigma * sigma - 1,
    "VE": lambda alpha, sigma: alpha - 1,
    "flow": lambda alpha, sigma: alpha + sigma - 1,
}
SCHEDULE_TOLERANCE = 1e-2
# How many predictions are checked. A check costs some 50 µs, and a wrong schedule is wrong from the first call on.
_looks = iter(range(16))
_FROM_CUMPROD = "from alphas_cumprod, alpha = alphas_cumprod.sqrt() and sigma = (1 - alphas_cumprod).sqrt()"


@dataclass(frozen=True)
class _Kind:
    coefficients: Callable[[Tensor, Tensor, float | Tensor], tuple[Tensor, Tensor]]
    """(alpha, sigma, sigma_data) -> (a, c)"""
    needs: tuple[str, ...]
    target: Callable[[Tensor, Tensor, float | Tensor], tuple[Tensor, Tensor]]
    """(alpha, sigma, sigma_data) -> (p, q) of what the network is trained to predict, p·x0 + q·noise."""


# x_t = alpha·x0 + sigma·noise everywhere; alpha = 1 - sigma for flow_prediction and 1 for edm.
KINDS: dict[str, _Kind] = {
    "sample": _Kind(
        lambda alpha, sigma, data: (torch.zeros_like(sigma), torch.ones_like(sigma)),
        (),
        lambda alpha, sigma, data: (torch.ones_like(sigma), torch.zeros_like(sigma)),
    ),
    "epsilon": _Kind(
        lambda alpha, sigma, data: (alpha.reciprocal(), -sigma / alpha),
        ("alpha", "sigma"),
        lambda alpha, sigma, data: (torch.zeros_like(sigma), torch.ones_like(sigma)),
    ),
    "v_prediction": _Kind(
        lambda alpha, sigma, data: (alpha, -sigma),
        ("alpha", "sigma"),
        lambda alpha, sigma, data: (-sigma, alpha),
    ),
    "flow_prediction": _Kind(
        lambda alpha, sigma, data: (torch.ones_like(sigma), -sigma),
        ("sigma",),
        lambda alpha, sigma, data: (-torch.ones_like(sigma), torch.ones_like(sigma)),
    ),
    "edm": _Kind(
        lambda alpha, sigma, data: (data**2 / (sigma**2 + data**2), sigma * data / (sigma**2 + data**2).sqrt()),
        ("sigma",),
        lambda alpha, sigma, data: (
            sigma / (data * (sigma**2 + data**2).sqrt()),
            -data / (sigma**2 + data**2).sqrt(),
        ),
    ),
    "affine": _Kind(
        lambda alpha, sigma, data: (alpha, sigma), ("alpha", "sigma"), lambda alpha, sigma, data: (alpha, sigma)
    ),
}


@dataclass(frozen=True, eq=False)
class Prediction:
    """The kind and noise level of raw predictions, for `fused_fdiv_loss(prediction=...)`.

    | kind              | x_t             | x0 = a·x_t + c·prediction                              |
    |-------------------|-----------------|--------------------------------------------------------|
    | `sample`          | αx0 + σε        | the prediction itself                                  |
    | `epsilon`         | αx0 + σε        | (x_t - σ·prediction) / α                               |
    | `v_prediction`    | αx0 + σε        | α·x_t - σ·prediction, with v = αε - σx0, α² + σ² = 1   |
    | `flow_prediction` | (1-σ)x0 + σε    | x_t - σ·prediction, with u = ε - x0                    |
    | `edm`             | x0 + σε         | σd²/(σ²+σd²)·x_t + σσd/√(σ²+σd²)·prediction            |
    | `affine`          | any             | a·x_t + c·prediction; write `Prediction.affine`        |

    For a diffusers scheduler write `Prediction.from_scheduler(scheduler, noisy, t)`, which fills in everything.

    Args:
        kind: one of the above.
        noisy: x_t, the input of both networks, shaped like the student sample (None for `sample`).
        alpha, sigma: the noise level; a float, or student's leading dimensions, as (B,) or (B, F), or student's rank
            and broadcastable to it. A kind without α in its x0 ignores alpha, so a schedule's pair can be passed as it
            is. With `affine`, alpha holds a and sigma holds c, of any sign.
        sigma_data: EDM's σd, the data's standard deviation.

    Raises:
        ValueError: unknown kind (the message names the nearest), a missing alpha or sigma. If the host can read the
            values without a device sync (floats, CPU tensors), also: a non-finite or negative value, alpha below 1e-4
            with `epsilon`, α² + σ² other than 1 with `v_prediction`, σ above 1 with `flow_prediction`. `epsilon` warns
            once of levels on no usual schedule (α² + σ² = 1, α = 1, α + σ = 1), such as alphas_cumprod given as alpha.
        TypeError: alpha or sigma is neither a number nor a real tensor.

    Example:
        >>> alphas_cumprod = torch.linspace(0.999, 0.01, 1000)  # of a DDPM schedule
        >>> x, t = torch.randn(8, 3, 16, 16, requires_grad=True), torch.randint(0, 1000, (8,))
        >>> alpha, sigma = alphas_cumprod[t].sqrt(), (1 - alphas_cumprod[t]).sqrt()
        >>> x_t = fdk.add_noise(x.detach(), alpha, sigma)
        >>> eps_teacher, eps_fake = torch.randn(2, 8, 3, 16, 16)  # the networks' raw outputs
        >>> prediction = fdk.Prediction("epsilon", x_t, alpha=alpha, sigma=sigma)
        >>> loss = fdk.fused_fdiv_loss(x, eps_teacher, eps_fake, divergence="rkl", prediction=prediction)
    """

    kind: str
    noisy: Tensor | None = field(repr=False)
    alpha: float | Tensor | None = None
    sigma: float | Tensor | None = None
    sigma_data: float = 0.5

    def __post_init__(self) -> None:
        if not isinstance(self.kind, str) or self.kind not in KINDS:
            raise ValueError(f"prediction: unknown kind {shown(self.kind)}{did_you_mean(self.kind, KINDS)}")
        if self.kind == "sample":
            return
        if not isinstance(self.noisy, Tensor):
            raise TypeError(f"noisy: {self.kind} needs the tensor x_t, got {type(self.noisy).__name__}")
        for name in KINDS[self.kind].needs:
            check_level(self.argument(name), getattr(self, name), self.kind)
        check_positive("sigma_data", self.sigma_data)
        if not torch.compiler.is_compiling():
            self._check_values()

    @classmethod
    def affine(cls, noisy: Tensor, a: float | Tensor, c: float | Tensor) -> Prediction:
        """x0 = a·noisy + c·prediction with coefficients of your own, for a prediction that is no kind of the table.

        Args:
            noisy: x_t, shaped like the student sample.
            a, c: of any sign; with the shapes of alpha and sigma.

        Raises:
            ValueError: a or c is missing, or is not finite and the host can know it.
            TypeError: a or c is neither a number nor a real tensor.

        Example:
            >>> x0, noise, time = *torch.randn(2, 4, 3, 8, 8), torch.rand(4, 1, 1, 1)
            >>> x_t = (1 - time) * noise + time * x0  # time 1 is the data, and the network predicts x0 - ε
            >>> prediction = fdk.Prediction.affine(x_t, 1.0, 1 - time)
            >>> torch.allclose(prediction.to_x0(x0 - noise), x0, atol=1e-5)
            True
        """
        return cls("affine", noisy, alpha=a, sigma=c)

    @classmethod
    def from_scheduler(cls, scheduler: Any, noisy: Tensor, t: float | Tensor) -> Prediction:
        """Kind and noise level of a diffusers scheduler at t; x0 is that of the scheduler's step, without clipping.

        | scheduler                                  | x_t of its add_noise, scale_noise | t                        |
        |--------------------------------------------|-----------------------------------|--------------------------|
        | DDPM, DDIM, PNDM, LCM, TCD                 | √ᾱ·x0 + √(1-ᾱ)·ε                  | whole numbers            |
        | DPMSolver, UniPC, DEIS                     | √ᾱ·x0 + √(1-ᾱ)·ε                  | of scheduler.timesteps   |
        | the same with use_flow_sigmas              | (1-σ)x0 + σε                      | of scheduler.timesteps   |
        | EulerDiscrete, EulerAncestral, Heun, LMS   | x0 + σε                           | of scheduler.timesteps   |
        | EDMEuler, EDMDPMSolverMultistep            | x0 + σε                           | of scheduler.timesteps   |
        | FlowMatchEuler, FlowMatchHeun, FlowMatchLCM | (1-σ)x0 + σε                     | σ·num_train_timesteps    |

        Args:
            scheduler: recognized by its attributes, not by its class.
            noisy: x_t as add_noise makes it, not as scale_model_input returns it, which divides by √(σ²+1).
            t: the scheduler's own timesteps, of any real dtype; a number, (), (B,), or (B, F) for noisy (B, F, ...).
                On a GPU, a t that the scheduler does not have gives NaN, because a check would wait for the GPU.

        Make the first call after each set_timesteps before a CUDA graph is captured: it moves the scheduler's tables to
        t's device. Under torch.compile the tables are inputs of the graph, and every call moves them.

        Raises:
            ValueError: a t that the scheduler does not have, if the host can know it (numbers, CPU tensors); an unknown
                prediction_type; invert_sigmas; a DPMSolver, UniPC or DEIS scheduler before set_timesteps, whose
                add_noise has its sigmas in reverse; and whatever `Prediction` refuses, such as `epsilon` at
                zero terminal SNR.
            TypeError: a scheduler without such tables.

        Example:
            >>> from diffusers import DDPMScheduler
            >>> scheduler = DDPMScheduler(prediction_type="v_prediction")  # or .from_pretrained(...)
            >>> x, noise, t = *torch.randn(2, 4, 3, 8, 8), torch.randint(0, 1000, (4,))
            >>> prediction = fdk.Prediction.from_scheduler(scheduler, scheduler.add_noise(x, noise, t), t)
            >>> prediction.kind
            'v_prediction'
        """
        kind, alpha, sigma, sigma_data = schedulers.levels(scheduler, noisy, t)
        return cls(kind, noisy, alpha, sigma, sigma_data)

    def to_x0(self, prediction: Tensor, *, backend: str = "auto") -> Tensor:
        """x0 = a·x_t + c·prediction of a raw prediction, in its dtype, in one pass.

        Args:
            prediction: the network's output, shaped like `noisy`, in any floating dtype.
            backend: as in `fused_fdiv_loss`.

        Returns:
            x0, computed in float32 (float64 if an input is float64) without cancellation at high noise, and rounded
            once. With `sample`, the prediction itself. Differentiable with respect to `prediction`.

        Raises:
            ValueError: a shape, dtype or device that does not fit; noisy or a level that requires a gradient, which it
                would not get: detach it, or compute x0 in PyTorch.
            TypeError: not a tensor.
            RuntimeError: a backend that is not available, with the reason.

        Example:
            >>> x0, sigma = torch.randn(4, 3, 8, 8), torch.rand(4)
            >>> x_t, noise = fdk.add_noise(x0, None, sigma, return_noise=True)  # a flow: (1-σ)x0 + σε
            >>> velocity = noise - x0
            >>> torch.allclose(fdk.Prediction("flow_prediction", x_t, sigma=sigma).to_x0(velocity), x0, atol=1e-5)
            True
        """
        from fdkernels.noising.api import mapped  # which imports this module

        return mapped(self, "x0", "prediction", prediction, backend)

    def from_x0(self, x0: Tensor, *, backend: str = "auto") -> Tensor:
        """The raw prediction that stands for x0: (x0 - a·x_t) / c, the inverse of `to_x0`; its arguments are the same.

        If c is 0, as for `v_prediction` at σ = 0, x0 does not determine a prediction: the result is NaN or infinite.

        Example:
            >>> x0 = torch.ones(1, 1, 2, 2)
            >>> x_t = fdk.add_noise(x0, 0.8, 0.6, noise=torch.zeros_like(x0))
            >>> fdk.Prediction("v_prediction", x_t, 0.8, 0.6).from_x0(x0).flatten()  # α·ε - σ·x0
            tensor([-0.6000, -0.6000, -0.6000, -0.6000])
        """
        from fdkernels.noising.api import mapped

        return mapped(self, "prediction", "x0", x0, backend)

    def argument(self, name: str) -> str:
        """The caller's name for a level."""
        return {"alpha": "a", "sigma": "c"}.get(name, name) if self.kind == "affine" else name

    def _check_values(self) -> None:
        ranges = {name: host_range(getattr(self, name)) for name in KINDS[self.kind].needs}
        least = -sys.float_info.max if self.kind == "affine" else 0
        for name, known in ranges.items():
            if known is not None and not (known[0] >= least and known[1] < math.inf):
                bad = beyond(getattr(self, name), least)
                at_least = "" if least else " >= 0"
                raise ValueError(f"{self.argument(name)}: expected finite numbers{at_least}, got {bad}")
        alpha, sigma = ranges.get("alpha"), ranges["sigma"]
        if self.kind == "epsilon" and alpha is not None and alpha[0] < MIN_EPSILON_ALPHA:
            raise ValueError(
                f"alpha: epsilon needs alpha >= {MIN_EPSILON_ALPHA} (x0 divides by it), got {alpha[0]!r}; "
                "use a v- or flow-predicting network at terminal noise, or leave such timesteps out"
            )
        if self.kind == "v_prediction":
            off = self._largest(_SCHEDULES["VP"])
            if off is not None and off > SCHEDULE_TOLERANCE:
                raise ValueError(
                    f"alpha, sigma: v_prediction needs alpha² + sigma² = 1, got a difference of {off!r}; "
                    f"{_FROM_CUMPROD}"
                )
        are_known = alpha is not None and sigma is not None
        if self.kind == "epsilon" and are_known and next(_looks, None) is not None and not self._is_on_a_schedule():
            warn_once(
                "levels of no schedule",
                "alpha, sigma: expected levels of a schedule (VP: alpha² + sigma² = 1, VE: alpha = 1, or flow: alpha + "
                f"sigma = 1), got others, which scale the gradient wrongly where they are a mistake; {_FROM_CUMPROD}",
            )
        if self.kind == "flow_prediction" and sigma is not None and sigma[1] > 1:
            raise ValueError(f"sigma: flow_prediction needs sigma in [0, 1], got {sigma[1]!r}")

    def _is_on_a_schedule(self) -> bool:
        """Whether one schedule fits all the levels; True also if the host can't read them."""
        largest = map(self._largest, _SCHEDULES.values())
        return any(off is None or off <= SCHEDULE_TOLERANCE for off in largest)

    def _largest(self, difference: Callable[[Any, Any], Any]) -> float | None:
        """The largest |difference(alpha, sigma)| over x_t; None if the host can't read the levels."""
        levels: tuple[Any, Any] = (self.alpha, self.sigma)
        tensors = [level for level in levels if isinstance(level, Tensor)]
        if not tensors:
            return abs(difference(*map(float, levels)))
        if not all(is_readable(level) and level.numel() for level in tensors):
            return None
        if len(tensors) == 2 and tensors[0].shape == tensors[1].shape:
            return difference(*(level.detach().double() for level in tensors)).abs().max().item()
        return difference(*(self._aligned(name) for name in ("alpha", "sigma"))).abs().max().item()

    def _aligned(self, name: str) -> Tensor:
        """A level that the host can read, in float64 on the CPU, with dimensions that broadcast over x_t."""
        value = getattr(self, name)
        if not isinstance(value, Tensor):
            return torch.tensor(float(value), dtype=torch.float64, device="cpu")
        value = value.detach().double()
        if value.dim() == 0 or self.noisy is None:
            return value
        return broadcastable(name, value, torch.empty((), device="cpu").expand(self.noisy.shape))

    def levels(self) -> tuple[float | Tensor, float | Tensor]:
        """(alpha, sigma) as the kernels read them: floats, or float32 or float64 tensors; 1 if the kind needs none."""
        alpha, sigma = (getattr(self, name) if name in KINDS[self.kind].needs else 1.0 for name in ("alpha", "sigma"))
        return (
            readable(alpha.detach()) if isinstance(alpha, Tensor) else float(alpha),
            readable(sigma.detach()) if isinstance(sigma, Tensor) else float(sigma),
        )


def coefficients(
    call: Any, kind: str, shape: tuple[int, int], device: torch.device, *, target: bool = False
) -> tuple[Tensor, Tensor]:
    """(a, c) of x0 = a·x_t + c·prediction in float64, broadcastable to the elements, from an op's arguments.

    target: (p, q) of the target instead.
    """
    levels: list[Tensor] = []
    for table, number in ((call.alpha, call.fixed_alpha), (call.sigma, call.fixed_sigma)):
        level = column_or_expanded(table, shape)
        levels.append(torch.ones(1, 1, dtype=torch.float64, device=device) * number if level is None else level)
    alpha, sigma = levels
    row = KINDS[kind]
    return (row.target if target else row.coefficients)(alpha, sigma, call.sigma_data)


def check_levels(kind: Any, alpha: Any, sigma: Any) -> None:
    """Check a kind's name, and the values of levels that it is given, if the host can read them."""
    if not isinstance(kind, str) or kind not in KINDS or kind == "affine":
        known = [name for name in KINDS if name != "affine"]
        raise ValueError(f"prediction: unknown kind {shown(kind)}{did_you_mean(kind, known)}")
    for name, level in (("alpha", alpha), ("sigma", sigma)):
        if level is None:
            continue
        check_level(name, level, kind)
        known_range = None if torch.compiler.is_compiling() else host_range(level)
        if known_range is not None and not (known_range[0] >= 0 and known_range[1] < math.inf):
            raise ValueError(f"{name}: expected finite numbers >= 0, got {beyond(level, 0.0)}")


def check_level(name: str, value: float | Tensor | None, kind: str) -> None:
    if value is None:
        raise ValueError(f"{name}: {kind} needs it, got None")
    if isinstance(value, Tensor):
        check_dense(name, value)
        if value.is_complex() or value.dtype == torch.bool or value.is_quantized:
            raise TypeError(f"{name}: expected a real number or tensor, got {value.dtype}")
    elif isinstance(value, bool) or not isinstance(value, numbers.Real):
        raise TypeError(f"{name}: expected a number or a tensor, got {type(value).__name__}")


def host_range(value: float | Tensor) -> tuple[float, float] | None:
    """(least, largest), NaN if a value is NaN; None if the host can't read the values, or there are none."""
    if not isinstance(value, Tensor):
        return as_float(value), as_float(value)
    if not is_readable(value) or not value.numel():
        return None
    value = value.detach()
    least, largest = (value if value.dtype in _ORDERED else value.double()).aminmax()
    return least.item(), largest.item()


def beyond(value: float | Tensor, least: float) -> str:
    """The first values that are not finite, or below `least`, for a message."""
    if not isinstance(value, Tensor):
        return repr(as_float(value))
    value = value.detach().double().reshape(-1)
    return ", ".join(map(repr, value[~(torch.isfinite(value) & (value >= least))][:4].tolist()))
