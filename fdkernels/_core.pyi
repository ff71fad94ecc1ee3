"""Types of the pybind11 module; its source is csrc/bindings.cpp."""

from typing import TypedDict

import numpy as np
from numpy.typing import ArrayLike, NDArray

class BuildInfo(TypedDict):
    version: str
    compiler: str
    flags: str
    isa: list[str]
    cuda: str

def build_info() -> BuildInfo: ...
def divergences() -> list[str]: ...
def log_weight(name: str, log_ratio: ArrayLike, alpha: float | None = None) -> NDArray[np.float64]: ...
def weight(name: str, log_ratio: ArrayLike, alpha: float | None = None) -> NDArray[np.float64]: ...
