"""The digits task: scikit-learn's 1797 handwritten digits, a small UNet teacher, a one-step UNet student."""

from __future__ import annotations

import copy
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn
from tqdm.auto import tqdm

import fdkernels as fdk
from fdistill import metrics, plots, stopping
from fdistill.checkpoint import Checkpoints
from fdistill.config import ConfigError, DigitsConfig, OptimizerConfig, TeacherConfig, as_dict, fingerprint, objective
from fdistill.files import FolderError, cached, damage, say
from fdistill.networks import (
    ConvHeads,
    Denoiser,
    OneStep,
    UNetDenoiser,
    heun_sample,
    log_normal_sigma,
    parameter_count,
)
from fdistill.roles import Average, Role
from fdistill.task import EpochSampler, Interrupted, Task
from fdistill.trainer import BAR_SECONDS, Distiller

if TYPE_CHECKING:
    from diffusers import UNet2DModel

SIZE = 8
# The scheduler's σ_min, in place of zero. It must be a power of two: diffusers' scheduler squares it in float32 and in
# float64 and takes the root of the difference, which must not be negative.
SIGMA_END = 2.0**-20

CARD = """# One-step digits

Handwritten digits (8×8, grey) in one step, distilled with fdkernels: {objective}.

    from diffusers import ConsistencyModelPipeline

    pipeline = ConsistencyModelPipeline.from_pretrained("this folder")
    image = pipeline(num_inference_steps=1).images[0]
"""


def load_digits() -> tuple[Tensor, Tensor]:
    """The images (1797, 1, 8, 8) in [-1, 1], and their labels."""
    from sklearn import datasets

    data = datasets.load_digits()
    images = torch.from_numpy(np.asarray(data.images, dtype=np.float32)).unsqueeze(1)
    return images / 8 - 1, torch.from_numpy(np.asarray(data.target))


def new_unet(cfg: TeacherConfig) -> UNet2DModel:
    from diffusers import UNet2DModel

    return UNet2DModel(
        sample_size=SIZE,
        in_channels=1,
        out_channels=1,
        layers_per_block=cfg.layers_per_block,
        block_out_channels=tuple(cfg.channels),
        down_block_types=("DownBlock2D",) * len(cfg.channels),
        up_block_types=("UpBlock2D",) * len(cfg.channels),
        norm_num_groups=8,
    )


def teacher_folder(cfg: DigitsConfig) -> Path:
    """The teacher's folder, named by a hash of the settings that decide it. checkpoint_every does not decide it, so the
    default stands for every value."""
    teacher = {**as_dict(cfg.teacher), "checkpoint_every": TeacherConfig.checkpoint_every}
    decides = {"teacher": teacher, "sigma": [cfg.sigma_log_mean, cfg.sigma_log_std], "noise": "philox"}
    return Path(cfg.cache) / f"digits-teacher-{fingerprint(decides)}"


def load_or_train_teacher(cfg: DigitsConfig) -> Denoiser:
    """The teacher from the cache, or trained now, which continues an interrupted training from its last checkpoint."""
    from diffusers import UNet2DModel

    home = teacher_folder(cfg)
    folder = cached(home, "unet", lambda partial: train_teacher(cfg, home, partial))
    unet = UNet2DModel.from_pretrained(folder, low_cpu_mem_usage=False)
    return UNetDenoiser(unet, cfg.teacher.sigma_data, cfg.loss.backend).to(cfg.device)


def train_teacher(cfg: DigitsConfig, home: Path, result: Path) -> None:
    """EDM training of the teacher: mean squared error of the raw prediction, cosine schedule, averaged weights."""
    settings = cfg.teacher
    images = load_digits()[0].to(cfg.device)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(settings.seed)
        net = UNetDenoiser(new_unet(settings), settings.sigma_data, cfg.loss.backend).to(cfg.device)
    optimizer = OptimizerConfig(lr=settings.lr, betas=(0.9, 0.999), schedule="cosine", warmup=50)
    role, average = Role("teacher", net, optimizer, settings.steps), Average(net, settings.ema)
    generator = torch.Generator(cfg.device).manual_seed(settings.seed)
    sampler = EpochSampler(len(images), settings.seed)
    checkpoints = Checkpoints(home / "checkpoints", keep=1)
    networks: dict[str, nn.Module] = {"teacher": net, "ema": average.network}
    try:
        latest = checkpoints.latest()
    except FolderError as error:
        say(f"{error}: the teacher is trained from the beginning")
        latest = None
    if latest is not None:
        state = checkpoints.load(latest, networks)
        role.load_state_dict(state["role"])
        generator.set_state(state["generator"])
        sampler.load_state_dict(state["data"])
    bar = tqdm(total=settings.steps, initial=role.updates, desc="teacher", unit="it", mininterval=BAR_SECONDS)
    with stopping.requested() as stop, bar:
        while role.updates < settings.steps:
            clean = images[sampler.take(settings.batch)]
            sigma = log_normal_sigma(len(clean), cfg.sigma_log_mean, cfg.sigma_log_std, generator)
            noisy, noise = fdk.add_noise(
                clean, 1.0, sigma, generator=generator, return_noise=True, backend=cfg.loss.backend
            )
            loss = net.loss(clean, noisy, sigma, noise)
            role.update(loss)
            average.update(net, role.updates)
            bar.update()
            if role.updates % 100 == 0:
                bar.set_postfix({"loss": f"{loss.item():.3f}"}, refresh=False)
            if stop or role.updates % settings.checkpoint_every == 0:
                state = {"role": role.state_dict(), "generator": generator.get_state(), "data": sampler.state_dict()}
                checkpoints.save(role.updates, networks, state)
            if stop:
                raise Interrupted(
                    f"stopped after step {role.updates} of {settings.steps} of the teacher, state saved", False
                )
    if not _works(average.network, images, settings):
        raise ConfigError(f"teacher.lr: the teacher diverged, expected a lower one than {settings.lr:g}")
    average.network.unet.save_pretrained(result)  # type: ignore[union-attr,operator]


@torch.no_grad()
def _works(denoiser: nn.Module, images: Tensor, cfg: TeacherConfig) -> bool:
    """Whether the predictions are finite. Weights do not show it: a teacher that diverged may have weights of 1e30."""
    few = images[:64]
    return bool(denoiser(few, torch.full_like(few[:, 0, 0, 0], cfg.sigma_data)).isfinite().all())


def discriminator_shape(cfg: DigitsConfig) -> tuple[list[int], list[int]]:
    """Channels and sizes of the teacher's encoder and middle features; each block but the last halves the size."""
    channels = [*cfg.teacher.channels, cfg.teacher.channels[-1]]
    halvings = [min(i + 1, len(cfg.teacher.channels) - 1) for i in range(len(channels))]
    return channels, [SIZE // 2**h for h in halvings]


class DigitsTask(Task):
    """Student and fake score start as the teacher. The discriminator reads the teacher's encoder and middle."""

    def __init__(self, cfg: DigitsConfig) -> None:
        self.cfg = cfg
        self.images, self.labels = (v.to(cfg.device) for v in load_digits())
        self.teacher = load_or_train_teacher(cfg)
        self.student = OneStep(copy.deepcopy(self.teacher), cfg.sigma_max)
        self.fake = copy.deepcopy(self.teacher)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(cfg.seed)
            heads = ConvHeads(*discriminator_shape(cfg), cfg.head_width)
        self.discriminator = heads.to(cfg.device)
        self.sampler = EpochSampler(len(self.images), cfg.seed)
        self.undistilled = copy.deepcopy(self.student).requires_grad_(False)
        self.titles = {
            "real": "Real digits",
            "teacher": f"Teacher: {2 * cfg.eval.teacher_steps - 1} evaluations\n({cfg.eval.teacher_steps} Heun steps)",
            "undistilled": "Teacher: 1 evaluation\n(undistilled)",
            "student": "Student: 1 evaluation\n(distilled)",
        }

    def noise(self, count: int, generator: torch.Generator) -> Tensor:
        return torch.randn(count, 1, SIZE, SIZE, generator=generator, device=self.cfg.device)

    def real(self, count: int, generator: torch.Generator) -> Tensor:
        return self.images[self.sampler.take(count)]

    def state_dict(self) -> dict[str, Any]:
        return self.sampler.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.sampler.load_state_dict(state)

    def snapshot(self, student: nn.Module, path: Path) -> None:
        z = self.noise(80, torch.Generator(self.cfg.device).manual_seed(1))
        path.write_bytes(plots.png(plots.tiles(student(z).cpu().numpy(), columns=10)))

    @torch.no_grad()
    def evaluate(self, distiller: Distiller, folder: Path) -> dict[str, Any]:
        cfg = self.cfg
        yardstick = metrics.Yardstick(self.images, self.labels, Path(cfg.cache), cfg.eval.neighbours)
        z = self.noise(cfg.eval.samples, torch.Generator(cfg.device).manual_seed(cfg.seed + 10_000))
        student = distiller.average.network(z)
        sets = {
            "student": torch.where(student.isfinite(), student.clamp(-1, 1), torch.nan),
            "teacher": heun_sample(
                self.teacher, z, cfg.teacher_sigma_min, cfg.teacher_sigma_max, cfg.eval.teacher_steps
            ).clamp(-1, 1),
            "undistilled": self.undistilled(z).clamp(-1, 1),
        }
        shown = {name: images[:100].cpu().numpy() for name, images in {"real": self.images, **sets}.items()}
        np.savez_compressed(folder / "evaluation.npz", **distiller.sample_weights(2048), **shown)
        sheet = [(title, shown[name]) for name, title in self.titles.items()]
        plots.write_sample_sheet(sheet, folder / "samples.png")
        return {
            **{name: yardstick.measure(images) for name, images in sets.items()},
            **({"floor": yardstick.floor(cfg.eval.bootstraps)} if cfg.eval.bootstraps else {}),
            "real_classes": yardstick.real_classes.tolist(),
            "samples": cfg.eval.samples,
            "classifier_accuracy": float(yardstick.classifier.get_buffer("held_out_accuracy")),
            "teacher_parameters": parameter_count(self.teacher),
        }

    def export(self, student: nn.Module, folder: Path) -> None:
        """A stock diffusers pipeline: with σ_min at zero, the consistency model's one step is D(σ·z, σ)."""
        from diffusers import CMStochasticIterativeScheduler, ConsistencyModelPipeline

        scheduler = CMStochasticIterativeScheduler(
            sigma_min=SIGMA_END, sigma_max=self.cfg.sigma_max, sigma_data=self.cfg.teacher.sigma_data
        )
        unet: Any = student.denoiser.unet  # type: ignore[union-attr]
        ConsistencyModelPipeline(unet=unet, scheduler=scheduler).save_pretrained(folder)
        (folder / "README.md").write_text(
            CARD.format(objective=objective(as_dict(self.cfg), in_words=True)), encoding="utf-8"
        )

    @staticmethod
    def draw(cfg: DigitsConfig, student: Path, count: int, seed: int, output: Path) -> None:
        from diffusers import ConsistencyModelPipeline
        from diffusers.utils import logging

        logging.disable_progress_bar()
        pipeline = ConsistencyModelPipeline.from_pretrained(student, low_cpu_mem_usage=False)
        pipeline.set_progress_bar_config(disable=True)
        images = pipeline(batch_size=count, generator=torch.Generator().manual_seed(seed), output_type="pt").images
        picture = plots.tiles(2 * images.numpy() - 1, columns=math.isqrt(count - 1) + 1)
        output.write_bytes(plots.png(picture.repeat(6, axis=0).repeat(6, axis=1)))

    @staticmethod
    def plan(cfg: DigitsConfig) -> tuple[dict[str, nn.Module], str]:
        unet, folder = new_unet(cfg.teacher), teacher_folder(cfg)
        whole = damage(folder / "unet") is None
        source = f"cached in {folder}" if whole else f"to be trained, {cfg.teacher.steps:,} steps"
        heads = ConvHeads(*discriminator_shape(cfg), cfg.head_width)
        return {"teacher": unet, "student": unet, "fake": unet, "discriminator": heads}, source
