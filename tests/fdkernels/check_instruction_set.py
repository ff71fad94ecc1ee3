"""Holds a backend to the oracle at one instruction set. Arguments: backend, level.

Run it in a process of its own with FDKERNELS_CPU_ISA set: dispatch happens once.
"""

import sys

import torch

import fdkernels as fdk
from tests.cases import make, normalizer
from tests.fdkernels.test_runs import TABLES, shared


def main(backend: str, level: str) -> None:
    for dtype in (torch.bfloat16, torch.float16, torch.float32, torch.float64):
        for shape in ((3, 3, 17, 19), (2, 40_001), (64, 5), (5, 1)):
            make(shape, dtype, normalizer=normalizer()).check(backend)
            case = make(shape, dtype, divergence="kl")
            case.but(mask=torch.rand(shape, generator=torch.Generator().manual_seed(0)) < 0.7).check(backend)
            case.but(teacher_uncond=case.teacher + 0.125, guidance_scale=3.0).check(backend)
            noisy = case.student + 0.25
            case.but(prediction=fdk.Prediction("edm", noisy, sigma=0.75)).check(backend)
            case.but(reduction="none").check(backend, torch.linspace(0.5, 2, shape[0]))
    for name in TABLES:
        for length in (63, 64, 65, 127, 129, 255, 257, 513):
            shared(name, length, torch.bfloat16).check(backend)
            shared(name, length, reduction="none").check(backend)
    mixed = make((4, 3, 9, 7), torch.bfloat16, predictions=torch.float32)
    mixed.check(backend)
    mixed.but(fake=mixed.fake.half()).check(backend)
    print(f"{backend} at {level}: right")


if __name__ == "__main__":
    main(*sys.argv[1:])
