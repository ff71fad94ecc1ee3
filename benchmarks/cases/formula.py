"""What a formula of the benchmark is: its data, our call, the peer's chain, the exact result, and a step of each."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

import fdkernels as fdk
from benchmarks.cases.shapes import TINY, Case

HEADS, BINS = 2, 10

# Bytes of an fdiv_weight call beside its logits: (t and the weight per sample, the bins read and written).
WEIGHT_BYTES = (4 + 4, 8 * BINS)


def loss_scale(dtype: torch.dtype) -> float:
    """Of float16 its largest power of two, since some peers' losses are float16."""
    return 32768.0 if dtype == torch.float16 else 1.0


class Inputs(NamedTuple):
    """One set of data. `mask` has every element, as the peer needs it; `frames` is the same mask with one per frame."""

    student: Tensor
    teacher: Tensor
    fake: Tensor
    logits: Tensor
    t: Tensor
    uncond: Tensor | None = None
    noisy: Tensor | None = None
    alpha: Tensor | None = None
    sigma: Tensor | None = None
    mask: Tensor | None = None
    frames: Tensor | None = None


Step = Callable[[Any], Tensor]  # from data, such as Inputs, to the gradient, or the weight


@dataclass(frozen=True)
class Formula:
    name: str
    op: str
    title: str
    peer: str
    chain: Callable[..., Tensor]
    call: Callable[[Callable[..., Tensor], Any, Tensor], Tensor]  # (chain, data, bins) -> the peer's loss or weight
    ours: Callable[[Any, fdk.RatioNormalizer, str], Tensor]  # (data, normalizer, backend) -> our loss or weight
    exact: Callable[[Any], Tensor]  # the gradient at an upstream of 1, or the weight, in float64
    inputs: Callable[[Case, Draw], Any]
    images: int
    """N-sized inputs that have to be read. 0: the formula takes only logits, and gives a weight without gradient."""
    written: int = 1  # N-sized results
    reread: int = 2  # how many of `images` are read again if a sample does not stay on chip
    plan: Callable[[Case], dict[str, Any]] = lambda case: {}  # fields of its CallShape
    upstream: float = 1.0
    forward: bool = False  # its result is timed, without a backward
    video: bool = False  # takes five sizes, and puts frames before channels
    leaves: tuple[str, ...] = ("student",)  # the data whose gradients a step computes; it returns the first one's
    fp32: bool = False  # has that dtype alone
    in_place: bool = False  # its result is a part of its data: it is neither compiled nor replayed
    draws: bool = False  # what is timed draws its noise; noise is given where a result is compared with `exact`

    def minimum_bytes(self, case: Case) -> int:
        """Inputs read once and results written once."""
        if not self.images:
            return 4 * case.elements + WEIGHT_BYTES[0] * case.shape[0] + WEIGHT_BYTES[1]
        return (self.images + self.written) * case.elements * case.itemsize

    def input_bytes(self, case: Case) -> int:
        """Bytes of one set's N-sized inputs; if it has none, `minimum_bytes`."""
        return self.images * case.elements * case.itemsize or self.minimum_bytes(case)

    def why_not(self, shape: tuple[int, ...]) -> str | None:
        return f"{self.name} takes videos, five sizes" if self.video and len(shape) != 5 else None

    def upstream_at(self, dtype: torch.dtype) -> float:
        return self.upstream * loss_scale(dtype)

    def timed(self, v: Any) -> Any:
        """The data that is timed."""
        return v._replace(**{name: None for name in v._fields if name.endswith("noise")}) if self.draws else v

    def exact_result(self, v: Any) -> Tensor:
        return self.exact(v) * (1.0 if self.forward else self.upstream_at(v.student.dtype))

    def case(self, shape_name: str, sizes: tuple[int, ...], dtype: str) -> Case:
        if not self.images:
            sizes, dtype = (sizes if len(sizes) == 2 else (sizes[0], HEADS)), "fp32"
        elif self.video:
            sizes = (sizes[0], sizes[2], sizes[1], *sizes[3:])
        return Case(self.op, self.name, shape_name, sizes, "fp32" if self.fp32 else dtype)

    def tiny(self, dtype: str = "fp32") -> Case:
        return self.case("tiny", TINY["tiny_video" if self.video else "tiny"].sizes, dtype)

    def our_step(self, backend: str, device: str) -> Step:
        normalizer = fdk.RatioNormalizer(BINS, (0.0, 1.0), 0.9).to(device)
        return self._step(lambda v: self.ours(v, normalizer, backend))

    def peer_step(self, chain: Callable[..., Tensor], device: str) -> Step:
        bins = torch.ones(BINS, device=device)
        return self._step(lambda v: self.call(chain, v, bins))

    def _step(self, result: Callable[[Any], Tensor]) -> Step:
        if not self.images or self.forward:
            return result
        upstreams: dict[torch.dtype, Tensor] = {}

        def step(v: Any) -> Tensor:
            loss = result(v)
            upstream = upstreams.get(loss.dtype)
            if upstream is None:
                upstream = upstreams[loss.dtype] = torch.full_like(loss, self.upstream_at(v.student.dtype))
            return torch.autograd.grad(loss, [getattr(v, name) for name in self.leaves], upstream)[0]

        return step


class Draw:
    """Random numbers of one set of inputs."""

    def __init__(self, device: str, seed: int) -> None:
        self.device, self.generator = device, torch.Generator(device).manual_seed(seed)

    def normal(self, *size: int) -> Tensor:
        return torch.randn(size, generator=self.generator, device=self.device)

    def uniform(self, count: int, low: float = 0.0, high: float = 1.0) -> Tensor:
        return low + (high - low) * torch.rand(count, generator=self.generator, device=self.device)
