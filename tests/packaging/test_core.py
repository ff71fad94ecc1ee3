"""`fdkernels._core`: what it was built with, and its arguments. Other tests check its values and plans."""

from __future__ import annotations

import re

import numpy as np
import pytest

import fdkernels
from fdkernels import _core
from fdkernels.call_shape import CallShape
from fdkernels.devices import PRESETS


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
    assert _core.log_weight("rkl", np.zeros((0, 2))).shape == (0, 2)
    assert _core.log_weight("js", 0.0).shape == ()


def test_alpha_belongs_to_alpha() -> None:
    assert _core.log_weight("alpha", [2.0], alpha=0.5)[0] == 1.0
    with pytest.raises(ValueError, match="alpha: expected a number for the divergence alpha, got None"):
        _core.log_weight("alpha", [0.0])
    with pytest.raises(ValueError, match="alpha: expected None for the divergence kl, got a number"):
        _core.log_weight("kl", [0.0], alpha=1.0)
    with pytest.raises(ValueError, match="alpha: expected a finite number, got inf"):
        _core.log_weight("alpha", [0.0], alpha=float("inf"))


def test_unknown_name() -> None:
    with pytest.raises(ValueError, match="name: expected one of rkl kl .*, got klx"):
        _core.log_weight("klx", [0.0])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"batch": 0}, "batch: expected a count from 1 to 1152921504606846976, got 0"),
        ({"elements": -3}, "elements: expected a count from 1 to .*, got -3"),
        ({"batch": 2**31, "elements": 2**30}, "elements: expected a count from 1 to 536870912, got 1073741824"),
        ({"student": "f32"}, "student: expected one of bf16 fp16 fp32 fp64, got f32"),
        ({"teacher": "int8"}, "teacher: expected one of bf16 fp16 fp32 fp64, got int8"),
        ({"fake": ""}, "fake: expected one of bf16 fp16 fp32 fp64, got "),
        ({"noisy": "fp8"}, "noisy: expected one of bf16 fp16 fp32 fp64, got fp8"),
        ({"multiplier": 7}, "multiplier: expected entries that divide 3072 elements, got 7"),
        ({"multiplier": -1}, "multiplier: expected .*, got -1"),
        ({"mask": (3, 4)}, "mask: expected 1 or 8 rows of entries that divide 3072 elements, got 3 of 4"),
        ({"mask": (1, 0)}, "mask: expected .*, got 1 of 0"),
        ({"heads": -1}, "heads: expected a count from 0 to .*, got -1"),
        ({"bins": 10}, r"bins: expected 0 without logits \(heads=0\), got 10"),
        ({"heads": 1, "bins": -10}, "bins: expected a count from 0 to 2147483647, got -10"),
        ({"reduction": "max"}, "reduction: expected one of mean sum none, got max"),
        (
            {"allowed": "cluster:3"},
            "allowed: expected auto, cluster, cluster:1 to cluster:16, grid or grid:1 to grid:64, got cluster:3",
        ),
        ({"allowed": "grid:65"}, "allowed: .* got grid:65"),
    ],
)
def test_bad_arguments_of_a_plan(changes: dict, message: str) -> None:
    allowed = changes.get("allowed", "auto")
    call = CallShape(8, 3072)._replace(**{name: value for name, value in changes.items() if name != "allowed"})
    for function in (_core.plan, _core.plans):
        with pytest.raises(ValueError, match=message):
            function(call, PRESETS["h200"], allowed)


def test_a_field_of_another_type() -> None:
    with pytest.raises(TypeError, match="heads: expected what CallShape says, got None"):
        _core.plan(CallShape(8, 3072)._replace(heads=None), PRESETS["h200"])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"cache": None}, "limits: expected cache from 0 to .*, got None"),
        ({"bandwidth": float("nan")}, "limits: expected bandwidth from 1 to .*, got nan"),
        ({"multiprocessors": 0}, "limits: expected multiprocessors from 1 to .*, got 0"),
        ({"shared_per_block": 1024}, "limits: expected shared_per_block from 4096 to .*, got 1024"),
        (
            {"active_clusters": (132, 66)},
            r"limits: expected active_clusters of the sizes 1, .* 16, got \(132, 66\)",
        ),
        ({"active_clusters": (132, 66, 32, 16, -8)}, "limits: expected active_clusters from 0 to .*, got -8"),
        ({"active_clusters": 132}, "limits: expected active_clusters of the sizes .*, got 132"),
        ({"warps": 64}, "limits: expected the fields of DeviceLimits alone, got .*warps"),
    ],
)
def test_bad_limits_of_a_plan(changes: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        _core.plan(CallShape(8, 3072), {**PRESETS["h200"], **changes})
    without = {name: value for name, value in PRESETS["h200"].items() if name != "cache"}
    with pytest.raises(ValueError, match="limits: expected the key cache, got "):
        _core.plan(CallShape(8, 3072), without)
