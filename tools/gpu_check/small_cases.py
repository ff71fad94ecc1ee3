"""python -m tools.gpu_check.small_cases: small calls of every kind, forward and backward, compared with the oracle.

compute-sanitizer runs this program. Data is made, and results are compared, on the CPU, so that almost nothing but the
kernels runs under the tool. Exit code 3: the backend cannot run here; the output says why.
"""

from __future__ import annotations

import argparse
import os
import sys
import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

import fdkernels as fdk
from fdkernels import backends
from tests.adversarial import make_discriminator, make_generator, make_penalty
from tests.cases import Case, make, make_gan, normalizer
from tests.denoising import make_denoising, weighted
from tests.device import place
from tests.implicit import make_implicit, weighted_implicit
from tests.noising import make_noising
from tools.gpu_check.stage import NO_SCHEDULE, PLAN, UNAVAILABLE

BF16, FP16, FP32, FP64 = torch.bfloat16, torch.float16, torch.float32, torch.float64


def uniform(*shape: int, low: float = 0.0) -> Tensor:
    return low + torch.rand(shape, generator=torch.Generator().manual_seed(7))


def raw(kind: str, shape: tuple[int, ...], levels: tuple[int, ...]) -> fdk.Prediction:
    noisy = torch.randn(shape, generator=torch.Generator().manual_seed(8))
    return fdk.Prediction(kind, noisy, alpha=uniform(*levels, low=0.4), sigma=0.2 + 0.7 * uniform(*levels))


def guided(shape: tuple[int, ...], dtype: torch.dtype) -> Case:
    return make(
        shape, dtype, divergence="le_cam", prediction=raw("epsilon", shape, (shape[0],)),
        teacher_uncond=uniform(*shape).to(dtype), guidance_scale=2.5,
        fake_uncond=uniform(*shape, low=-1.0).to(dtype), fake_guidance_scale=0.5,
    )  # fmt: skip


def misaligned(shape: tuple[int, ...]) -> Case:
    """Every tensor starts one element after an aligned address."""
    case = make(shape, BF16)

    def shifted(v: Tensor) -> Tensor:
        return torch.cat((v.new_zeros(1), v.flatten()))[1:].view(shape)

    return case.but(student=shifted(case.student), teacher=shifted(case.teacher), fake=shifted(case.fake))


def half_of_a_step(shape: tuple[int, ...], dtype: torch.dtype, **options: Any) -> Case:
    """A mask, and a count that the kernels read on the device."""
    mask = uniform(*shape) < 0.7
    return make(shape, dtype, mask=mask, count=(2 * mask.sum()).float(), **options)


def with_bad_samples(shape: tuple[int, ...]) -> Case:
    case = make(shape, FP32, nonfinite="zero", mask=uniform(shape[0], 1, *shape[2:]) < 0.7)
    case.fake[1].view(-1)[-1] = torch.nan
    case.teacher[2].view(-1)[0] = torch.inf
    return case


VIDEO = (2, 3, 5, 4, 8)
CASES: dict[str, Callable[[], Case]] = {
    "CIFAR": lambda: make((6, 3, 32, 32), BF16, normalizer=normalizer(4)),
    "CIFAR, fp32": lambda: make((5, 3, 32, 32), FP32, normalizer=normalizer(10), divergence="kl"),
    "one SDXL sample": lambda: make((1, 4, 128, 128), BF16, normalizer=normalizer(4)),
    "two SDXL samples, fp32": lambda: make((2, 4, 128, 128), FP32),
    "pixels": lambda: make((1, 3, 512, 512), BF16),
    "one Wan sample": lambda: make((1, 16, 21, 60, 104), BF16, normalizer=normalizer(4)),
    "one element": lambda: make((1, 1), FP32),
    "odd length": lambda: make((3, 4099), FP16),
    "odd and long": lambda: make((2, 70_001), FP32, heads=0),
    "misaligned": lambda: misaligned((3, 3, 41, 25)),
    "float64": lambda: make((3, 2, 33), FP64, prediction=raw("edm", (3, 2, 33), (3,))),
    "mixed dtypes": lambda: make((3, 1000), BF16, predictions=FP32),
    "guided": lambda: guided((3, 2, 8, 33), FP16),
    "guided and split": lambda: guided((2, 4, 64, 65), FP32),
    "flow a frame": lambda: make(VIDEO, BF16, prediction=raw("flow_prediction", VIDEO, (2, 1, 5, 1, 1))),
    "mask a frame": lambda: make(VIDEO, FP16, mask=uniform(2, 1, 5, 1, 1) < 0.7),
    "mask of every element": lambda: make((3, 2, 999), FP32, mask=uniform(3, 2, 999) < 0.7),
    "count": lambda: half_of_a_step((3, 2, 999), BF16, normalizer=normalizer(4)),
    "count, split": lambda: half_of_a_step((2, 4, 64, 65), FP16),
    "count, many samples": lambda: half_of_a_step((1030, 8), FP32, heads=4),
    "bad samples": lambda: with_bad_samples((5, 2, 6, 50)),
    "none": lambda: make((4, 3, 100), FP16, reduction="none"),
    "sum, no scale": lambda: make((4, 3, 100), FP32, reduction="sum", scale=None, heads=None),
    "weight, multiplier a row": lambda: make(
        (4, 3, 64), FP32, heads=None, weight=uniform(4, low=0.5), multiplier=uniform(4, 3, 1, low=0.5)
    ),
    "gan_weight": lambda: make_gan((5, 3, 8, 8), BF16, normalizer=normalizer(4)),
    "gan_weight, many heads, none": lambda: make_gan((4, 3, 333), FP16, heads=40, reduction="none", divergence="rkl"),
    "gan_weight, split": lambda: make_gan((2, 4, 64, 65), FP32, divergence="kl"),
    "noising": lambda: make_noising((5, 3, 8, 8), BF16),
    "noising, flow": lambda: make_noising((5, 3, 8, 8), BF16, levels="flow"),
    "noising, levels a row": lambda: make_noising((4, 3, 333), FP32, levels="per row"),
    "noising, odd": lambda: make_noising((3, 1001), FP16, levels="per element"),
    "denoising": lambda: make_denoising((5, 3, 8, 8), BF16, prediction="v_prediction"),
    "denoising, rows, none": lambda: weighted((4, 3, 333), FP16, reduction="none"),
    "denoising, odd": lambda: make_denoising((700, 11), FP32, prediction="edm"),
    "implicit": lambda: make_implicit((5, 3, 8, 8), BF16),
    "implicit, sim, mixed": lambda: weighted_implicit((4, 3, 333), FP16, kind="sim", predictions=FP32),
    "implicit, odd, none": lambda: make_implicit((3, 1001), FP32, reduction="none"),
    "implicit, split": lambda: weighted_implicit((2, 4, 64, 65), BF16, kind="sim"),
    "implicit, float64": lambda: make_implicit((2, 999), FP64),
    "logits": lambda: make_discriminator((5, 8), FP32),
    "logits, patches, hinge, none": lambda: make_discriminator((4, 1, 33, 31), BF16, kind="hinge", reduction="none"),
    "logits, odd, relativistic": lambda: make_discriminator((3, 4099), FP16, kind="relativistic", clamp=2.0),
    "logits, many blocks": lambda: make_generator((3, 70_001), FP32),
    "logits, penalty": lambda: make_penalty((700, 11), FP16, sigma=0.1),
    "many samples": lambda: make((700, 8), BF16, heads=3, normalizer=normalizer(10), divergence="alpha(0.5)"),
}
UPSTREAM = {"odd length": torch.full((), 65536.0), "odd and long": torch.full((), -2.0)}


def check(name: str, backend: str, device: str) -> None:
    """Raise AssertionError if a result on the device is not the oracle's."""
    case, upstream = CASES[name](), UPSTREAM.get(name)
    outcome = case.on(device).run(backend, place(upstream, device), stats=case.OP == "fdiv")
    case.hold(outcome.cpu(), case.expected(), upstream)


def verdict(name: str, backend: str, device: str) -> str:
    try:
        check(name, backend, device)
    except AssertionError as error:
        return f"wrong: {str(error).strip()}"
    except Exception as error:
        impossible = os.environ.get(PLAN) and NO_SCHEDULE in str(error)
        return f"{'not possible' if impossible else 'wrong'}: {type(error).__name__}: {error}"
    return "ok"


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tools.gpu_check.small_cases", description=__doc__)
    parser.add_argument("--backend", choices=backends.BACKENDS, required=True)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cuda")
    parser.add_argument("--cases", nargs="+", choices=tuple(CASES), metavar="NAME", help=", ".join(CASES))
    options = parser.parse_args()
    reason = backends.unavailable(options.backend, options.device)
    if reason is not None:
        print(f"{options.backend} is unavailable: {reason}")
        return UNAVAILABLE
    warnings.filterwarnings("ignore", message="normalize_weight over")  # few samples are the point here
    print(f"{PLAN}={os.environ.get(PLAN, '')}")
    found = []
    for name in options.cases or CASES:
        found.append(verdict(name, options.backend, options.device))
        print(f"case {name}: {found[-1]}", flush=True)
    return 1 if any(v.startswith("wrong") for v in found) else 0


if __name__ == "__main__":
    sys.exit(main())
