"""Fused kernels for distribution-matching distillation of diffusion models."""

import sys as _sys

from fdkernels import binaries as _binaries

_sys.meta_path.insert(0, _binaries.CoreFinder)

try:
    import torch as _torch  # noqa: F401
except (ImportError, OSError) as _error:
    # Without a working torch, `python -m fdkernels` and `fdkernels._core` still work; all other names raise the reason.
    _why = f"{type(_error).__name__}: {_error}"

    def __getattr__(name: str) -> object:
        if name in __all__:
            raise ImportError(f"fdkernels.{name} needs torch, which does not import here ({_why})")
        raise AttributeError(f"module 'fdkernels' has no attribute {name!r}")
else:
    from fdkernels.adversarial import discriminator_loss, generator_loss, gradient_penalty
    from fdkernels.denoising import denoising_loss
    from fdkernels.divergences import Divergence, alpha, divergences, register_divergence
    from fdkernels.fdiv import DmdScale, FDivLoss, FDivStats, fdiv_weight, fused_fdiv_loss
    from fdkernels.implicit import score_implicit_loss
    from fdkernels.noising import add_noise
    from fdkernels.normalizer import RatioNormalizer
    from fdkernels.prediction import Prediction

__version__ = "0.2.0"

__all__ = [
    "Divergence",
    "DmdScale",
    "FDivLoss",
    "FDivStats",
    "Prediction",
    "RatioNormalizer",
    "add_noise",
    "alpha",
    "denoising_loss",
    "discriminator_loss",
    "divergences",
    "fdiv_weight",
    "fused_fdiv_loss",
    "generator_loss",
    "gradient_penalty",
    "register_divergence",
    "score_implicit_loss",
]
