"""The public functions over the op `noising`: signature, validation, choice of backend."""

from __future__ import annotations

import math
import sys
from typing import Any

import torch
from torch import Tensor

from fdkernels import backends
from fdkernels._op import registry
from fdkernels._op.arguments import Table
from fdkernels._op.checks import check_constant, check_like, check_samples
from fdkernels._op.views import as_table, dense_samples, memory_order, readable
from fdkernels.noising import reference
from fdkernels.noising.arguments import NOISING, NoisingArguments, noising_outputs
from fdkernels.prediction import Prediction, beyond, check_level, host_range

_NOISING = registry.register(
    registry.Op("noising", "add_noise", NOISING, "Tensor y, Tensor noise", noising_outputs, reference.noising),
    "fdkernels.noising.triton_launch",
)
registry.differentiable_linear(_NOISING)


def add_noise(
    x0: Tensor,
    alpha: float | Tensor | None,
    sigma: float | Tensor,
    noise: Tensor | None = None,
    generator: torch.Generator | None = None,
    return_noise: bool = False,
    *,
    backend: str = "auto",
) -> Any:
    """x_t = α·x0 + σ·ε in one pass, with ε given or drawn in the kernel.

        x_t = alpha · x0 + sigma · noise         float32 (float64 if an input is float64), rounded once

    Works for every schedule: variance preserving, flow (alpha=None), EDM (α = 1), TrigFlow (cos t, sin t).

    Args:
        x0: (B, *S), floating; gets a gradient, α times that of x_t.
        alpha, sigma: floats, or tensors of x0's leading dimensions, as (B,) or (B, F), or of x0's rank and
            broadcastable to it. Constants. alpha=None is flow's 1 - sigma, formed in float64.
        noise: ε, shaped like x0, of any floating dtype; a constant. None: standard normal numbers are drawn.
        generator: of x0's device, for drawn noise; None: the device's default generator. A call takes one integer of
            it, which seeds Philox4x32-10; the counter is the element's index. So noise depends on neither backend nor
            memory layout (but for a last place of float32), and a replayed CUDA graph draws new noise. Drawn noise is
            rounded to x0's dtype. As with torch.randn, an explicit generator does not go together with activation
            checkpointing, which restores the default one alone, nor with torch.compile(fullgraph=True), and a CUDA
            graph has to know it (`graph.register_generator_state`).
        return_noise: return (x_t, ε): the noise that was given, or the drawn one in x0's dtype.
        backend: as in `fused_fdiv_loss`.

    Returns:
        x_t in x0's dtype and memory layout (with the batch outermost), or (x_t, noise). In layouts other than
        contiguous, such as channels_last, drawn noise costs two or three copies.

    Raises:
        ValueError: a shape, dtype or device that does not fit; a generator of another device, or beside noise; a level
            that is not finite, or a sigma outside [0, 1] beside alpha=None, if the host can know it; noise or a level
            that requires a gradient.
        TypeError: not a tensor; a level that is neither a number nor a real tensor.
        RuntimeError: a backend that is not available, with the reason.

    Source: Song et al. 2021 (perturbation kernels); Philox: Salmon et al. 2011.

    Example:
        >>> x0, t = torch.randn(8, 3, 16, 16), torch.rand(8)
        >>> x_t, noise = fdk.add_noise(x0, t.cos(), t.sin(), return_noise=True)
        >>> wanted = t.cos().view(8, 1, 1, 1) * x0 + t.sin().view(8, 1, 1, 1) * noise
        >>> torch.allclose(x_t, wanted, atol=1e-6)
        True
    """
    check_samples("x0", x0)
    if noise is not None:
        check_like("noise", noise, x0, "x0")
        check_constant("noise", noise)
        if generator is not None:
            raise ValueError("generator: expected without noise")
    is_flow, alpha = alpha is None, 1.0 if alpha is None else alpha
    for name, level in (("alpha", alpha), ("sigma", sigma)):
        check_level(name, level, "add_noise")
        if not torch.compiler.is_compiling():
            known = host_range(level)
            if known is not None and not (-math.inf < known[0] and known[1] < math.inf):
                raise ValueError(f"{name}: expected finite numbers, got {beyond(level, -sys.float_info.max)}")
            if known is not None and is_flow and not (known[0] >= 0 and known[1] <= 1):
                bad = known[0] if known[0] < 0 else known[1]
                raise ValueError(f"{name}: alpha=None needs sigma in [0, 1], got {bad!r}")
        if isinstance(level, Tensor):
            check_constant(name, level)
    levels = tuple(readable(v) if isinstance(v, Tensor) else float(v) for v in (alpha, sigma))
    seed = None if noise is not None else _seed(x0, generator)
    call = NoisingArguments(
        x0, noise, seed, "flow" if is_flow else "noisy", "sample", Table(), Table(), 1.0, 1.0, 1.0,
        with_noise=return_noise and noise is None,
    )  # fmt: skip
    x_t, drawn = _run("add_noise", ("x0", "alpha", "sigma"), levels, call, backend)
    if not return_noise:
        return x_t
    return x_t, drawn if noise is None else noise


def mapped(prediction: Prediction, result: str, name: str, x: Tensor, backend: str) -> Tensor:
    """`Prediction.to_x0` and `Prediction.from_x0`, of which x is the argument."""
    check_samples(name, x)
    if prediction.kind == "sample":
        backends.choose(backend, x.device.type)
        return x
    assert prediction.noisy is not None  # `Prediction` requires it
    check_like("noisy", prediction.noisy, x, name)
    check_constant("noisy", prediction.noisy)
    for level in ("alpha", "sigma"):
        if isinstance(value := getattr(prediction, level), Tensor):
            check_constant(prediction.argument(level), value)
    public = "Prediction.to_x0" if result == "x0" else "Prediction.from_x0"
    names = (name, prediction.argument("alpha"), prediction.argument("sigma"))
    call = NoisingArguments(
        x, prediction.noisy, None, result, prediction.kind, Table(), Table(), 1.0, 1.0, float(prediction.sigma_data),
        with_noise=False,
    )  # fmt: skip
    return _run(public, names, prediction.levels(), call, backend)[0]


def _run(
    public: str, names: tuple[str, str, str], levels: tuple[float | Tensor, ...], call: NoisingArguments, backend: str
) -> tuple[Tensor, Tensor]:
    """The op on tensors of any layout; the call has no levels yet. names: of x and the levels, in messages."""
    x, seed = call.x, call.seed
    order = memory_order(x)
    inverse = None if order is None else tuple(sorted(range(len(order)), key=order.__getitem__))
    chosen = backends.choose(backend, x.device.type)
    backends.log_choice(public, chosen, x.device.type)
    # Drawn numbers follow the indices of x, so x comes in their order.
    kept = None if seed is not None else order
    alpha, sigma = (
        as_table(argument, level, x, kept, names[0]) if isinstance(level, Tensor) else Table()
        for argument, level in zip(names[1:], levels, strict=True)
    )
    fixed_alpha, fixed_sigma = (1.0 if isinstance(level, Tensor) else level for level in levels)

    def samples(v: Tensor) -> Tensor:
        return dense_samples(v if kept is None else v.permute(kept))

    results: tuple[Tensor, Tensor] = registry.run_linear(_NOISING, chosen, call._replace(
        x=samples(x), noise=None if call.noise is None else samples(call.noise.detach()), alpha=alpha, sigma=sigma,
        fixed_alpha=fixed_alpha, fixed_sigma=fixed_sigma,
    ))  # fmt: skip
    if order is None or inverse is None:
        return results
    y, drawn = (v if v.dim() == 1 and v.numel() == 0 else _in_order(v, seed, order, inverse) for v in results)
    return y, drawn


def _in_order(v: Tensor, seed: Tensor | None, order: tuple[int, ...], inverse: tuple[int, ...]) -> Tensor:
    """A result in the shape and the memory order of x."""
    return (v if seed is None else v.permute(order).contiguous()).permute(inverse)


def _seed(x0: Tensor, generator: torch.Generator | None) -> Tensor:
    """One integer on x0's device, drawn there: no host sync, and a graph that is replayed draws another."""
    if generator is not None and not isinstance(generator, torch.Generator):
        raise TypeError(f"generator: expected a torch.Generator, got {type(generator).__name__}")
    if generator is not None and generator.device != x0.device:
        raise ValueError(f"generator: expected device {x0.device} like x0, got {generator.device}")
    return torch.randint(2**63 - 1, (1,), dtype=torch.int64, device=x0.device, generator=generator)
