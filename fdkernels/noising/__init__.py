from fdkernels.noising.api import add_noise

__all__ = ["add_noise"]
