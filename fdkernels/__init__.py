"""Fused kernels for distribution-matching distillation of diffusion models."""

from fdkernels.divergences import Divergence, alpha, divergences, register_divergence
from fdkernels.fdiv import FDivLoss, FDivStats, fdiv_weight, fused_fdiv_loss
from fdkernels.normalizer import RatioNormalizer
from fdkernels.prediction import Prediction

__version__ = "0.1.0"

__all__ = [
    "Divergence",
    "FDivLoss",
    "FDivStats",
    "Prediction",
    "RatioNormalizer",
    "alpha",
    "divergences",
    "fdiv_weight",
    "fused_fdiv_loss",
    "register_divergence",
]
