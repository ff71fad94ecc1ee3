from fdkernels.fdiv.api import FDivStats, fdiv_weight, fused_fdiv_loss
from fdkernels.fdiv.module import FDivLoss
from fdkernels.fdiv.scale import DmdScale

__all__ = ["DmdScale", "FDivLoss", "FDivStats", "fdiv_weight", "fused_fdiv_loss"]
