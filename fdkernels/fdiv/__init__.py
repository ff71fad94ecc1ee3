from fdkernels.fdiv.api import FDivLoss, FDivStats, fdiv_weight, fused_fdiv_loss
from fdkernels.fdiv.scale import DmdScale

__all__ = ["DmdScale", "FDivLoss", "FDivStats", "fdiv_weight", "fused_fdiv_loss"]
