"""`fdkernels._core`: what it was built with, and its arguments; its values are held to the oracle elsewhere."""

from __future__ import annotations

import re

import numpy as np
import pytest

import fdkernels
from fdkernels import _core


def test_build_info() -> None:
    info = _core.build_info()
    assert info["version"] == fdkernels.__version__
    assert re.match(r"(GNU|Clang|AppleClang) \d+", info["compiler"])
    assert "-O3" in info["flags"]
    assert info["isa"]
    if info["cuda"] == "none":
        assert info["cuda_archs"] == []
    else:
        assert re.fullmatch(r"\d+\.\d+", info["cuda"])
        assert info["cuda_archs"] and all(re.fullmatch(r"\d{2,3}(\+PTX)?", arch) for arch in info["cuda_archs"])


def test_table_has_the_names_of_the_python_table() -> None:
    rows = {d.kernel for d in fdkernels.divergences().values() if d.kernel is not None}  # a registered one has no row
    assert set(_core.divergences()) == rows | {"alpha"}


def test_shapes_and_strides() -> None:
    log_ratio = np.linspace(-3, 3, 24).reshape(2, 3, 4)[:, ::2]
    log_h = _core.log_weight("kl", log_ratio)
    assert log_h.dtype == np.float64 and np.array_equal(log_h, log_ratio)
    np.testing.assert_allclose(_core.weight("kl", log_ratio), np.exp(log_ratio), rtol=4e-16)
    assert _core.weight("rkl", np.zeros((0, 2))).shape == (0, 2)
    assert _core.weight("js", 0.0).shape == ()


def test_alpha_belongs_to_alpha() -> None:
    assert _core.log_weight("alpha", [2.0], alpha=0.5)[0] == 1.0
    with pytest.raises(ValueError, match="alpha: expected a number for the divergence alpha, got None"):
        _core.weight("alpha", [0.0])
    with pytest.raises(ValueError, match="alpha: expected None for the divergence kl, got a number"):
        _core.weight("kl", [0.0], alpha=1.0)
    with pytest.raises(ValueError, match="alpha: expected a finite number, got inf"):
        _core.weight("alpha", [0.0], alpha=float("inf"))


def test_unknown_name() -> None:
    with pytest.raises(ValueError, match="name: expected one of rkl kl .*, got klx"):
        _core.weight("klx", [0.0])
