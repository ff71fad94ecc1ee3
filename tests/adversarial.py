"""Cases of the op adversarial, and their expected results in float64, written from the formulas alone."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.nn import functional as F

from fdkernels import testing
from fdkernels.adversarial.arguments import AdversarialArguments
from tests.cases import Inputs, Outcome, assert_loss
from tests.device import place


def softplus(v: Tensor) -> Tensor:
    """log(1 + e^v), in both tails."""
    return -F.logsigmoid(-v)


GENERATOR = {
    "logistic": lambda fake: softplus(-fake),
    "hinge": lambda fake: -fake,
    "relativistic": lambda fake, real: softplus(real - fake),
}
DISCRIMINATOR = {
    "logistic": lambda fake, real: (softplus(fake), softplus(-real)),
    "hinge": lambda fake, real: ((1 + fake).relu(), (1 - real).relu()),
    "relativistic": lambda fake, real: (softplus(fake - real),),
}


@dataclass
class DiscriminatorCase(Inputs):
    """One call of `discriminator_loss`. PyTorch's own float64 formulas and autograd are the oracle."""

    OP = "adversarial"
    PUBLIC = "discriminator_loss"
    ORDER = ("fake_logits", "real_logits")
    GRADIENTS = ("fake_logits", "real_logits")

    fake_logits: Tensor
    real_logits: Tensor | None = None
    options: dict[str, Any] = field(default_factory=dict)

    def formula(self, *logits: Tensor) -> Tensor:
        """The loss in plain PyTorch, of float64 logits."""
        clamp, reduction = self.options.get("clamp"), self.options.get("reduction", "mean")
        if clamp is not None:  # a logit at the bound has a gradient; torch.clamp gives it none from torch 2.14 on
            logits = tuple(torch.where(v.abs() <= clamp, v, v.detach().clamp(-clamp, clamp)) for v in logits)
        parts = self.parts(*logits)
        if reduction == "none":
            return sum(v.reshape(len(v), -1).mean(1) for v in parts)
        return sum(v.mean() if reduction == "mean" else v.sum() for v in parts)

    def parts(self, *logits: Tensor) -> tuple[Tensor, ...]:
        """The tensors whose means are added."""
        return DISCRIMINATOR[self.options.get("kind", "logistic")](*logits)

    def expected(self) -> tuple[Tensor, tuple[Tensor, ...]]:
        """(loss, gradients)"""
        leaves = [v.detach().cpu().double().requires_grad_() for v in self.tensors().values()]
        loss = self.formula(*leaves)
        return loss.detach(), torch.autograd.grad(loss.sum(), leaves)

    def hold(self, outcome: Outcome, expected: Any, upstream: Tensor | None = None) -> None:
        given = list(self.tensors().values())
        assert outcome.loss.dtype == (torch.float64 if given[0].dtype == torch.float64 else torch.float32)
        assert_loss(outcome.loss, expected[0])
        factor = torch.ones((), dtype=torch.float64) if upstream is None else upstream.double()
        for v, grad, wanted in zip(given, outcome.grads, expected[1], strict=True):
            assert grad.dtype == v.dtype
            by = factor.reshape(-1, *(1,) * (v.dim() - 1)) if factor.dim() else factor
            testing.assert_gradient(grad, wanted * by, upstream_is_one=upstream is None)


class GeneratorCase(DiscriminatorCase):
    """One call of `generator_loss`."""

    PUBLIC = "generator_loss"
    ORDER: ClassVar[tuple[str, ...]] = ("fake_logits",)
    GRADIENTS: ClassVar[tuple[str, ...]] = ("fake_logits",)

    def parts(self, *logits: Tensor) -> tuple[Tensor, ...]:
        return (GENERATOR[self.options.get("kind", "logistic")](*logits),)


class RelativisticCase(GeneratorCase):
    """One call of `generator_loss` with real logits."""

    ORDER = ("fake_logits", "real_logits")
    GRADIENTS = ("fake_logits", "real_logits")


@dataclass
class PenaltyCase(DiscriminatorCase):
    """One call of `gradient_penalty`."""

    PUBLIC = "gradient_penalty"
    ORDER = ("logits", "perturbed_logits")
    GRADIENTS = ("logits", "perturbed_logits")

    fake_logits: None = None
    logits: Tensor | None = None
    perturbed_logits: Tensor | None = None

    def parts(self, *logits: Tensor) -> tuple[Tensor, ...]:
        sigma = self.options.get("sigma")
        return ((logits[0] - logits[1]).square() / (1.0 if sigma is None else float(sigma)) ** 2,)


def make_logits(shape: tuple[int, ...], dtype: torch.dtype, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)

    def normal() -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    return (2 * normal() - 1).to(dtype), (2 * normal() + 1).to(dtype)


def make_discriminator(
    shape: tuple[int, ...] = (4, 3, 8, 8), dtype: torch.dtype = torch.float32, *, seed: int = 0, **options: Any
) -> DiscriminatorCase:
    return DiscriminatorCase(*make_logits(shape, dtype, seed), options=options)


def make_generator(
    shape: tuple[int, ...] = (4, 3, 8, 8), dtype: torch.dtype = torch.float32, *, seed: int = 0, **options: Any
) -> GeneratorCase:
    fake, real = make_logits(shape, dtype, seed)
    if options.get("kind") == "relativistic":
        return RelativisticCase(fake, real, options=options)
    return GeneratorCase(fake, options=options)


def make_penalty(
    shape: tuple[int, ...] = (4, 3, 8, 8), dtype: torch.dtype = torch.float32, *, seed: int = 0, **options: Any
) -> PenaltyCase:
    logits, other = make_logits(shape, torch.float64, seed)
    return PenaltyCase(logits=logits.to(dtype), perturbed_logits=(logits + 0.1 * other).to(dtype), options=options)


def raw_adversarial(dtype: torch.dtype = torch.float32, **changes: Any) -> AdversarialArguments:
    fake, real = make_logits((4, 3, 6, 5), dtype)
    call = AdversarialArguments(
        logits=fake, others=real, kind="logistic", raised=False, bound=2.5, sigma=0.5,
        reduction="mean", with_grad=True, with_others_grad=True,
    )  # fmt: skip
    return AdversarialArguments(*map(place, call._replace(**changes)))
