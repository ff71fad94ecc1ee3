"""The gmm task: a 2-D mixture of nine unequal modes, whose score and density are known at every noise level.

The student is a small MLP that cannot represent nine islands. The divergence decides what it gives up: with reverse KL
it avoids empty space and gives modes too little weight, with forward KL it fills empty space to keep the modes' weight.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor, nn

import fdkernels as fdk
from fdistill import plots
from fdistill.config import GmmConfig, MixtureConfig, as_dict, objective
from fdistill.files import FolderError, write
from fdistill.messages import sentence
from fdistill.networks import MLP, Denoiser, MLPDenoiser, log_normal_sigma
from fdistill.task import Task
from fdistill.trainer import Distiller

ON_MODE = 3.0  # standard deviations from a mode
BANDWIDTH = 0.1  # both distributions are smoothed by this much before KL(q||p), so that q has a density
CELLS = 120


class Mixture(Denoiser):
    """The teacher: the exact denoiser of the mixture as a raw EDM prediction; its only feature is the scaled point."""

    means: Tensor
    log_weights: Tensor

    def __init__(self, cfg: MixtureConfig, backend: str = "auto") -> None:
        axis = [-cfg.spacing, 0.0, cfg.spacing]
        means = torch.tensor([[x, y] for y in axis for x in axis])
        weights = torch.tensor(cfg.weights) / sum(cfg.weights)
        centre = (weights[:, None] * means).sum(0)
        spread = (weights[:, None] * (means - centre) ** 2).sum(0).mean()
        super().__init__(float((spread + cfg.std**2).sqrt()), backend)
        self.std = cfg.std
        self.extent = cfg.spacing * 1.6
        self.register_buffer("means", means)
        self.register_buffer("log_weights", weights.log())

    def _log_joint(self, x: Tensor, sigma: Tensor | float) -> tuple[Tensor, Tensor]:
        """(B, 9) log of weight times density of each mode at noise level sigma, and the modes' variance (B, 1)."""
        variance = torch.as_tensor(sigma, dtype=x.dtype, device=x.device).expand(len(x))[:, None] ** 2 + self.std**2
        squared = (x[:, None] - self.means).square().sum(-1)
        return self.log_weights - squared / (2 * variance) - (2 * math.pi * variance).log(), variance

    def log_density(self, x: Tensor, sigma: Tensor | float) -> Tensor:
        return self._log_joint(x, sigma)[0].logsumexp(1)

    def score(self, x: Tensor, sigma: Tensor) -> Tensor:
        joint, variance = self._log_joint(x, sigma)
        return (joint.softmax(1) @ self.means - x) / variance

    def forward_with_features(self, noisy: Tensor, sigma: Tensor) -> tuple[Tensor, list[Tensor]]:
        # From D = x_t + σ²·score and D = a·x_t + c·F, solved for F without cancellation.
        variance = (sigma**2 + self.sigma_data**2)[:, None]
        raw = sigma[:, None] * variance.sqrt() / self.sigma_data * (noisy / variance + self.score(noisy, sigma))
        return raw, [self._scaled(noisy, sigma)]

    def sample(self, count: int, generator: torch.Generator) -> Tensor:
        modes = torch.multinomial(self.log_weights.exp(), count, replacement=True, generator=generator)
        noise = torch.randn(count, 2, generator=generator, device=self.means.device)
        return self.means[modes] + self.std * noise

    def nearest_mode(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Index of the nearest mode, and the distance to it in standard deviations."""
        distance, mode = torch.cdist(x, self.means).min(1)
        return mode, distance / self.std


class PointStudent(nn.Module):
    """Maps z to a point; starts as a Gaussian as wide as the data."""

    def __init__(self, cfg: GmmConfig, spread: float) -> None:
        super().__init__()
        self.mlp = MLP(cfg.noise_dimension, 2, cfg.width, cfg.depth)
        self.spread = spread

    def forward(self, z: Tensor) -> Tensor:
        return self.spread * z[:, :2] + self.mlp(z)


class PointDiscriminator(nn.Module):
    """log p/q at a noised point."""

    def __init__(self, cfg: GmmConfig) -> None:
        super().__init__()
        self.mlp = MLP(2, 1, cfg.critic_width, cfg.critic_depth, sigma_frequencies=4)

    def forward(self, features: list[Tensor], sigma: Tensor) -> Tensor:
        return self.mlp(features[0], sigma)


def log_density_of_samples(x: Tensor, samples: Tensor, sigma: Tensor) -> Tensor:
    """log q_σ(x), where q_σ is the samples plus noise of level sigma: the mean of one Gaussian per sample."""
    parts = []
    for point, level in zip(x.split(250), sigma.split(250), strict=True):
        variance, squared = level[:, None] ** 2, torch.cdist(point, samples).square()
        parts.append((-squared / (2 * variance) - (2 * math.pi * variance).log()).logsumexp(1))
    return torch.cat(parts) - math.log(len(samples))


class GmmTask(Task):
    def __init__(self, cfg: GmmConfig) -> None:
        self.cfg = cfg
        backend, width, depth = cfg.loss.backend, cfg.critic_width, cfg.critic_depth
        self.mixture = Mixture(cfg.mixture, backend).to(cfg.device)
        self.teacher = self.mixture
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(cfg.seed)
            self.student = PointStudent(cfg, self.mixture.sigma_data).to(cfg.device)
            self.fake = MLPDenoiser(2, width, depth, self.mixture.sigma_data, backend).to(cfg.device)
            self.discriminator = PointDiscriminator(cfg).to(cfg.device)

    def noise(self, count: int, generator: torch.Generator) -> Tensor:
        return torch.randn(count, self.cfg.noise_dimension, generator=generator, device=self.cfg.device)

    def real(self, count: int, generator: torch.Generator) -> Tensor:
        return self.mixture.sample(count, generator)

    def histogram(self, x: Tensor) -> Any:
        """Density of points on a grid, (CELLS, CELLS)."""
        extent = self.mixture.extent
        points = x[x.isfinite().all(1)].cpu().numpy()
        with np.errstate(invalid="ignore"):  # no point inside: 0 / 0, which is shown as 0
            return np.nan_to_num(
                np.histogram2d(points[:, 0], points[:, 1], CELLS, [[-extent, extent]] * 2, density=True)[0]
            )

    def snapshot(self, student: nn.Module, path: Path) -> None:
        density = np.sqrt(self.histogram(student(self.noise(20_000, torch.Generator().manual_seed(1)))))
        top = math.sqrt(self.mixture.log_density(self.mixture.means, 0.0).max().exp())
        path.write_bytes(plots.png((255 * np.clip(density / top, 0, 1)).astype(np.uint8).T[::-1]))

    @torch.no_grad()
    def evaluate(self, distiller: Distiller, folder: Path) -> dict[str, Any]:
        cfg, mixture = self.cfg, self.mixture
        generator = torch.Generator(cfg.device).manual_seed(cfg.seed + 10_000)
        student = distiller.average.network
        x = student(self.noise(cfg.eval.samples, generator)).double()
        real = mixture.sample(cfg.eval.samples, generator).double()
        ratios, ratio_figures = self._ratios(distiller, x, generator) if distiller.has_ratio else ({}, {})
        weights = {name: self._mode_weights(points) for name, points in (("student", x), ("real", real))}
        p, q = self.histogram(real), self.histogram(x)
        np.savez_compressed(
            folder / "evaluation.npz", **distiller.sample_weights(4096), **ratios, p=p, q=q,
            modes=mixture.log_weights.exp().numpy(), student_modes=weights["student"],
        )  # fmt: skip
        title = f"student q, {objective(as_dict(cfg))}"
        plots.render(
            lambda figure: plots.densities(figure, [("teacher p", p), (title, q)], mixture.extent), (9, 4.6),
            folder / "samples.png",
        )  # fmt: skip
        return {
            "student": self._figures(x, weights["student"], generator),
            "floor": self._figures(real, weights["real"], generator),
            **ratio_figures,
            "mode_weights": mixture.log_weights.exp().tolist(),
            "student_mode_weights": weights["student"].tolist(),
            "samples": cfg.eval.samples,
        }

    def _mode_weights(self, x: Tensor) -> Any:
        """The part of the points at each mode; all NaN if a point is not finite."""
        if not x.isfinite().all():
            return np.full(9, np.nan)
        mode, _ = self.mixture.nearest_mode(x.float())
        return (torch.bincount(mode, minlength=9).double() / len(x)).numpy()

    def _figures(self, x: Tensor, weights: Any, generator: torch.Generator) -> dict[str, float]:
        """The figures of points; all NaN if a point is not finite.

        KL(q||p) takes one half of the points as q's kernels and the other half as draws from the smoothed q.
        """
        if not x.isfinite().all():
            return dict.fromkeys(("kl_qp", "on_mode", "mode_tv"), math.nan)
        half = len(x) // 2
        kernels = x[:half]
        draws = x[half:] + BANDWIDTH * torch.randn(x[half:].shape, generator=generator, dtype=x.dtype, device=x.device)
        level = torch.full((len(draws),), BANDWIDTH, dtype=x.dtype, device=x.device)
        kl = (log_density_of_samples(draws, kernels, level) - self.mixture.log_density(draws, level)).mean()
        expected = self.mixture.log_weights.exp().double().cpu().numpy()
        return {
            "kl_qp": float(kl),
            "on_mode": float((self.mixture.nearest_mode(x.float())[1] <= ON_MODE).double().mean()),
            "mode_tv": float(0.5 * np.abs(weights - expected).sum()),
        }

    def _ratios(
        self, distiller: Distiller, x: Tensor, generator: torch.Generator
    ) -> tuple[dict[str, Any], dict[str, float]]:
        """The true log p_σ/q_σ and the discriminator's logits at fresh noised student samples, and how they agree."""
        cfg = self.cfg
        fresh = distiller.average.network(self.noise(4000, generator))
        sigma = log_normal_sigma(len(fresh), cfg.sigma_log_mean, cfg.sigma_log_std, generator).clamp(min=BANDWIDTH)
        noisy = fdk.add_noise(fresh, 1.0, sigma, generator=generator, backend=cfg.loss.backend)
        logits = self.discriminator(self.teacher.features(noisy, sigma), sigma).double().mean(1)
        log_q = log_density_of_samples(noisy.double(), x, sigma.double())
        true, logits = (self.mixture.log_density(noisy.double(), sigma.double()) - log_q).cpu(), logits.cpu()
        low, high = (math.log(r) for r in cfg.loss.ratio_range)
        figures = {
            "log_ratio_error": float((logits.clamp(low, high) - true.clamp(low, high)).abs().mean()),
            "log_ratio_correlation": float(torch.corrcoef(torch.stack((true, logits)))[0, 1]),
        }
        return {"log_ratio": true.numpy()[:3000], "logits": logits.numpy()[:3000]}, figures

    def export(self, student: nn.Module, folder: Path) -> None:
        """Save only the weights: no diffusers pipeline makes points."""
        folder.mkdir(parents=True, exist_ok=True)
        write(folder / "student.safetensors", save(student.state_dict()))
        (folder / "README.md").write_text("# Points\n\nWeights of `fdistill.gmm.PointStudent`.\n", encoding="utf-8")

    @staticmethod
    def draw(cfg: GmmConfig, student: Path, count: int, seed: int, output: Path) -> None:
        """The picture, and the points beside it as .npy."""
        mixture = Mixture(cfg.mixture)
        net = PointStudent(cfg, mixture.sigma_data)
        weights = student / "student.safetensors"
        try:
            net.load_state_dict(load_file(weights))
        except (RuntimeError, SafetensorError) as error:
            raise FolderError(f"{weights} is damaged or not of these settings: {sentence(error, 160)}") from None
        with torch.no_grad():
            x = net(torch.randn(count, cfg.noise_dimension, generator=torch.Generator().manual_seed(seed))).numpy()
        np.save(output.with_suffix(".npy"), x)
        plots.render(lambda figure: plots.points(figure.subplots(), x, mixture.extent), (5, 5), output)

    @staticmethod
    def plan(cfg: GmmConfig) -> tuple[dict[str, nn.Module], str]:
        student, fake = PointStudent(cfg, 1.0), MLPDenoiser(2, cfg.critic_width, cfg.critic_depth, 1.0)
        return {"student": student, "fake": fake, "discriminator": PointDiscriminator(cfg)}, "analytic"
