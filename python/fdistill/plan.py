"""`--dry-run`: what a run would do, before anything is trained."""

from __future__ import annotations

from collections import Counter

import torch
import yaml
from fdkernels import backends

from fdistill.config import Config, DigitsConfig, GmmConfig, as_dict
from fdistill.networks import ConvHeads, parameter_count
from fdistill.run import folder_of


def describe(cfg: Config) -> str:
    """Settings, networks with their sizes and memory, updates, kernels and files; trains and writes nothing."""
    parameters, sample, teacher = _networks(cfg)
    trained = sum(parameters[name] for name in ("student", "fake", "discriminator"))
    # Weights of every network and the average; gradient and two moments of each trained parameter.
    megabytes = 4 * (sum(parameters.values()) + parameters["student"] + 3 * trained) / 2**20
    updates: Counter[str] = Counter()
    for i in range(cfg.steps):
        updates.update(cfg.phases[i % len(cfg.phases)])
    lines = [
        yaml.safe_dump(as_dict(cfg), sort_keys=False, default_flow_style=None, width=110).rstrip(),
        "",
        f"folder          {folder_of(cfg)}",
        f"teacher         {teacher}",
        f"sample          {sample}, batch {cfg.batch}",
        *(
            f"{name:15} {count:,} parameters" + (f", {updates[name]:,} updates" if updates[name] else "")
            for name, count in parameters.items()
        ),
        f"memory          {megabytes:.1f} MiB of weights, averages, gradients and moments, without activations",
        f"phases          {' | '.join('+'.join(phase) for phase in cfg.phases)}, {cfg.steps:,} iterations",
        f"score loss      one fused_fdiv_loss a student update, {cfg.loss.divergence}, "
        f"backend {_backend(cfg)} on {cfg.device}",
    ]
    return "\n".join(lines)


def _networks(cfg: Config) -> tuple[dict[str, int], str, str]:
    with torch.device("meta"):
        if isinstance(cfg, DigitsConfig):
            from fdistill.digits import SIZE, discriminator_shape, new_unet, teacher_folder

            unet = parameter_count(new_unet(cfg.teacher))
            heads = parameter_count(ConvHeads(*discriminator_shape(cfg), cfg.head_width))
            counts = {"teacher": unet, "student": unet, "fake": unet, "discriminator": heads}
            folder = teacher_folder(cfg)
            cached = (folder / "unet").is_dir()
            teacher = f"cached in {folder}" if cached else f"to be trained for {cfg.teacher.steps:,} steps into {folder}"
            return counts, f"(1, {SIZE}, {SIZE})", teacher
        if isinstance(cfg, GmmConfig):
            from fdistill.gmm import PointDiscriminator, PointStudent
            from fdistill.networks import MLPDenoiser

            student = parameter_count(PointStudent(cfg, 1.0))
            fake = parameter_count(MLPDenoiser(2, cfg.critic_width, cfg.critic_depth, 1.0))
            heads = parameter_count(PointDiscriminator(cfg))
            return {"teacher": 0, "student": student, "fake": fake, "discriminator": heads}, "(2,)", "analytic"
    raise TypeError(f"expected a digits or gmm config, got {type(cfg).__name__}")


def _backend(cfg: Config) -> str:
    return backends.choose(cfg.loss.backend, torch.device(cfg.device).type)
