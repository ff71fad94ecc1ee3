"""The op `noising` in eager PyTorch: the specification of every other backend. In float64, rounded once.

Number i of a stream is the same on every backend: Philox4x32-10 (Salmon et al. 2011) with the seed as key and i // 4 as
counter gives four 32-bit words w, and two Box-Muller transforms of u = (w + 1/2) / 2³² four normal numbers.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from fdkernels.noising.arguments import NOISING, NoisingArguments
from fdkernels.prediction import coefficients

_WORD = 0xFFFFFFFF
_MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
_WEYL = (0x9E3779B9, 0xBB67AE85)


def noising(call: NoisingArguments) -> tuple[Tensor, Tensor]:
    """The raw op. Returns (y, noise)."""
    call = NOISING.traced(call)
    x = call.x
    shape = (x.shape[0], math.prod(x.shape[1:]))
    by_x, by_noise = terms(call, shape)
    noise = call.noise
    if call.seed is not None:
        noise = normals(call.seed, x.numel()).to(x.dtype).view(x.shape)
    y = by_x * x.double().reshape(shape)
    if noise is not None:
        y = y + by_noise * noise.double().reshape(shape)
    drawn = noise if call.with_noise and noise is not None else x.new_empty(0)
    return y.to(x.dtype).view(x.shape), drawn


def terms(call: NoisingArguments, shape: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """The coefficients of x and noise in float64, broadcastable to the elements."""
    a, c = coefficients(call, call.kind(), shape, call.x.device)
    if call.result == "flow":
        return 1 - c, c
    if call.result == "prediction":
        return c.reciprocal(), -a / c
    return (a, c) if call.result == "noisy" else (c, a)


def normals(seed: Tensor, count: int) -> Tensor:
    """The first numbers of a stream, in float64."""
    bits = philox(seed.reshape(()), torch.arange(-(-count // 4), device=seed.device))
    uniform = (torch.stack(bits, 1).double() + 0.5) * 2.0**-32  # (counters, 4)
    radius = (-2.0 * uniform[:, 0::2].log()).sqrt()
    angle = 2 * math.pi * uniform[:, 1::2]
    return torch.stack((radius * angle.cos(), radius * angle.sin()), 2).reshape(-1)[:count]


def philox(seed: Tensor, counter: Tensor) -> list[Tensor]:
    """Four words for each counter, as int64."""
    words = [counter & _WORD, counter >> 32 & _WORD, torch.zeros_like(counter), torch.zeros_like(counter)]
    key = [seed & _WORD, seed >> 32 & _WORD]
    for _ in range(10):
        left, right = (words[2 * i] * _MULTIPLIERS[i] for i in range(2))  # wraps: only bits count
        words = [
            (right >> 32 & _WORD) ^ words[1] ^ key[0], right & _WORD,
            (left >> 32 & _WORD) ^ words[3] ^ key[1], left & _WORD,
        ]  # fmt: skip
        key = [key[i] + _WEYL[i] & _WORD for i in range(2)]
    return words
