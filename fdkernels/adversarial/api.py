"""The public functions over the op `adversarial`: signatures, validation, choice of backend."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fdkernels import backends
from fdkernels._op import registry
from fdkernels._op.checks import check_choice, check_like, check_positive, check_samples
from fdkernels._op.views import dense_samples, memory_order
from fdkernels.adversarial import reference
from fdkernels.adversarial.arguments import ADVERSARIAL, AdversarialArguments, adversarial_outputs

_ADVERSARIAL = registry.register(
    registry.Op(
        "adversarial", "adversarial loss", ADVERSARIAL,
        "Tensor loss, Tensor gradient, Tensor unscale, Tensor others_gradient, Tensor others_unscale",
        adversarial_outputs, reference.adversarial, (("logits", "with_grad"), ("others", "with_others_grad")),
    ),
    "fdkernels.adversarial.triton_launch",
)  # fmt: skip
registry.differentiable(_ADVERSARIAL)

KINDS = ("logistic", "hinge", "relativistic")
REDUCTIONS = ("mean", "sum", "none")


def generator_loss(
    fake_logits: Tensor,
    real_logits: Tensor | None = None,
    *,
    kind: str = "logistic",
    clamp: float | None = None,
    reduction: str = "mean",
    backend: str = "auto",
) -> Tensor:
    """A generator's adversarial loss, with its gradient in the same pass.

    | kind           | mean over all logits of                      | gradient                  |
    |----------------|----------------------------------------------|---------------------------|
    | `logistic`     | softplus(-fake), the non-saturating loss     | -sigmoid(-fake) / N       |
    | `hinge`        | -fake                                        | -1 / N                    |
    | `relativistic` | softplus(-(fake - real))                     | ∓sigmoid(real - fake) / N |

    Args:
        fake_logits: (B, *S), floating: the discriminator's logits of generated samples; gets a gradient.
        real_logits: for relativistic alone: logits of real samples in pairs with fake_logits, of the same shape and of
            any floating dtype. They get a gradient too if they require one.
        kind: which loss.
        clamp: c: logits are clamped to [-c, c] first. The gradient is that of torch.clamp: 0 outside, kept at the
            borders.
        reduction: mean, sum, or none: each sample's mean, (B,).
        backend: as in `fused_fdiv_loss`.

    All arithmetic is in float64. A logit that is NaN makes the loss and its own gradient NaN.

    Returns:
        The loss, float32 (float64 for float64 fake_logits).

    Raises:
        ValueError: a shape, dtype or device that does not fit; an unknown kind; real_logits missing, or given to a kind
            that does not use them; a clamp that is not positive.
        TypeError: not a tensor.
        RuntimeError: a backend that is not available, with the reason; double backward.

    Source: Goodfellow et al. 2014; Lim & Ye 2017 (hinge); Jolicoeur-Martineau 2019 (relativistic); FastGen's
    gan_loss_generator.

    Example:
        >>> logits = torch.tensor([0.0, 1.0], requires_grad=True)
        >>> fdk.generator_loss(logits).backward()
        >>> logits.grad  # -sigmoid(-logit) / 2
        tensor([-0.2500, -0.1345])
    """
    check_choice("kind", kind, KINDS)
    if kind == "relativistic":
        if real_logits is None:
            raise ValueError("real_logits: kind 'relativistic' needs them, got None")
    elif real_logits is not None:
        raise ValueError(f"real_logits: expected with kind='relativistic' alone, got kind={kind!r}")
    kind = "linear" if kind == "hinge" else kind
    second = None if real_logits is None else ("real_logits", real_logits)
    return _loss("generator_loss", ("fake_logits", fake_logits), second, kind, True, clamp, 1.0, reduction, backend)


def discriminator_loss(
    fake_logits: Tensor,
    real_logits: Tensor,
    *,
    kind: str = "logistic",
    clamp: float | None = None,
    reduction: str = "mean",
    backend: str = "auto",
) -> Tensor:
    """A discriminator's adversarial loss, with both gradients in the same pass.

    | kind           | loss                                                                     |
    |----------------|--------------------------------------------------------------------------|
    | `logistic`     | mean softplus(fake) + mean softplus(-real)                               |
    | `hinge`        | mean relu(1 + fake) + mean relu(1 - real); gradient 0 at the kink        |
    | `relativistic` | mean softplus(fake - real), in pairs                                     |

    Args:
        fake_logits, real_logits: (B, *S), floating, of any dtypes. Each gets a gradient in its own dtype if it requires
            one. If both have one shape, one launch serves them. Logistic and hinge also take different shapes, at the
            price of two launches. The others, and "none" with different batches, refuse them.
        kind: which loss. Only logits of a logistic discriminator are log ratios, as `fused_fdiv_loss` wants them.
        clamp, reduction, backend: as in `generator_loss`. none: (B,), a sum of two means of each sample.

    Returns:
        The loss, float32 (float64 for float64 fake_logits).

    Raises:
        As `generator_loss`.

    Source: as `generator_loss`; FastGen's gan_loss_discriminator.

    Example:
        >>> on_fake, on_real = torch.zeros(8, 1, requires_grad=True), torch.zeros(8, 1, requires_grad=True)
        >>> loss = fdk.discriminator_loss(on_fake, on_real)
        >>> loss.backward()
        >>> print(f"{loss.item():.4f}")  # 2 log 2, that of a discriminator that sees no difference
        1.3863
    """
    check_choice("kind", kind, KINDS)
    fake, real = ("fake_logits", fake_logits), ("real_logits", real_logits)
    options = (clamp, 1.0, reduction, backend)
    if kind != "relativistic" and _have_other_shapes(fake_logits, real_logits):
        # Two means. Both inputs are checked before the first launch.
        _check_logits(*fake)
        _check_logits(*real)
        if fake_logits.device != real_logits.device:
            raise ValueError(
                f"real_logits: expected device {fake_logits.device} like fake_logits, got {real_logits.device}"
            )
        if reduction == "none" and len(fake_logits) != len(real_logits):
            raise ValueError(
                f"real_logits: expected {len(fake_logits)} samples like fake_logits with reduction='none', got shape "
                f"{tuple(real_logits.shape)}"
            )
        of_fake = _loss("discriminator_loss", fake, None, kind, False, *options)
        of_real = _loss("discriminator_loss", real, None, kind, True, *options)
        return of_fake + of_real.to(of_fake.dtype)
    return _loss("discriminator_loss", fake, real, kind, False, *options)


def gradient_penalty(
    logits: Tensor,
    perturbed_logits: Tensor,
    *,
    sigma: float | None = None,
    reduction: str = "mean",
    backend: str = "auto",
) -> Tensor:
    """The approximate R1 (or R2) penalty, without a double backward: the discriminator's change under small noise.

        loss = mean (D(x) - D(x + σ·noise))² / σ²         without sigma: the numerator alone

    For small σ it is near E‖∇D‖² of real x (R1) or generated x (R2).

    Args:
        logits: (B, *S), floating: D(x).
        perturbed_logits: D(x + σ·noise), of the same shape and of any floating dtype. Each gets a gradient in its own
            dtype if it requires one. With a float16 input, 2·|difference| must stay below 65504.
        sigma: σ, a number from 1e-12 to 1e12. Where it differs between samples, divide each sample's mean by it:
            `(fdk.gradient_penalty(a, b, reduction="none") / sigma**2).mean()`, again one launch.
        reduction, backend: as in `generator_loss`.

    Returns:
        The loss, float32 (float64 for float64 logits).

    Raises:
        ValueError: a shape, dtype or device that does not fit; a sigma that is not positive.
        TypeError: not a tensor.
        RuntimeError: a backend that is not available, with the reason; double backward.

    Source: Lin et al. 2025 (arXiv 2501.08316); FastGen's approximate R1 (no division by σ²).

    Example:
        >>> x, noise = torch.randn(64, 1), torch.ones(64, 1)
        >>> def discriminator(v):
        ...     return 3 * v
        >>> penalty = fdk.gradient_penalty(discriminator(x), discriminator(x + 0.05 * noise), sigma=0.05)
        >>> print(f"{penalty.item():.3f}")  # the squared slope
        9.000
    """
    sigma = 1.0 if sigma is None else check_positive("sigma", sigma)
    if not 1e-12 <= sigma <= 1e12:  # sigma² and its inverse must be float32 numbers, also times a power of float16's
        raise ValueError(f"sigma: expected a number between 1e-12 and 1e12, got {sigma:g}")
    first, second = ("logits", logits), ("perturbed_logits", perturbed_logits)
    return _loss("gradient_penalty", first, second, "square", False, None, sigma, reduction, backend)


def _have_other_shapes(fake_logits: Any, real_logits: Any) -> bool:
    return (
        isinstance(fake_logits, Tensor) and isinstance(real_logits, Tensor) and fake_logits.shape != real_logits.shape
    )


def _check_logits(name: str, logits: Any) -> None:
    check_samples(name, logits)
    if logits.numel() == 0:
        raise ValueError(f"{name}: expected at least one sample, got shape {tuple(logits.shape)}")


def _loss(
    public: str,
    first: tuple[str, Tensor],
    second: tuple[str, Tensor] | None,
    kind: str,
    raised: bool,
    clamp: float | None,
    sigma: float,
    reduction: str,
    backend: str,
) -> Tensor:
    """One call of the op. first, second: logits and others, each with the name of the public argument."""
    name, logits = first
    _check_logits(name, logits)
    others = None
    if second is not None:
        others = second[1]
        check_like(second[0], others, logits, name)
    check_choice("reduction", reduction, REDUCTIONS)
    bound = 0.0 if clamp is None else check_positive("clamp", clamp)
    device = logits.device.type
    chosen = backends.choose(backend, device)
    backends.log_choice(public, chosen, device)
    order = memory_order(logits)
    if order is not None:
        logits, others = logits.permute(order), None if others is None else others.permute(order)
    may_grad = torch.is_grad_enabled()
    call = AdversarialArguments(
        dense_samples(logits), None if others is None else dense_samples(others), kind, raised, bound, sigma, reduction,
        with_grad=may_grad and logits.requires_grad,
        with_others_grad=may_grad and others is not None and others.requires_grad,
    )  # fmt: skip
    return registry.run(_ADVERSARIAL, chosen, call)[0]
