"""PyTorch losses for distilling a diffusion model into a one-step generator, fused with their gradients.

Examples begin with `import torch` and `import fdkernels as fdk`. `fdkernels.testing` has the tolerances of the kernels.
"""

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

# In the order of the reference that `make docs` writes.
__all__ = [
    "fused_fdiv_loss",
    "fdiv_weight",
    "FDivLoss",
    "FDivStats",
    "RatioNormalizer",
    "DmdScale",
    "Prediction",
    "add_noise",
    "denoising_loss",
    "generator_loss",
    "discriminator_loss",
    "gradient_penalty",
    "score_implicit_loss",
    "divergences",
    "Divergence",
    "alpha",
    "register_divergence",
]
