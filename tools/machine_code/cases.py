"""The calls whose launches are compiled: shapes and options from practice, over meta tensors."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from fdkernels._op.arguments import Table
from fdkernels._triton.launch import Launch
from fdkernels._triton.scale import scale_launches
from fdkernels.adversarial.arguments import AdversarialArguments
from fdkernels.adversarial.triton_launch import adversarial_launches
from fdkernels.denoising.arguments import DenoisingArguments
from fdkernels.denoising.triton_launch import denoising_launches
from fdkernels.fdiv.arguments import FdivArguments, WeightArguments
from fdkernels.fdiv.triton_launch import forward_launches
from fdkernels.implicit.arguments import ImplicitArguments
from fdkernels.implicit.triton_launch import implicit_launches
from fdkernels.noising.arguments import NoisingArguments
from fdkernels.noising.triton_launch import noising_launches

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
    prediction: str = "sample",
    guidance: bool = False,
    mask: tuple[int, ...] | None = None,
    **changes: Any,
) -> FdivArguments:
    """The arguments of `fdiv_triton` for a js loss with normalizer and dmd scale.

    Args:
        shape: (B, *S) of every N-sized tensor.
        dtype: of student and x_t.
        predictions: dtype of the other tensors; None: `dtype`.
        frames: how many noise levels a sample has.
        prediction: prediction kind; raw kinds come with x_t.
        guidance: adds an unconditional teacher prediction.
        mask: shape of the (B or 1, R) table.
    """
    batch, elements = shape[0], math.prod(shape[1:])

    def image(of: torch.dtype) -> Tensor:
        return meta(*shape, dtype=of)

    levels = {"epsilon": 2, "v_prediction": 2, "flow_prediction": 1, "edm": 1}.get(prediction, 0)
    level = Table(meta(batch, frames), elements // frames)
    predictions = predictions or dtype
    of_weighting = {name: changes.pop(name) for name in WeightArguments._fields if name in changes}
    weighting = WeightArguments(
        logits=meta(batch, 3), t=meta(batch), ratio_mean=meta(10), edges=None, t_min=0.0, t_max=1.0, decay=0.9,
        update=True, divergence="js", amari_alpha=0.0, log_ratio_min=-2.3, log_ratio_max=3.0, normalize_weight=True,
    )  # fmt: skip
    arguments = FdivArguments(
        student=image(dtype), teacher=image(predictions), fake=image(predictions),
        teacher_uncond=image(predictions) if guidance else None, fake_uncond=None, guidance_scale=7.5,
        fake_guidance_scale=1.0, noisy=image(dtype) if levels else None, prediction=prediction,
        alpha=level if levels == 2 else Table(), sigma=level if levels else Table(), fixed_alpha=1.0, fixed_sigma=1.0,
        sigma_data=0.5, weight=None, dmd_scale=True, eps=1e-6, floor=0.0, kept_only=False, multiplier=Table(),
        mask=Table() if mask is None else Table(meta(*mask, dtype=torch.bool), elements // mask[1]),
        zero_nonfinite=False, reduction="mean", divisor=None, gan_logits=None, gan_weight=0.0,
        gan_grad=False, with_grad=True, with_stats=False,
        weighting=weighting._replace(**of_weighting),
    )  # fmt: skip
    return arguments._replace(**changes)


RKL = {"logits": None, "t": None, "ratio_mean": None, "update": False, "divergence": "rkl"}

FORWARDS = {
    "cifar bf16": call(CIFAR),
    "cifar fp16": call(CIFAR, FP16),
    "cifar fp32": call(CIFAR, FP32),
    "cifar bf16, edm": call(CIFAR, prediction="edm"),
    "cifar bf16, multiplier a row, mask": call(CIFAR, mask=(1, 1024), multiplier=Table(meta(64, 96), 32)),
    "cifar bf16, mask of every element": call(CIFAR, mask=(64, 3072)),
    "cifar bf16, mask a sample": call(CIFAR, mask=(64, 1)),
    "cifar bf16, 4096 samples": call((4096, 3, 32, 32)),
    "sd15 bf16": call(SD15),
    "sd15 fp32": call(SD15, FP32),
    "sd15 bf16, fp32 predictions": call(SD15, predictions=FP32),
    "sd15 bf16, kl, zero, stats": call(SD15, divergence="kl", zero_nonfinite=True, with_stats=True),
    "cifar bf16, edm a channel": call(CIFAR, frames=3, prediction="edm"),
    "sd15 bf16, epsilon, guidance": call(SD15, prediction="epsilon", guidance=True, **RKL),
    "sdxl bf16": call(SDXL),
    "sdxl fp16, none": call(SDXL, FP16, reduction="none"),
    "sdxl fp32, stats": call(SDXL, FP32, with_stats=True),
    "sdxl bf16, epsilon, guidance": call(SDXL, prediction="epsilon", guidance=True, divergence="le_cam"),
    "sdxl fp32, flow a frame, both guided": call(
        SDXL,
        FP32,
        frames=4,
        prediction="flow_prediction",
        guidance=True,
        fake_uncond=meta(*SDXL),
        fake_guidance_scale=2.0,
    ),
    "sdxl bf16, gan_weight": call(SDXL, gan_logits=meta(8, 3), gan_weight=0.3, gan_grad=True),
    "wan bf16, gan_weight": call(WAN, gan_logits=meta(2, 3, dtype=BF16), gan_weight=0.3, gan_grad=True),
    "wan bf16, weight": call(WAN, **{**RKL, "weight": meta(2)}),
    "wan bf16, epsilon a frame": call(WAN, frames=21, prediction="epsilon"),
    "wan bf16, flow a frame, guidance, mask": call(
        WAN, frames=21, prediction="flow_prediction", guidance=True, mask=(2, 21), **RKL
    ),
}

# Unusual calls. They must compile; no claim is made about their memory accesses.
ODD = {
    "one sample of one element": call((1, 1), FP32),
    "one sample": call((1, 3, 32, 32), with_stats=True),
    "samples of one element, x_t, mask": call((700, 1), prediction="epsilon", mask=(700, 1), reduction="none"),
    "odd length": call((3, 4099), FP16, guidance=True),
    "float64": call((8, 3, 32, 32), torch.float64, prediction="v_prediction"),
    "130 heads of gan_weight, fp16, zero": call(
        CIFAR, gan_logits=meta(64, 130, dtype=FP16), gan_grad=True, zero_nonfinite=True, reduction="none"
    ),
    "no gradient, sum": call(SDXL, with_grad=False, reduction="sum"),
    "custom edges, integer t": call(CIFAR, edges=meta(9, dtype=torch.float64), t=meta(64, dtype=torch.int64)),
    "one bin, one head": call(CIFAR, logits=meta(64), ratio_mean=meta(1), edges=meta(0, dtype=torch.float64)),
    "multiplier a sample, alpha": call(
        CIFAR, multiplier=Table(meta(64, 1), 3072), dmd_scale=False, divergence="alpha", amari_alpha=0.5
    ),
    "both guided, levels a channel": call(
        (64, 4, 32, 32), frames=4, prediction="v_prediction", guidance=True, fake_uncond=meta(64, 4, 32, 32, dtype=BF16)
    ),
    "epsilon a channel, no scale": call(SD15, frames=4, prediction="epsilon", dmd_scale=False, noisy=None),
    "130 heads": call((8, 4, 32, 32), logits=meta(8, 130), normalize_weight=False),
}

BACKWARDS = {
    "sdxl bf16, in place": ((BF16,), (), True),
    "sdxl fp32, retained": ((FP32,), (), False),
    "sdxl fp16, per sample": ((FP16,), (SDXL[0],), False),
    "sdxl bf16 and fp32, in place": ((BF16, FP32), (), True),
    "sdxl three of bf16": ((BF16,) * 3, (), False),
}


def noising(
    shape: tuple[int, ...], dtype: torch.dtype = BF16, *, frames: int = 1, drawn: bool = False, **changes: Any
) -> NoisingArguments:
    """The arguments of `noising_triton` for x_t, or what `changes` says."""
    level = Table(meta(shape[0], frames), math.prod(shape[1:]) // frames)
    call = NoisingArguments(
        x=meta(*shape, dtype=dtype), noise=None if drawn else meta(*shape, dtype=dtype),
        seed=meta(1, dtype=torch.int64) if drawn else None, result="noisy", prediction="sample", alpha=level,
        sigma=level, fixed_alpha=1.0, fixed_sigma=1.0, sigma_data=0.5, with_noise=drawn,
    )  # fmt: skip
    return call._replace(**changes)


NOISINGS = {
    "sdxl bf16, given": noising(SDXL),
    "sdxl fp32, given, a level a channel": noising(SDXL, FP32, frames=4),
    "sdxl bf16, drawn": noising(SDXL, drawn=True),
    "wan fp32, drawn, a level a frame": noising(WAN, FP32, frames=21, drawn=True),
    "wan bf16, x0 of epsilon": noising(WAN, result="x0", prediction="epsilon"),
    "sdxl bf16, the backward": noising(SDXL, noise=None),
}
ODD_NOISINGS = {
    "odd length, drawn": noising((3, 4099), FP16, drawn=True),
    "float64, drawn": noising((8, 3, 32, 32), torch.float64, drawn=True),
    "edm's prediction of x0, levels of every element": noising(
        CIFAR, result="prediction", prediction="edm", sigma=Table(meta(64, 3072), 1)
    ),
}


def denoising(
    shape: tuple[int, ...], dtype: torch.dtype = BF16, *, frames: int = 1, **changes: Any
) -> DenoisingArguments:
    """The arguments of `denoising_triton` for a v prediction."""
    level = Table(meta(shape[0], frames), math.prod(shape[1:]) // frames)
    image = meta(*shape, dtype=dtype)
    call = DenoisingArguments(
        pred=image, x0=meta(*shape, dtype=dtype), noise=meta(*shape, dtype=dtype), prediction="v_prediction",
        alpha=level, sigma=level, fixed_alpha=1.0, fixed_sigma=1.0, sigma_data=0.5,
        weight=Table(meta(shape[0], 1), math.prod(shape[1:])), reduction="mean", divisor=None, with_grad=True,
    )  # fmt: skip
    return call._replace(**changes)


DENOISINGS = {
    "sdxl bf16": denoising(SDXL),
    "sdxl fp32": denoising(SDXL, FP32),
    "sdxl fp16, none": denoising(SDXL, FP16, reduction="none"),
    "wan bf16, a level a frame": denoising(WAN, frames=21),
}
ODD_DENOISINGS = {
    "float64, edm": denoising((8, 3, 32, 32), torch.float64, prediction="edm"),
    "odd length, no gradient": denoising((3, 4099), FP16, with_grad=False),
    "levels and weights of every element": denoising(
        CIFAR, sigma=Table(meta(64, 3072), 1), weight=Table(meta(64, 3072), 1)
    ),
}


def adversarial(
    shape: tuple[int, ...], dtype: torch.dtype = BF16, others: torch.dtype | None = None, **changes: Any
) -> AdversarialArguments:
    """The arguments of `adversarial_triton` for a logistic discriminator."""
    call = AdversarialArguments(
        logits=meta(*shape, dtype=dtype), others=meta(*shape, dtype=others or dtype), kind="logistic", raised=False,
        bound=0.0, sigma=1.0, reduction="mean", with_grad=True, with_others_grad=True,
    )  # fmt: skip
    return call._replace(**changes)


PATCHES = (8, 1, 64, 64)
ADVERSARIALS = {
    "patches bf16": adversarial(PATCHES),
    "patches fp32": adversarial(PATCHES, FP32),
    "patches fp16, none": adversarial(PATCHES, FP16, reduction="none"),
    "patches fp32, relativistic, clamped": adversarial(PATCHES, FP32, kind="relativistic", bound=10.0),
    "patches bf16, hinge": adversarial(PATCHES, kind="hinge"),
    "patches fp32, penalty": adversarial(PATCHES, FP32, kind="square", sigma=0.05),
    "patches bf16, generator": adversarial(PATCHES, raised=True)._replace(others=None, with_others_grad=False),
}
ODD_ADVERSARIALS = {
    "float64 and bf16": adversarial((64, 4), torch.float64, BF16),
    "odd length, no gradient": adversarial((3, 4099), FP16, with_grad=False, with_others_grad=False, reduction="none"),
}


def implicit(
    shape: tuple[int, ...], dtype: torch.dtype = BF16, predictions: torch.dtype | None = None, **changes: Any
) -> ImplicitArguments:
    """The arguments of `implicit_triton` for SiD's loss."""
    prediction = meta(*shape, dtype=predictions or dtype)
    call = ImplicitArguments(
        student=meta(*shape, dtype=dtype), teacher=prediction, fake=meta(*shape, dtype=predictions or dtype),
        kind="sid", alpha=1.2, floor=1e-5, c=1.0, score_scale=None, weight=None, square_weight=None,
        fixed_score_scale=1.0, fixed_weight=1.0, fixed_square_weight=1.0, reduction="mean", with_student_grad=True,
        with_teacher_grad=True, with_fake_grad=True,
    )  # fmt: skip
    return call._replace(**changes)


SIM = {"kind": "sim", "alpha": 1.0}
IMPLICITS = {
    "cifar bf16": implicit(CIFAR),
    "cifar fp32, sim": implicit(CIFAR, FP32, score_scale=meta(64), **SIM),
    "sd15 bf16": implicit(SD15),
    "sd15 fp32": implicit(SD15, FP32),
    "sd15 bf16, fp32 predictions": implicit(SD15, BF16, FP32),
    "sdxl bf16": implicit(SDXL),
    "pixels bf16": implicit((8, 3, 512, 512)),
    "sdxl fp32, sim": implicit(SDXL, FP32, score_scale=meta(8), weight=meta(8), **SIM),
    "sdxl fp16, none": implicit(SDXL, FP16, reduction="none", weight=meta(8), square_weight=meta(8)),
}
ODD_IMPLICITS = {
    "float64": implicit((8, 3, 32, 32), torch.float64),
    "sdxl bf16, fp32 predictions": implicit(SDXL, BF16, FP32),
    "sdxl bf16, float64 student": implicit(SDXL, torch.float64, BF16),
    "odd length, teacher alone": implicit((3, 4099), FP16, with_student_grad=False, with_fake_grad=False),
    "no gradient": implicit(SDXL, with_student_grad=False, with_teacher_grad=False, with_fake_grad=False),
    "one element": implicit((1, 1), FP32),
}


def backward(dtypes: tuple[torch.dtype, ...], upstream: tuple[int, ...], in_place: bool) -> list[Launch]:
    gradients, outs = ([meta(*SDXL, dtype=dtype) for dtype in dtypes] for _ in range(2))
    unscales = [meta(*upstream) if dtype == FP16 else meta(0) for dtype in dtypes]
    return scale_launches(gradients, meta(*upstream), unscales, gradients if in_place else outs)


def images_read(arguments: FdivArguments, kernel: str) -> list[Tensor]:
    """The N-sized inputs that a kernel of a forward reads."""
    if kernel == "fdiv_weight_kernel":
        return []
    if kernel == "fdiv_apply_kernel":
        without = (arguments.student, arguments.noisy)
        return [image for image in arguments.images() if not any(image is v for v in without)]
    return arguments.images()


def launches() -> list[tuple[str, Launch, list[Tensor], tuple[torch.dtype, ...]]]:
    """(case, launch, N-sized inputs that it reads, dtypes of the gradients that it writes) of every case.

    The last two are empty where no claim is made about the accesses.
    """
    found: list[tuple[str, Launch, list[Tensor], tuple[torch.dtype, ...]]] = []
    for name, arguments in FORWARDS.items():
        for launch in forward_launches(arguments)[1]:
            kernel = launch.kernel.__name__
            stores = kernel in ("fdiv_fwd_kernel", "fdiv_apply_kernel")
            written = (arguments.student.dtype,) if stores else ()
            found.append((name, launch, images_read(arguments, kernel), written))
    for name, arguments in ODD.items():
        for launch in forward_launches(arguments)[1]:
            found.append((name, launch, [], ()))
    for name, (dtypes, upstream, in_place) in BACKWARDS.items():
        for launch in backward(dtypes, upstream, in_place):
            found.append((name, launch, [each.gradient for each in launch.arguments[0]], dtypes))
    for name, noised in NOISINGS.items():
        read = [v for v in (noised.x, noised.noise) if v is not None]
        found += [(name, launch, read, (noised.x.dtype,)) for launch in noising_launches(noised)[1]]
    for name, denoised in DENOISINGS.items():
        read = [denoised.pred, denoised.x0, denoised.noise]
        found += [(name, launch, read, (denoised.pred.dtype,)) for launch in denoising_launches(denoised)[1]]
    for name, denoised in ODD_DENOISINGS.items():
        found += [(name, launch, [], ()) for launch in denoising_launches(denoised)[1]]
    for name, adverse in ADVERSARIALS.items():
        given = [v for v in (adverse.logits, adverse.others) if v is not None]
        written = tuple(v.dtype for v in given)
        found += [(name, launch, given, written) for launch in adversarial_launches(adverse)[1]]
    for name, adverse in ODD_ADVERSARIALS.items():
        found += [(name, launch, [], ()) for launch in adversarial_launches(adverse)[1]]
    for name, of in IMPLICITS.items():
        read = [of.student, of.teacher, of.fake]
        for launch in implicit_launches(of)[1]:
            stores = launch.kernel.__name__ != "implicit_reduce_kernel"
            found.append((name, launch, read, (of.student.dtype,) * 3 if stores else ()))
    for name, of in ODD_IMPLICITS.items():
        found += [(name, launch, [], ()) for launch in implicit_launches(of)[1]]
    for name, noised in ODD_NOISINGS.items():
        found += [(name, launch, [], ()) for launch in noising_launches(noised)[1]]
    return found
