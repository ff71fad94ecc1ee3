"""Networks as the trainer sees them: an EDM-preconditioned denoiser with features, and the modules that use one.

A denoiser takes (x_t, σ) with x_t = x0 + σ·noise and returns the *raw* prediction F; x0 = a·x_t + c·F with
a = σd²/(σ²+σd²), c = σσd/√(σ²+σd²) (Karras et al. 2022, Table 1), which is fdkernels' prediction kind "edm".
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn.functional import silu

import fdkernels as fdk

if TYPE_CHECKING:
    from diffusers import UNet2DModel


def per_sample(sigma: Tensor, x: Tensor) -> Tensor:
    """sigma (B,) as (B, 1, …), to multiply x."""
    return sigma.view(-1, *(1,) * (x.dim() - 1))


class Denoiser(nn.Module):
    """What a teacher, a fake score and a denoising student have in common.

    An adapter for another family of networks overrides `forward_with_features`, and `features` if these cost less than
    the whole network.

    Args:
        sigma_data: EDM's σd, the data's standard deviation.
        backend: fdkernels' backend, for x0 of the raw prediction.
    """

    def __init__(self, sigma_data: float, backend: str = "auto") -> None:
        super().__init__()
        self.sigma_data = sigma_data
        self.backend = backend

    def forward_with_features(self, noisy: Tensor, sigma: Tensor) -> tuple[Tensor, list[Tensor]]:
        """The raw prediction, shaped like noisy, and the features that a discriminator head reads."""
        raise NotImplementedError

    def features(self, noisy: Tensor, sigma: Tensor) -> list[Tensor]:
        return self.forward_with_features(noisy, sigma)[1]

    def forward(self, noisy: Tensor, sigma: Tensor) -> Tensor:
        return self.forward_with_features(noisy, sigma)[0]

    def prediction(self, noisy: Tensor, sigma: Tensor) -> fdk.Prediction:
        """How the raw predictions at (noisy, sigma) map to x0. noisy is a constant of it."""
        return fdk.Prediction("edm", noisy, sigma=sigma, sigma_data=self.sigma_data)

    def denoise(self, noisy: Tensor, sigma: Tensor) -> Tensor:
        """x0, the network's estimate of the clean sample. noisy must not require a gradient."""
        return self.prediction(noisy, sigma).to_x0(self(noisy, sigma), backend=self.backend)

    def x0(self, raw: Tensor, noisy: Tensor, sigma: Tensor) -> Tensor:
        """x0 of a raw prediction, with gradients to raw and to noisy, which is a constant of `Prediction.to_x0`."""
        variance = sigma**2 + self.sigma_data**2
        a, c = self.sigma_data**2 / variance, sigma * self.sigma_data / variance.sqrt()
        return per_sample(a, noisy) * noisy + per_sample(c, noisy) * raw

    def loss(self, clean: Tensor, noisy: Tensor, sigma: Tensor, noise: Tensor) -> Tensor:
        """The mean squared error of the raw prediction: EDM's loss, whose weight of x0's error is λ(σ) = 1/c²."""
        return fdk.denoising_loss(
            self(noisy, sigma), clean, noise, "edm", sigma=sigma, sigma_data=self.sigma_data, backend=self.backend
        )

    def _scaled(self, noisy: Tensor, sigma: Tensor) -> Tensor:
        return noisy / per_sample((sigma**2 + self.sigma_data**2).sqrt(), noisy)


class UNetDenoiser(Denoiser):
    """A diffusers `UNet2DModel`; its time input is 250·ln σ, as in diffusers' consistency-model pipeline."""

    def __init__(self, unet: UNet2DModel, sigma_data: float, backend: str = "auto") -> None:
        super().__init__(sigma_data, backend)
        self.unet = unet

    def _encode(self, noisy: Tensor, sigma: Tensor) -> tuple[Tensor, tuple[Tensor, ...], list[Tensor]]:
        unet: Any = self.unet
        embedding = unet.time_embedding(unet.time_proj(250.0 * sigma.log()))
        hidden = unet.conv_in(self._scaled(noisy, sigma))
        skips, features = (hidden,), []
        for block in unet.down_blocks:
            hidden, block_skips = block(hidden_states=hidden, temb=embedding)
            skips += block_skips
            features.append(hidden)
        features.append(unet.mid_block(hidden, embedding))
        return embedding, skips, features

    def features(self, noisy: Tensor, sigma: Tensor) -> list[Tensor]:
        return self._encode(noisy, sigma)[2]

    def forward_with_features(self, noisy: Tensor, sigma: Tensor) -> tuple[Tensor, list[Tensor]]:
        unet: Any = self.unet
        embedding, skips, features = self._encode(noisy, sigma)
        hidden = features[-1]
        for block in unet.up_blocks:
            count = len(block.resnets)
            hidden = block(hidden, skips[-count:], embedding)
            skips = skips[:-count]
        return unet.conv_out(unet.conv_act(unet.conv_norm_out(hidden))), features


class OneStep(nn.Module):
    """The student: x = D(σ·z, σ) with z ~ N(0, 1), one evaluation of a denoiser at one noise level."""

    def __init__(self, denoiser: Denoiser, sigma: float) -> None:
        super().__init__()
        self.denoiser = denoiser
        self.sigma = sigma

    def forward(self, z: Tensor) -> Tensor:
        return self.denoiser.denoise(self.sigma * z, torch.full_like(z[:, 0].reshape(len(z), -1)[:, 0], self.sigma))


class ConvHeads(nn.Module):
    """One logit per feature map and sample: log p(x_t)/q(x_t), from a frozen teacher's features."""

    def __init__(self, channels: Sequence[int], sizes: Sequence[int], width: int) -> None:
        super().__init__()
        self.heads = nn.ModuleList(
            nn.Sequential(
                nn.Conv2d(c, width, 3, padding=1),
                nn.GroupNorm(8, width),
                nn.SiLU(),
                nn.Flatten(),
                nn.Linear(width * size * size, width),
                nn.SiLU(),
                nn.Linear(width, 1),
            )
            for c, size in zip(channels, sizes, strict=True)
        )

    def forward(self, features: Sequence[Tensor], sigma: Tensor) -> Tensor:
        """(B, heads)."""
        return torch.cat([head(f) for head, f in zip(self.heads, features, strict=True)], dim=1)


class MLP(nn.Module):
    """Residual multilayer perceptron on (x, Fourier features of ln σ)."""

    def __init__(self, inputs: int, outputs: int, width: int, depth: int, sigma_frequencies: int = 0) -> None:
        super().__init__()
        self.register_buffer("frequencies", 0.5 * torch.arange(1, sigma_frequencies + 1), persistent=False)
        self.first = nn.Linear(inputs + 2 * sigma_frequencies, width)
        self.blocks = nn.ModuleList(nn.Linear(width, width) for _ in range(depth))
        self.last = nn.Linear(width, outputs)

    def forward(self, x: Tensor, sigma: Tensor | None = None) -> Tensor:
        if sigma is not None:
            angle = sigma.log()[:, None] * self.get_buffer("frequencies")
            x = torch.cat((x, angle.sin(), angle.cos()), dim=1)
        hidden = self.first(x)
        for block in self.blocks:
            hidden = hidden + block(silu(hidden))
        return self.last(silu(hidden))


class MLPDenoiser(Denoiser):
    """A denoiser of points."""

    def __init__(self, dimension: int, width: int, depth: int, sigma_data: float, backend: str = "auto") -> None:
        super().__init__(sigma_data, backend)
        self.mlp = MLP(dimension, dimension, width, depth, sigma_frequencies=4)

    def forward_with_features(self, noisy: Tensor, sigma: Tensor) -> tuple[Tensor, list[Tensor]]:
        scaled = self._scaled(noisy, sigma)
        return self.mlp(scaled, sigma), [scaled]


def heun_sample(denoiser: Denoiser, z: Tensor, sigma_min: float, sigma_max: float, steps: int) -> Tensor:
    """Many-step samples: Heun's method on Karras' noise levels (rho = 7), 2·steps - 1 evaluations."""
    ramp = torch.linspace(0, 1, steps, dtype=torch.float64)
    levels = (sigma_max ** (1 / 7) + ramp * (sigma_min ** (1 / 7) - sigma_max ** (1 / 7))) ** 7
    sigmas = [*levels.tolist(), 0.0]
    x = z * sigmas[0]
    for sigma, following in zip(sigmas, sigmas[1:], strict=False):
        slope = (x - denoiser.denoise(x, x.new_full((len(x),), sigma))) / sigma
        euler = x + (following - sigma) * slope
        if following > 0:
            there = (euler - denoiser.denoise(euler, x.new_full((len(x),), following))) / following
            euler = x + (following - sigma) * 0.5 * (slope + there)
        x = euler
    return x


def parameter_count(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def log_normal_sigma(count: int, mean: float, std: float, generator: torch.Generator) -> Tensor:
    """Noise levels with ln σ ~ N(mean, std²)."""
    return (mean + std * torch.randn(count, generator=generator, device=generator.device)).exp()
