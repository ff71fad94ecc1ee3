"""The calls whose launches are compiled: shapes and options from practice, over meta tensors."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from fdkernels._triton.launch import Launch
from fdkernels.fdiv.arguments import FdivArguments
from fdkernels.fdiv.triton_launch import backward_launches, forward_launches

BF16, FP16, FP32 = torch.bfloat16, torch.float16, torch.float32
CIFAR, SD15, SDXL, WAN = (64, 3, 32, 32), (8, 4, 64, 64), (8, 4, 128, 128), (2, 16, 21, 60, 104)


def meta(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.empty(shape, dtype=dtype, device="meta")


def call(
    shape: tuple[int, ...],
    dtype: torch.dtype = BF16,
    predictions: torch.dtype | None = None,
    *,
    frames: int = 1,
    prediction: bool = False,
    guidance: bool = False,
    mask: tuple[int, ...] | None = None,
    **changes: Any,
) -> FdivArguments:
    """The arguments of `fdiv_triton` for a js loss with normalizer and dmd scale.

    Args:
        shape: (B, *S) of every N-sized tensor.
        dtype: the student's and x_t's; `predictions` is the others'.
        frames: how many coefficients a and c a sample has.
        prediction: raw predictions, with x_t.
        guidance: an unconditional teacher prediction.
        mask: shape of the (B or 1, R) table.
    """
    batch, elements = shape[0], math.prod(shape[1:])

    def image(of: torch.dtype) -> Tensor:
        return meta(*shape, dtype=of)

    coefficient = meta(batch, frames, dtype=torch.float64) if prediction else None
    predictions = predictions or dtype
    arguments = FdivArguments(
        student=image(dtype), teacher=image(predictions), fake=image(predictions),
        teacher_uncond=image(predictions) if guidance else None, fake_uncond=None, guidance_scale=7.5,
        fake_guidance_scale=1.0, noisy=image(dtype) if prediction else None, a=coefficient, c=coefficient,
        coefficient_inner=elements // frames, logits=meta(batch, 3), t=meta(batch), weight=None,
        ratio_mean=meta(10), edges=None, t_min=0.0, t_max=1.0, decay=0.9, update=True, divergence="js", alpha=0.0,
        log_ratio_min=-2.3, log_ratio_max=3.0, normalize_weight=True, dmd_scale=True, eps=1e-6, scale=None,
        scale_inner=1, mask=None if mask is None else meta(*mask, dtype=torch.bool),
        mask_inner=1 if mask is None else elements // mask[1], zero_nonfinite=False, reduction="mean",
        with_grad=True, with_stats=False,
    )  # fmt: skip
    return arguments._replace(**changes)


RKL = {"logits": None, "t": None, "ratio_mean": None, "update": False, "divergence": "rkl"}

FORWARDS = {
    "cifar bf16": call(CIFAR),
    "cifar fp16": call(CIFAR, FP16),
    "cifar fp32": call(CIFAR, FP32),
    "cifar bf16, edm": call(CIFAR, prediction=True),
    "cifar bf16, scale a row, mask": call(CIFAR, mask=(1, 1024), scale=meta(64, 96), scale_inner=32),
    "cifar bf16, mask of every element": call(CIFAR, mask=(64, 3072)),
    "cifar bf16, mask a sample": call(CIFAR, mask=(64, 1)),
    "cifar bf16, 4096 samples": call((4096, 3, 32, 32)),
    "sd15 bf16": call(SD15),
    "sd15 fp32": call(SD15, FP32),
    "sd15 bf16, fp32 predictions": call(SD15, predictions=FP32),
    "sd15 bf16, kl, zero, stats": call(SD15, divergence="kl", zero_nonfinite=True, with_stats=True),
    "sd15 bf16, epsilon, guidance": call(SD15, prediction=True, guidance=True, **RKL),
    "sdxl bf16": call(SDXL),
    "sdxl fp16, none": call(SDXL, FP16, reduction="none"),
    "sdxl fp32, stats": call(SDXL, FP32, with_stats=True),
    "sdxl bf16, epsilon, guidance": call(SDXL, prediction=True, guidance=True, divergence="le_cam"),
    "sdxl fp32, flow a frame, both guided": call(
        SDXL, FP32, frames=4, prediction=True, guidance=True, fake_uncond=meta(*SDXL), fake_guidance_scale=2.0
    ),
    "wan bf16, weight": call(WAN, **{**RKL, "weight": meta(2)}),
    "wan bf16, flow a frame, guidance, mask": call(WAN, frames=21, prediction=True, guidance=True, mask=(2, 21), **RKL),
}

# Odd ones that have to compile; nothing is claimed of their accesses.
ODD = {
    "one sample of one element": call((1, 1), FP32),
    "one sample": call((1, 3, 32, 32), with_stats=True),
    "samples of one element, x_t, mask": call((700, 1), prediction=True, mask=(700, 1), reduction="none"),
    "odd length": call((3, 4099), FP16, guidance=True),
    "float64": call((8, 3, 32, 32), torch.float64, prediction=True),
    "no gradient, sum": call(SDXL, with_grad=False, reduction="sum"),
    "custom edges, integer t": call(CIFAR, edges=meta(9, dtype=torch.float64), t=meta(64, dtype=torch.int64)),
    "one bin, one head": call(CIFAR, logits=meta(64), ratio_mean=meta(1), edges=meta(0, dtype=torch.float64)),
    "scale a sample, alpha": call(
        CIFAR, scale=meta(64, 1), scale_inner=3072, dmd_scale=False, divergence="alpha", alpha=0.5
    ),
    "both guided, coefficients a channel": call(
        (64, 4, 32, 32), frames=4, prediction=True, guidance=True, fake_uncond=meta(64, 4, 32, 32, dtype=BF16)
    ),
    "130 heads": call((8, 4, 32, 32), logits=meta(8, 130), normalize_weight=False),
}

BACKWARDS = {
    "sdxl bf16, in place": (BF16, (), True),
    "sdxl fp32, retained": (FP32, (), False),
    "sdxl fp16, per sample": (FP16, (SDXL[0],), False),
}


def backward(dtype: torch.dtype, upstream: tuple[int, ...], in_place: bool) -> list[Launch]:
    gradient = meta(*SDXL, dtype=dtype)
    unscale = meta(*upstream) if dtype == FP16 else meta(0)
    return backward_launches(gradient, meta(*upstream), unscale, gradient if in_place else meta(*SDXL, dtype=dtype))


def images_read(arguments: FdivArguments, kernel: str) -> list[Tensor]:
    """The N-sized inputs that a kernel of a forward reads."""
    if kernel == "fdiv_weight_kernel":
        return []
    if kernel == "fdiv_apply_kernel":
        without = (arguments.student, arguments.noisy)
        return [image for image in arguments.images() if not any(image is v for v in without)]
    return arguments.images()


def launches() -> list[tuple[str, Launch, list[Tensor], torch.dtype | None]]:
    """(case, launch, N-sized inputs that it reads, dtype of the gradient that it writes) of every case.

    The last two are empty where nothing is claimed of its accesses.
    """
    found: list[tuple[str, Launch, list[Tensor], torch.dtype | None]] = []
    for name, arguments in FORWARDS.items():
        for launch in forward_launches(arguments)[1]:
            kernel = launch.kernel.__name__
            stores = kernel in ("fdiv_fwd_kernel", "fdiv_apply_kernel")
            written = arguments.student.dtype if stores else None
            found.append((name, launch, images_read(arguments, kernel), written))
    for name, arguments in ODD.items():
        for launch in forward_launches(arguments)[1]:
            found.append((name, launch, [], None))
    for name, (dtype, upstream, in_place) in BACKWARDS.items():
        for launch in backward(dtype, upstream, in_place):
            found.append((name, launch, [launch.arguments[0]], dtype))
    return found
