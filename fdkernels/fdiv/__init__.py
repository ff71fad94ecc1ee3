from fdkernels.fdiv.api import FDivLoss, FDivStats, fdiv_weight, fused_fdiv_loss

__all__ = ["FDivLoss", "FDivStats", "fdiv_weight", "fused_fdiv_loss"]
