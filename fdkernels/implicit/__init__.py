from fdkernels.implicit.api import score_implicit_loss

__all__ = ["score_implicit_loss"]
