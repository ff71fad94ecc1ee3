"""A diffusers scheduler's prediction kind and noise levels, read from its config and its tables.

diffusers is never imported: any object with the attributes of a family in `_FAMILIES` is a scheduler. The scheduler
defines what is right: its add_noise or scale_noise makes x_t, its step or convert_model_output makes x0 (unclipped).
"""

from __future__ import annotations

import weakref
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fdkernels._op.checks import check_dense, check_number, did_you_mean, is_readable, is_traced, shown
from fdkernels._op.floats import filled

_Level = tuple[Tensor, Tensor]  # (alpha, sigma) of x_t = alpha·x0 + sigma·noise
# (alpha, sigma, sigma_data) -> a kind of `Prediction` and its levels
_Conversion = Callable[[Tensor, Tensor, float], tuple[str, Tensor, Tensor]]


def _named(kind: str) -> _Conversion:
    return lambda alpha, sigma, data: (kind, alpha, sigma)


def _scaled_v(alpha: Tensor, sigma: Tensor, data: float) -> tuple[str, Tensor, Tensor]:
    """x0 = x_t/(σ²+1) - v·σ/√(σ²+1), where the network predicts v from its input x_t/√(σ²+1)."""
    square = sigma * sigma + 1
    return "affine", square.reciprocal(), -sigma / square.sqrt()


def _negative_edm(alpha: Tensor, sigma: Tensor, data: float) -> tuple[str, Tensor, Tensor]:
    """EDM's x0 with the opposite sign of the network's output."""
    square = sigma * sigma + data * data
    return "affine", data * data / square, -sigma * data / square.sqrt()


def _vp_of_ratio(ratio: Tensor) -> _Level:
    alpha = (ratio * ratio + 1).rsqrt()
    return alpha, ratio * alpha


@dataclass(frozen=True)
class _Family:
    name: str
    has: tuple[str, ...]  # attributes that are neither None nor False; "config." names one of its config
    lacks: tuple[str, ...]
    levels: Callable[[Tensor], _Level]  # from a value of the table
    x0: dict[str, _Conversion]  # by prediction_type
    table: tuple[str, ...] = ("timesteps", "sigmas")  # where each timestep's level is; alphas_cumprod has it at [t]
    is_continuous: bool = False  # t is sigma·num_train_timesteps, also between the table's entries


_SAMPLE = {"sample": _named("sample"), "original_sample": _named("sample")}
_VP = {"epsilon": _named("epsilon"), "v_prediction": _named("v_prediction"), **_SAMPLE}
_VE = {"epsilon": _named("epsilon"), "v_prediction": _scaled_v, **_SAMPLE}
_FLOW = {
    "flow_prediction": _named("flow_prediction"),
    "epsilon": _named("epsilon"),
    "v_prediction": lambda alpha, sigma, data: ("affine", alpha, -sigma),  # v's formula, but α² + σ² is not 1
    **_SAMPLE,
}
_EDM = {"epsilon": _named("edm"), "v_prediction": _negative_edm}
# Attributes of schedulers that are refused because add_noise and step disagree: at every second timestep of KDPM2 and
# DPMSolverSDE, and in SASolver.
_MIDPOINTS = ("sigmas_interpol", "mid_point_sigma")
_SA_SOLVER = "config.predictor_order"

_FAMILIES = (
    # DDPM, DDIM, PNDM, LCM, TCD
    _Family(
        "VP",
        has=("alphas_cumprod", "config.prediction_type"),
        lacks=("sigmas",),
        table=("alphas_cumprod",),
        levels=lambda cumprod: (cumprod.sqrt(), (1 - cumprod).sqrt()),
        x0=_VP,
    ),
    # DPMSolver, UniPC, DEIS: sigmas are sigma/alpha
    _Family(
        "VP (use_flow_sigmas=False)",
        has=("alpha_t", "sigmas", "config.prediction_type"),
        lacks=("config.use_flow_sigmas", _SA_SOLVER),
        levels=_vp_of_ratio,
        x0=_VP,
    ),
    _Family(
        "flow (use_flow_sigmas=True)",
        has=("alpha_t", "sigmas", "config.prediction_type", "config.use_flow_sigmas"),
        lacks=(_SA_SOLVER,),
        levels=lambda sigma: (1 - sigma, sigma),
        x0=_FLOW,
    ),
    # EulerDiscrete, EulerAncestralDiscrete, HeunDiscrete, LMSDiscrete
    _Family(
        "VE",
        has=("alphas_cumprod", "sigmas", "timesteps", "config.prediction_type"),
        lacks=("alpha_t", *_MIDPOINTS),
        levels=lambda sigma: (torch.ones_like(sigma), sigma),
        x0=_VE,
    ),
    # EDMEuler, EDMDPMSolverMultistep
    _Family(
        "EDM",
        has=("sigmas", "timesteps", "config.sigma_data", "config.prediction_type"),
        lacks=("alphas_cumprod",),
        levels=lambda sigma: (torch.ones_like(sigma), sigma),
        x0=_EDM,
    ),
    # FlowMatchEulerDiscrete, FlowMatchHeunDiscrete, FlowMatchLCM
    _Family(
        "flow",
        has=("sigmas", "timesteps", "scale_noise", "config.num_train_timesteps"),
        lacks=("alphas_cumprod", "config.prediction_type"),
        levels=lambda sigma: (1 - sigma, sigma),
        x0=_FLOW,
        is_continuous=True,
    ),
)


def levels(scheduler: Any, noisy: Tensor, t: float | Tensor) -> tuple[str, float | Tensor, float | Tensor, float]:
    """(kind, alpha, sigma, sigma_data) as `Prediction` takes them; with kind "affine" the levels are (a, c)."""
    family = _family(scheduler)
    by_type, found = family.x0, _get(scheduler, "config.prediction_type")
    kind = "flow_prediction" if found is None else found  # FlowMatch schedulers have none
    if not isinstance(kind, str) or kind not in by_type:
        raise ValueError(
            f"scheduler: {family.name} schedules have no prediction_type {shown(kind)}{did_you_mean(kind, by_type)}"
        )
    data = float(_get(scheduler, "config.sigma_data") or 0.5)
    alpha, sigma = _looked_up(scheduler, family, _as_timesteps(t, noisy))
    name, first, second = by_type[kind](alpha, sigma, data)
    return name, _shaped(first, noisy), _shaped(second, noisy), data


def noise_levels(scheduler: Any, noisy: Tensor, t: float | Tensor) -> tuple[float | Tensor, float | Tensor]:
    """(alpha, sigma) of the x_t = alpha·x0 + sigma·noise that the scheduler's add_noise or scale_noise makes."""
    family = _family(scheduler)
    alpha, sigma = _looked_up(scheduler, family, _as_timesteps(t, noisy))
    return _shaped(alpha, noisy), _shaped(sigma, noisy)


def _family(scheduler: Any) -> _Family:
    for family in _FAMILIES:
        if all(_has(scheduler, name) for name in family.has) and all(_lacks(scheduler, name) for name in family.lacks):
            _check_ready(scheduler, family)
            return family
    raise TypeError(
        f"scheduler: expected one with the tables of a VP, VE, EDM or flow schedule, got {type(scheduler).__name__}; "
        "write Prediction(kind, noisy, alpha=..., sigma=...), or Prediction.affine(noisy, a, c)"
    )


def _get(scheduler: Any, name: str) -> Any:
    if name.startswith("config."):
        return getattr(getattr(scheduler, "config", None), name.removeprefix("config."), None)
    return getattr(scheduler, name, None)


def _has(scheduler: Any, name: str) -> bool:
    value = _get(scheduler, name)
    return value is not None and value is not False


def _lacks(scheduler: Any, name: str) -> bool:
    return not (_has(scheduler, name) if name.startswith("config.") else hasattr(scheduler, name))


def _check_ready(scheduler: Any, family: _Family) -> None:
    """Refuses the two states in which add_noise contradicts the rest of the scheduler."""
    if "alpha_t" in family.has and not _has(scheduler, "num_inference_steps"):
        raise ValueError(
            f"scheduler: expected set_timesteps to have been called, got a new {type(scheduler).__name__}, whose "
            "add_noise has sigmas in the reverse order of its timesteps; where x_t = alpha_t[t]·x0 + sigma_t[t]·noise, "
            "write Prediction(kind, noisy, alpha=scheduler.alpha_t[t], sigma=scheduler.sigma_t[t])"
        )
    if _has(scheduler, "config.invert_sigmas"):
        raise ValueError(
            "scheduler: expected invert_sigmas=False, got True, with which scale_noise and step disagree; where "
            "x_t = (1-sigma)·noise + sigma·x0 and the network predicts x0 - noise, write Prediction.affine(noisy, 1.0, "
            "1 - sigma)"
        )


def _as_timesteps(t: float | Tensor, noisy: Tensor) -> Tensor:
    """t as a tensor: () or, on noisy's device, (B,) or (B, F)."""
    if not isinstance(noisy, Tensor):
        raise TypeError(f"noisy: expected the tensor x_t, got {type(noisy).__name__}")
    if not isinstance(t, Tensor):
        return filled((), check_number("t", t), torch.device("cpu"))
    check_dense("t", t)
    if t.is_complex() or t.dtype == torch.bool or t.is_quantized:
        raise TypeError(f"t: expected a real dtype, got {t.dtype}")
    if t.dim() > 2 or t.shape != noisy.shape[: t.dim()]:
        expected = " or ".join(str(tuple(noisy.shape[:d])) for d in (1, 2) if d <= noisy.dim())
        raise ValueError(f"t: expected a number or shape {expected} like noisy's, got {tuple(t.shape)}")
    if t.device != noisy.device and not (t.dim() == 0 and t.device.type == "cpu"):
        raise ValueError(f"t: expected device {noisy.device} like noisy, got {t.device}")
    return t.detach()


def _shaped(level: Tensor, noisy: Tensor) -> float | Tensor:
    """A level as `Prediction` takes it: a number, or a tensor on noisy's device."""
    if level.dim() == 0 and is_readable(level):
        return level.item()
    return level.to(noisy.device, non_blocking=noisy.device.type != "cpu")


class _Table(NamedTuple):
    rows: Tensor  # timesteps in ascending order, alpha, sigma, all float64; the last column is NaN
    dtype: torch.dtype  # of the scheduler's timesteps; the scheduler compares in it


def _looked_up(scheduler: Any, family: _Family, t: Tensor) -> _Level:
    """(alpha, sigma) at each t; NaN where the scheduler has no such t, which raises if the host can read t."""
    table = _table(scheduler, family, t.device)
    wanted = t.to(table.dtype).double() if table.dtype.is_floating_point else t.double()
    at = torch.searchsorted(table.rows[0, :-1], wanted.contiguous())  # the last column if t is beyond all, or NaN
    found = table.rows[:, at]
    is_foreign = found[0] != wanted
    if family.is_continuous:
        ratio = t.double() / scheduler.config.num_train_timesteps
        ratio = ratio.masked_fill(ratio.clamp(0, 1) != ratio, torch.nan)
        sigma = torch.where(is_foreign, ratio, found[2])
        alpha = 1 - sigma
    else:
        alpha, sigma = found[1:].masked_fill(is_foreign, torch.nan).unbind()
    if is_readable(t) and sigma.isnan().any():
        bad = t.reshape(-1)[sigma.isnan().reshape(-1)].tolist()
        raise ValueError(f"t: expected {_expected(scheduler, family, table)}, got {', '.join(map(repr, bad[:4]))}")
    return alpha, sigma


def _expected(scheduler: Any, family: _Family, table: _Table) -> str:
    if family.is_continuous:
        return f"numbers from 0 to {scheduler.config.num_train_timesteps}, sigma·num_train_timesteps"
    least, largest = table.rows[0, 0].item(), table.rows[0, -2].item()
    if len(family.table) == 1:
        return f"whole numbers from 0 to {largest:.0f}"
    return (
        f"members of scheduler.timesteps, {table.rows.shape[1] - 1} from {largest!r} to {least!r} after set_timesteps"
    )


# By scheduler, held weakly so that it is not kept alive; then by device.
_tables: weakref.WeakKeyDictionary[Any, dict[torch.device, tuple[list[Any], _Table]]] = weakref.WeakKeyDictionary()


def _table(scheduler: Any, family: _Family, device: torch.device) -> _Table:
    """The scheduler's table on device, moved there once for each set_timesteps."""
    if is_traced():
        return _built(scheduler, family, device)
    sources = [getattr(scheduler, name) for name in family.table]
    # A source is new if it is another tensor, or was written in place. Inference tensors have no version.
    stamp = [(family, 0), *((source, 0 if source.is_inference() else source._version) for source in sources)]
    try:
        by_device = _tables.setdefault(scheduler, {})
    except TypeError:  # the scheduler's class has no hash, or allows no weak references
        return _built(scheduler, family, device)
    kept, table = by_device.get(device, ([], None))
    is_current = len(kept) == len(stamp) and all(
        old[0] is new[0] and old[1] == new[1] for old, new in zip(kept, stamp, strict=True)
    )
    if table is None or not is_current:
        table = _built(scheduler, family, device)
        if device.type == "cuda":  # wait once, because any stream may read the table next
            torch.cuda.current_stream(device).synchronize()
        by_device[device] = (stamp, table)
    return table


def _built(scheduler: Any, family: _Family, device: torch.device) -> _Table:
    # A copy to the CPU must block, because the host reads it next.
    is_async = device.type != "cpu"
    tensors = [getattr(scheduler, name).detach().to(device, non_blocking=is_async) for name in family.table]
    values = tensors[-1].double()
    if len(tensors) == 1:
        timesteps, dtype = torch.arange(len(values), dtype=torch.float64, device=device), torch.int64
    else:
        timesteps, order = tensors[0].double().sort(stable=True)
        values, dtype = values[order], tensors[0].dtype
        # Look-ups find the first of several entries of one timestep. index_for_timestep takes the second, so the second
        # value is copied to the first.
        values = torch.cat((values[:-1].where(timesteps[1:] != timesteps[:-1], values[1:]), values[-1:]))
    rows = torch.stack((timesteps, *family.levels(values)))
    return _Table(torch.nn.functional.pad(rows, (0, 1), value=torch.nan), dtype)
