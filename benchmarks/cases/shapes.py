"""Shapes from practice, by the names that the command line takes, each with the formulas that are trained at it."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import NamedTuple

import torch

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
DEFAULT_DTYPES = ("fp32", "bf16")


class Shape(NamedTuple):
    title: str
    sizes: tuple[int, ...]
    formulas: tuple[str, ...] = ("fastgen", "dmd2_pixel", "noising", "denoising", "sid", "sim")


STEP = "step"  # the op of whole steps
STEPS = ("fastgen_student", "fastgen_fake_score")
LATENT = ("fastgen", "dmd2_latent", "noising", "denoising", "sid", *STEPS)
VIDEO = ("fastgen", "self_forcing", "noising", "denoising", *STEPS, "self_forcing_student", "self_forcing_fake_score")

# At the peers' batch sizes for one device.
PRACTICE = {
    "cifar": Shape("CIFAR", (64, 3, 32, 32)),
    "imagenet64": Shape("ImageNet-64", (32, 3, 64, 64)),
    "sd15": Shape("SD1.5", (8, 4, 64, 64), LATENT),
    "sdxl": Shape("SDXL", (8, 4, 128, 128), LATENT),
    "wan": Shape("Wan", (1, 16, 21, 60, 104), VIDEO),
    "pixels512": Shape("pixels, 512", (8, 3, 512, 512)),
    "pixels1024": Shape("pixels, 1024", (8, 3, 1024, 1024)),
}
# Lists of parameters: their number and their mean size. Those of a small network, and of EDM's for CIFAR.
LISTS = {
    "small_network": Shape("a small network", (60, 2_700), ("clip", "average")),
    "edm_network": Shape("EDM's network", (421, 132_400), ("clip", "average")),
}
GAN = ("gan_generator", "gan_discriminator", "relativistic", "r1")
# Logits of discriminators: (B, heads), and patches.
LOGITS = {
    "heads": Shape("logits of heads", (64, 4), GAN),
    "many_heads": Shape("logits of many heads", (512, 8), GAN),
    "patches": Shape("logits of patches", (8, 1, 64, 64), GAN),
}
# Two videos: more than one sample, and beyond the caches of a CPU.
PAIR = {"wan2": Shape("Wan, two", (2, 16, 21, 60, 104), VIDEO)}
# Tensors of at least 64 MB in bf16, for GPUs.
LARGE = {
    "cifar_large": Shape("CIFAR, large", (12288, 3, 32, 32)),
    "sdxl_large": Shape("SDXL, large", (512, 4, 128, 128), LATENT),
    "wan_large": Shape("Wan, large", (16, 16, 21, 60, 104), VIDEO),
    "pixels512_large": Shape("pixels, 512, large", (64, 3, 512, 512)),
    "pixels1024_large": Shape("pixels, 1024, large", (16, 3, 1024, 1024)),
}
# For rehearsals.
TINY = {
    "tiny": Shape("tiny", (4, 3, 16, 16), ("fastgen", "dmd2_pixel", "dmd2_latent", *STEPS)),
    "tiny_video": Shape("tiny video", (2, 4, 5, 8, 8), VIDEO),
}
SHAPES = {**PRACTICE, **LISTS, **LOGITS, **PAIR, **LARGE, **TINY}
GROUPS = {"practice": tuple(PRACTICE), "large": tuple(LARGE), "all": (*PRACTICE, *PAIR, *LARGE)}


class Case(NamedTuple):
    """What is timed in one interleaved run: a formula at a shape and dtype."""

    op: str
    formula: str
    shape_name: str
    shape: tuple[int, ...]
    dtype: str

    @property
    def elements(self) -> int:
        return math.prod(self.shape)

    @property
    def itemsize(self) -> int:
        return DTYPES[self.dtype].itemsize

    def __str__(self) -> str:
        return f"{self.op} {self.formula}, {self.shape_name} {dimensions(self.shape)} {self.dtype}"


def dimensions(shape: Iterable[int]) -> str:
    return "×".join(map(str, shape))
