"""Cases of the op noising, and its expected results in NumPy, written from the formulas alone."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fdkernels import testing
from fdkernels._op.arguments import Table
from fdkernels.noising.arguments import NoisingArguments
from tests.cases import Inputs, Outcome
from tests.device import place


def philox(counter: tuple[int, int, int, int], key: tuple[int, int]) -> list[int]:
    """Philox4x32-10 in Python's integers, as Salmon et al. 2011 write it."""
    c, k = list(counter), list(key)
    for _ in range(10):
        left, right = 0xD2511F53 * c[0], 0xCD9E8D57 * c[2]
        c = [right >> 32 ^ c[1] ^ k[0], right & 0xFFFFFFFF, left >> 32 ^ c[3] ^ k[1], left & 0xFFFFFFFF]
        k = [(k[0] + 0x9E3779B9) & 0xFFFFFFFF, (k[1] + 0xBB67AE85) & 0xFFFFFFFF]
    return c


def normals(seed: int, first: int, count: int) -> np.ndarray:
    """Numbers first, ..., first + count - 1 of a stream."""
    found = []
    for index in range(first // 4, -(-(first + count) // 4)):
        words = philox((index & 0xFFFFFFFF, index >> 32, 0, 0), (seed & 0xFFFFFFFF, seed >> 32))
        u = (np.array(words, dtype=np.float64) + 0.5) / 2.0**32
        radius, angle = np.sqrt(-2 * np.log(u[0::2])), 2 * np.pi * u[1::2]
        found += [radius * np.cos(angle), radius * np.sin(angle)]
    stacked = np.stack((np.stack(found[0::2]), np.stack(found[1::2])), 2).reshape(-1)
    return stacked[first % 4 : first % 4 + count]


def doubled(level: float | Tensor, x: Tensor) -> Tensor:
    """A level in float64 on the CPU, with dimensions that broadcast over x."""
    level = torch.as_tensor(level, dtype=torch.float64, device="cpu")
    return level.reshape(*level.shape, *(1,) * (x.dim() - level.dim()))


@dataclass
class NoisingCase(Inputs):
    """One call of `add_noise` with noise that is given."""

    OP = "noising"
    ORDER = ("x0", "alpha", "sigma", "noise")
    GRADIENTS = ("x0",)

    x0: Tensor
    alpha: float | Tensor | None
    sigma: float | Tensor
    noise: Tensor
    options: dict[str, Any] = field(default_factory=dict)

    def expected(self) -> tuple[Tensor, Tensor]:
        """x_t, and the gradient at an upstream of ones."""
        sigma = doubled(self.sigma, self.x0)
        alpha = 1 - sigma if self.alpha is None else doubled(self.alpha, self.x0)
        return alpha * self.x0.cpu().double() + sigma * self.noise.cpu().double(), alpha.expand(self.x0.shape)

    def hold(self, outcome: Outcome, expected: tuple[Tensor, Tensor], upstream: Tensor | None = None) -> None:
        factor = torch.ones((), dtype=torch.float64) if upstream is None else upstream.double()
        assert outcome.loss.dtype == outcome.grad.dtype == self.x0.dtype
        testing.assert_gradient(outcome.loss, expected[0])
        # The gradient takes the upstream in x_t's dtype.
        testing.assert_gradient(outcome.grad, expected[1] * factor.to(self.x0.dtype).double())


def make_noising(
    shape: tuple[int, ...] = (4, 3, 8, 8),
    dtype: torch.dtype = torch.float32,
    *,
    levels: str = "per sample",
    seed: int = 0,
    **options: Any,
) -> NoisingCase:
    """levels: numbers, per sample, per row (B, C, where x0 has the dimension), per element, or flow: sigma alone."""
    generator = torch.Generator().manual_seed(seed)

    def normal() -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)

    sizes = {"per row": shape[:2], "per element": shape, "numbers": ()}.get(levels, shape[:1])
    angle = 1.5 * torch.rand(sizes, generator=generator, dtype=torch.float64)
    alpha, sigma = angle.cos(), angle.sin().float()
    if levels == "numbers":
        return NoisingCase(normal(), alpha.item(), sigma.item(), normal(), options)
    return NoisingCase(normal(), None if levels == "flow" else alpha, sigma, normal(), options)


def raw_noising(dtype: torch.dtype = torch.float32, **changes: Any) -> NoisingArguments:
    """With noise and seed, which exclude each other: each call changes one of them to None."""
    generator = torch.Generator().manual_seed(1)

    def entries(*size: int, dtype: torch.dtype = torch.float32) -> Tensor:
        return 0.2 + torch.rand(size, generator=generator, dtype=dtype)

    case = make_noising((4, 3, 6, 5), dtype)
    call = NoisingArguments(
        x=case.x0, noise=case.noise, seed=torch.tensor([2**62 + 12345]), result="noisy", prediction="affine",
        alpha=Table(entries(4, 3, dtype=torch.float64), 30), sigma=Table(entries(4, 45), 2), fixed_alpha=0.7,
        fixed_sigma=1.3, sigma_data=0.5, with_noise=True,
    )  # fmt: skip
    if "noise" not in changes:
        changes = {"seed": None, "with_noise": False, **changes}
    return NoisingArguments(*map(place, call._replace(**changes)))
