"""The formulas that are timed: data, our call, the peer's chain, and the exact result in float64.

All but `weight` run forward + backward, to the student's gradient, at an upstream that exists already. The upstream is
1, where our backward has nothing to do, with two exceptions: fastgen_scaled (like a loss divided for accumulation, or
weighted against other losses), where our backward passes over the gradient once more, and float16, which trains with a
loss scale. All data has the case's dtype (coefficients, logits and t are float32), although a peer may mix dtypes: DMD2
trains in float32 with a teacher in bf16. What the peers compute for their logs (norms fetched with `.item()`) is left
out.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

import fdkernels as fdk
from benchmarks.cases import baselines
from benchmarks.cases.shapes import DTYPES, TINY, Case

HEADS, BINS, GUIDANCE_W = 2, 10, 3.0
LOSS_SCALE = 32768.0  # of float16: its largest power of two, since some peers' losses are float16
DISTINCT = 4  # sets of inputs with different values; a longer rotation adds copies of them

# Bytes of an fdiv_weight call beside its logits: (t and the weight per sample, the bins read and written).
WEIGHT_BYTES = (4 + 4, 8 * BINS)


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


Step = Callable[[Inputs], Tensor]  # from data to the gradient, or the weight


@dataclass(frozen=True)
class Formula:
    name: str
    op: str
    title: str
    peer: str
    chain: Callable[..., Tensor]
    call: Callable[[Callable[..., Tensor], Inputs, Tensor], Tensor]  # (chain, data, bins) -> the peer's loss or weight
    ours: Callable[[Inputs, fdk.RatioNormalizer, str], Tensor]  # (data, normalizer, backend) -> our loss or weight
    exact: Callable[[Inputs], Tensor]  # the gradient at an upstream of 1, or the weight, in float64
    inputs: Callable[[Case, Draw], Inputs]
    images: int
    """N-sized inputs that have to be read. 0: the formula takes only logits, and gives a weight without gradient."""
    reread: int = 2  # how many of `images` are read again if a sample does not stay on chip
    plan: Callable[[Case], dict[str, Any]] = lambda case: {}  # fields of its CallShape
    upstream: float = 1.0
    forward: bool = False  # its result is timed, without a backward
    video: bool = False  # takes five sizes, and puts frames before channels

    def minimum_bytes(self, case: Case) -> int:
        """Inputs read once and the result written once."""
        if not self.images:
            return 4 * case.elements + WEIGHT_BYTES[0] * case.shape[0] + WEIGHT_BYTES[1]
        return (self.images + 1) * case.elements * case.itemsize

    def input_bytes(self, case: Case) -> int:
        """Bytes of one set's N-sized inputs; if it has none, `minimum_bytes`."""
        return self.images * case.elements * case.itemsize or self.minimum_bytes(case)

    def why_not(self, shape: tuple[int, ...]) -> str | None:
        return f"{self.name} takes videos, five sizes" if self.video and len(shape) != 5 else None

    def upstream_at(self, dtype: torch.dtype) -> float:
        return self.upstream * (LOSS_SCALE if dtype == torch.float16 else 1.0)

    def exact_result(self, v: Inputs) -> Tensor:
        return self.exact(v) * (1.0 if self.forward else self.upstream_at(v.student.dtype))

    def case(self, shape_name: str, sizes: tuple[int, ...], dtype: str) -> Case:
        if not self.images:
            sizes, dtype = (sizes if len(sizes) == 2 else (sizes[0], HEADS)), "fp32"
        elif self.video:
            sizes = (sizes[0], sizes[2], sizes[1], *sizes[3:])
        return Case(self.op, self.name, shape_name, sizes, dtype)

    def tiny(self, dtype: str = "fp32") -> Case:
        return self.case("tiny", TINY["tiny_video" if self.video else "tiny"].sizes, dtype)

    def our_step(self, backend: str, device: str) -> Step:
        normalizer = fdk.RatioNormalizer(BINS, (0.0, 1.0), 0.9).to(device)
        return self._step(lambda v: self.ours(v, normalizer, backend))

    def peer_step(self, chain: Callable[..., Tensor], device: str) -> Step:
        bins = torch.ones(BINS, device=device)
        return self._step(lambda v: self.call(chain, v, bins))

    def _step(self, result: Callable[[Inputs], Tensor]) -> Step:
        if not self.images or self.forward:
            return result
        upstreams: dict[torch.dtype, Tensor] = {}

        def step(v: Inputs) -> Tensor:
            loss = result(v)
            upstream = upstreams.get(loss.dtype)
            if upstream is None:
                upstream = upstreams[loss.dtype] = torch.full_like(loss, self.upstream_at(v.student.dtype))
            return torch.autograd.grad(loss, v.student, upstream)[0]

        return step


# ---- data


class Draw:
    """Random numbers of one set of inputs."""

    def __init__(self, device: str, seed: int) -> None:
        self.device, self.generator = device, torch.Generator(device).manual_seed(seed)

    def normal(self, *size: int) -> Tensor:
        return torch.randn(size, generator=self.generator, device=self.device)

    def uniform(self, count: int, low: float = 0.0, high: float = 1.0) -> Tensor:
        return low + (high - low) * torch.rand(count, generator=self.generator, device=self.device)


def _logits(case: Case, draw: Draw) -> Inputs:
    nothing = torch.empty(0, device=draw.device)
    return Inputs(nothing, nothing, nothing, draw.normal(*case.shape), draw.uniform(case.shape[0]))


def _images(case: Case, draw: Draw) -> Inputs:
    dtype, batch = DTYPES[case.dtype], case.shape[0]
    x = draw.normal(*case.shape)
    teacher = x + 0.5 * draw.normal(*case.shape)
    fake = teacher + 0.25 * draw.normal(*case.shape)
    logits, t = draw.normal(batch, HEADS), draw.uniform(batch)
    return Inputs(x.to(dtype).requires_grad_(), teacher.to(dtype), fake.to(dtype), logits, t)


def _predictions(case: Case, draw: Draw) -> Inputs:
    """Like `_images`, with predictions of epsilon in place of x0."""
    v, dtype = _images(case, draw), DTYPES[case.dtype]
    alpha = draw.uniform(case.shape[0], 0.2, 0.9)
    sigma = (1 - alpha**2).sqrt()
    a, s = baselines.per_sample(alpha, v.student), baselines.per_sample(sigma, v.student)
    noisy = (a * v.student.detach() + s * draw.normal(*case.shape)).to(dtype)
    teacher, fake = (((noisy.float() - a * x0) / s).to(dtype) for x0 in (v.teacher, v.fake))
    return v._replace(teacher=teacher, fake=fake, noisy=noisy, alpha=alpha, sigma=sigma)


def _noised(case: Case, draw: Draw) -> Inputs:
    """`student` is a v prediction of x0 (`teacher`) and noise (`fake`), or just there."""
    dtype = DTYPES[case.dtype]
    x0, noise, error = (draw.normal(*case.shape) for _ in range(3))
    alpha = draw.uniform(case.shape[0], 0.2, 0.9)
    sigma = (1 - alpha**2).sqrt()
    v = baselines.per_sample(alpha, x0) * noise - baselines.per_sample(sigma, x0) * x0 + 0.5 * error
    nothing = torch.empty(0, device=draw.device)
    return Inputs(
        v.to(dtype).requires_grad_(), x0.to(dtype), noise.to(dtype), nothing, nothing, alpha=alpha, sigma=sigma
    )


def _guided_videos(case: Case, draw: Draw) -> Inputs:
    v = _images(case, draw)
    uncond = (v.teacher + 0.1 * draw.normal(*case.shape)).to(v.teacher.dtype)
    frames = torch.ones(*case.shape[:2], *[1] * (len(case.shape) - 2), dtype=torch.bool, device=draw.device)
    frames[:, 0] = False  # the first frame is given
    return v._replace(uncond=uncond, frames=frames, mask=frames.expand(case.shape).contiguous())


def make_inputs(case: Case, device: str, seed: int) -> Inputs:
    return FORMULAS[case.formula].inputs(case, Draw(device, seed))


def rotation(case: Case, device: str, count: int) -> list[Inputs]:
    """Sets of inputs, each with its own memory."""
    sets = [make_inputs(case, device, seed) for seed in range(min(count, DISTINCT))]

    def copied(w: Tensor | None) -> Any:
        return None if w is None else w.detach().clone().requires_grad_(w.requires_grad)

    return sets + [Inputs(*map(copied, sets[i % DISTINCT])) for i in range(len(sets), count)]


# ---- exact results, in float64


def exact_weight(v: Inputs) -> Tensor:
    """h of js divided by its batch mean, for fresh bins and decay 0.9."""
    r = v.logits.double().mean(1).exp().clamp(0.1, 20.0)
    index = (v.t.double() * BINS).floor().long().clamp(0, BINS - 1)
    for b in index.unique():
        here = index == b
        r[here] = r[here] / (0.9 + 0.1 * r[here].mean())
    h = r / (1 + r)
    return h / h.mean()


def exact_gradient(
    x: Tensor, teacher: Tensor, fake: Tensor, h: Tensor | None = None, eps: float = 0.0, mask: Tensor | None = None
) -> Tensor:
    """h (f - τ) / (mean|x - τ| + eps) / N. With a mask, N counts kept elements, and others have no gradient."""
    w = 1 / ((x - teacher).abs().flatten(1).mean(1) + eps)
    gradient = baselines.per_sample(w if h is None else h * w, x) * (fake - teacher)
    return gradient / x.numel() if mask is None else torch.where(mask, gradient, 0) / mask.sum()


def _doubles(*tensors: Tensor | None) -> Any:
    return tuple(v.detach().double() for v in tensors if v is not None)


def _exact_fastgen(v: Inputs) -> Tensor:
    x, teacher, fake = _doubles(v.student, v.teacher, v.fake)
    return exact_gradient(x, teacher, fake, exact_weight(v), eps=1e-6)


def _exact_dmd2_latent(v: Inputs) -> Tensor:
    x, teacher, fake, noisy, alpha, sigma = _doubles(v.student, v.teacher, v.fake, v.noisy, v.alpha, v.sigma)
    a, s = baselines.per_sample(alpha, x), baselines.per_sample(sigma, x)
    return exact_gradient(x, (noisy - s * teacher) / a, (noisy - s * fake) / a)


def _exact_self_forcing(v: Inputs) -> Tensor:
    x, cond, uncond, fake = _doubles(v.student, v.teacher, v.uncond, v.fake)
    return exact_gradient(x, cond + GUIDANCE_W * (cond - uncond), fake, mask=v.mask)


def _levels(v: Inputs) -> tuple[Tensor, Tensor]:
    assert v.alpha is not None and v.sigma is not None
    return v.alpha, v.sigma


def _exact_noising(v: Inputs) -> Tensor:
    x0, noise, alpha, sigma = _doubles(v.teacher, v.fake, v.alpha, v.sigma)
    return baselines.per_sample(alpha, x0) * x0 + baselines.per_sample(sigma, x0) * noise


def _exact_denoising(v: Inputs) -> Tensor:
    pred, x0, noise, alpha, sigma = _doubles(v.student, v.teacher, v.fake, v.alpha, v.sigma)
    a, s = baselines.per_sample(alpha, x0), baselines.per_sample(sigma, x0)
    return 2 * (pred - (a * noise - s * x0)) / pred.numel()


# ---- the table

# The peers of rkl add no epsilon to mean|x - τ|.
_RKL: dict[str, Any] = {"divergence": "rkl", "scale": fdk.DmdScale(eps=0.0)}


_FASTGEN: dict[str, Any] = {
    "op": "fused_fdiv_loss", "peer": "fastgen", "chain": baselines.fastgen_chain,
    "call": lambda chain, v, bins: chain(v.student, v.teacher, v.fake, v.logits, v.t, bins),
    "ours": lambda v, normalizer, backend: fdk.fused_fdiv_loss(
        v.student, v.teacher, v.fake, v.logits, v.t, divergence="js", normalizer=normalizer, backend=backend
    ),
    "exact": _exact_fastgen, "inputs": _images, "images": 3, "plan": lambda case: {"heads": HEADS, "bins": BINS},
}  # fmt: skip

FORMULAS = {
    formula.name: formula
    for formula in (
        Formula("fastgen", title="f-distill as FastGen has it: js, normalizer, dmd scale", **_FASTGEN),
        Formula(
            "fastgen_scaled", title="fastgen at an upstream of 1/4, which a backward has to multiply the gradient by",
            upstream=0.25, **_FASTGEN,
        ),
        Formula(
            "dmd2_pixel", "fused_fdiv_loss", "reverse KL as DMD2 has it for EDM: x0 predictions, dmd scale",
            "dmd2", baselines.dmd2_pixel_chain,
            call=lambda chain, v, _: chain(v.student, v.teacher, v.fake),
            ours=lambda v, _, backend: fdk.fused_fdiv_loss(v.student, v.teacher, v.fake, backend=backend, **_RKL),
            exact=lambda v: exact_gradient(*_doubles(v.student, v.teacher, v.fake)), inputs=_images, images=3,
        ),
        Formula(
            "dmd2_latent", "fused_fdiv_loss", "reverse KL as DMD2 has it for Stable Diffusion: raw epsilon predictions",
            "dmd2", baselines.dmd2_latent_epsilon_chain,
            call=lambda chain, v, _: chain(v.student, v.teacher, v.fake, v.noisy, v.alpha, v.sigma),
            ours=lambda v, _, backend: fdk.fused_fdiv_loss(
                v.student, v.teacher, v.fake, backend=backend, **_RKL,
                prediction=fdk.Prediction("epsilon", v.noisy, alpha=v.alpha, sigma=v.sigma),
            ),
            exact=_exact_dmd2_latent, inputs=_predictions, images=4,
            plan=lambda case: {"noisy": case.dtype, "raw": True},
        ),
        Formula(
            "self_forcing", "fused_fdiv_loss", "reverse KL as Self-Forcing has it: guided teacher, frames masked (the"
            " peer gathers the elements it keeps in float64, compiled or not)",
            "self_forcing", baselines.self_forcing_chain,
            call=lambda chain, v, _: chain(v.student, v.teacher, v.uncond, v.fake, GUIDANCE_W, v.mask),
            ours=lambda v, _, backend: fdk.fused_fdiv_loss(
                v.student, v.teacher, v.fake, teacher_uncond=v.uncond, guidance_scale=1 + GUIDANCE_W, mask=v.frames,
                backend=backend, **_RKL,
            ),
            exact=_exact_self_forcing, inputs=_guided_videos, images=4, reread=3, video=True,
            plan=lambda case: {"teacher_uncond": case.dtype, "mask": (case.shape[0], case.shape[1])},
        ),
        Formula(
            "noising", "add_noise", "x_t = α·x0 + σ·ε with ε given, forward alone", "diffusers",
            baselines.add_noise_chain,
            call=lambda chain, v, _: chain(v.teacher, v.fake, v.alpha, v.sigma),
            ours=lambda v, _, backend: fdk.add_noise(v.teacher, *_levels(v), v.fake, backend=backend),
            exact=_exact_noising, inputs=_noised, images=2, reread=0, forward=True,
        ),
        Formula(
            "denoising", "denoising_loss", "the fake score's loss as FastGen has it, of a v prediction",
            "fastgen", baselines.fastgen_denoising_loss,
            call=lambda chain, v, _: chain(v.student, v.teacher, v.fake, v.alpha, v.sigma),
            ours=lambda v, _, backend: fdk.denoising_loss(
                v.student, v.teacher, v.fake, "v_prediction", v.alpha, v.sigma, backend=backend
            ),
            exact=_exact_denoising, inputs=_noised, images=3, reread=0,
        ),
        Formula(
            "weight", "fdiv_weight", "FastGen's weight alone, from logits: js, normalizer",
            "fastgen", baselines.fastgen_weight,
            call=lambda chain, v, bins: chain(v.logits, v.t, bins),
            ours=lambda v, normalizer, backend: fdk.fdiv_weight(
                v.logits, v.t, divergence="js", normalizer=normalizer, backend=backend
            ),
            exact=exact_weight, inputs=_logits, images=0,
        ),
    )
}  # fmt: skip
OPS = tuple(dict.fromkeys(formula.op for formula in FORMULAS.values()))
