from fdkernels.denoising.api import denoising_loss

__all__ = ["denoising_loss"]
