"""The native backend's plans: every plan gives the right gradient, and the launch is the one that the plan says."""

import functools
import re

import pytest
import torch

import fdkernels as fdk
from tests.cases import assert_stats, make, normalizer, same_bits
from tests.gpu.calls import (
    CLUSTER,
    EVERY_OPTION,
    PLAN,
    PRACTICE,
    READ_AGAIN,
    WEIGH,
    WEIGH_ONE,
    batch,
    hold,
    in_float64,
    make_batch,
    planned,
)
from tests.gpu.conftest import skip_unless_possible
from tools.gpu_check.stage import NO_SCHEDULE
from tools.machine_code.instructions import SYSTEM_SHARED

pytestmark = [pytest.mark.gpu, pytest.mark.backends("native")]

PLANS = ("cluster:1", "cluster:2", "cluster:4", "cluster:8", "cluster:16", "grid:1", "grid:3")
BF16, FP16, FP32, FP64 = torch.bfloat16, torch.float16, torch.float32, torch.float64
# Student and predictions: every combination of types that has kernels of its own, and the odd mixes.
TYPES = ((BF16, BF16), (FP16, FP16), (FP32, FP32), (BF16, FP32), (FP16, FP32), (FP32, BF16), (FP64, FP64))
# The most bytes that a kernel takes beside the plan's: its own static ones, and those that CUDA takes of each block.
STATIC_SHARED = 3 * 1024 + SYSTEM_SHARED


def names(types):
    return "-".join(str(dtype).removeprefix("torch.") for dtype in types)


@pytest.fixture(params=PLANS)
def plan(request, monkeypatch, _in_force):
    skip_unless_possible(request.param)
    monkeypatch.setenv(PLAN, request.param)
    return request.param


# Results.


@pytest.mark.parametrize("types", TYPES, ids=names)
@pytest.mark.parametrize("option", [option for option in EVERY_OPTION if option != "own divergence"])
def test_options(backend, plan, option, types):
    """504 elements a sample: a whole number of vectors, but fewer than a cluster of 16 or the grid could share."""
    student, predictions = types
    make_batch((5, 3, 4, 6, 7), student, option, predictions=predictions, seed=1234).check(backend)


@pytest.mark.parametrize("shape", ((5, 3, 5, 7, 3), (3, 2, 29, 173), (1, 4, 40, 53)), ids=str)
@pytest.mark.parametrize("types", ((BF16, BF16), (FP32, FP32), (FP64, FP64)), ids=names)
@pytest.mark.parametrize("option", ("plain", "mask", "epsilon, guided twice"))
def test_odd_lengths(backend, plan, option, types, shape):
    """Samples that begin off 16 bytes; a single sample that ends off them; several vectors a thread."""
    student, predictions = types
    make_batch(shape, student, option, predictions=predictions, seed=7).check(backend)


@pytest.mark.parametrize("reduction", ("mean", "sum", "none"))
@pytest.mark.parametrize("dtype", (BF16, FP16, FP32, FP64), ids=str)
def test_reductions_under_an_upstream(backend, plan, dtype, reduction):
    case = make((5, 3, 4, 6, 7), dtype, reduction=reduction, normalizer=normalizer(4))
    wide = torch.float64 if dtype == FP64 else torch.float32
    upstream = torch.tensor([3.0, 1.0, 0.0, -0.5, 65536.0] if reduction == "none" else 65536.0, dtype=wide)
    if dtype == FP16 and reduction == "sum":
        upstream = torch.tensor(3.0)  # a sum's gradient times 65536 is beyond float16
    case.check(backend, upstream)


def test_figures(backend, plan):
    for option in ("normalizer", "mask", "multiplier per row", "flow per channel", "none", "weight"):
        case = make_batch((5, 3, 4, 6, 7), FP32, option)
        assert_stats(case.run(backend, stats=True).stats, case.expected())


@pytest.mark.parametrize("size", (1e-25, 1e-21, 1e22, 1e30))
def test_squares_that_float32_cannot_hold(backend, plan, size):
    case = make_batch((5, 3, 4, 6, 7), FP32, "plain")
    scaled = {name: getattr(case, name) * size for name in ("student", "teacher", "fake")}
    case.but(**scaled, scale=fdk.DmdScale(0.0)).check(backend)


@pytest.mark.parametrize("dtype", (BF16, FP32), ids=str)
def test_asking_for_figures_or_for_no_gradient_changes_nothing(backend, plan, dtype):
    case = batch((16, 4, 32, 32), dtype)
    with_figures, plain = case.run(backend, stats=True), case.run(backend)
    assert same_bits(with_figures.loss, plain.loss) and same_bits(with_figures.grad, plain.grad)
    with torch.no_grad():
        loss = case.but(**case.fresh_options()).call(backend)
    assert same_bits(loss, plain.loss)


# Launches.

FOLLOWED = {
    "CIFAR": (PRACTICE["CIFAR"], BF16, "normalizer"),
    "CIFAR, plain": (PRACTICE["CIFAR"], FP32, "plain"),
    "SDXL": (PRACTICE["SDXL"], BF16, "normalizer"),
    "SDXL, fp16": (PRACTICE["SDXL"], FP16, "none"),
    "SDXL, a multiplier": (PRACTICE["SDXL"], FP32, "multiplier per row"),
    "Wan": (PRACTICE["Wan"], BF16, "weight"),
    "pixels": (PRACTICE["pixels"], BF16, "unequal bins"),
    "guided": (PRACTICE["SD1.5"], BF16, "edm, guided"),
    "guided twice": (PRACTICE["SD1.5"], FP32, "epsilon, guided twice"),
    "flow": (PRACTICE["ImageNet-64"], FP16, "flow per channel"),
    "float64": ((4, 3, 32, 32), FP64, "no scale"),
    "a mask to count": (PRACTICE["CIFAR"], BF16, "mask"),
    "a batch to weigh": ((4096, 3, 16, 16), BF16, "normalizer"),
    "a batch to weigh, a mask to count": ((4096, 3, 16, 16), FP32, "mask"),
    "few elements": ((3, 3, 2, 2), BF16, "mask per row"),
    "read again": (READ_AGAIN.shape, BF16, "plain"),
}


@functools.lru_cache(maxsize=1)
def followed(name):
    return batch(*FOLLOWED[name])


@pytest.mark.parametrize("allowed", ("", "cluster", *PLANS))
@pytest.mark.parametrize("name", FOLLOWED)
def test_the_launch_follows_the_plan(backend, name, allowed, device_work, monkeypatch):
    """The launch has the plan's kernels, blocks, threads and shared memory, whatever plan is forced."""
    case = followed(name)
    student = case.student.detach().requires_grad_()
    monkeypatch.setenv(PLAN, allowed)
    try:
        plan = planned(case, allowed)
    except ValueError:
        with pytest.raises((RuntimeError, ValueError), match=NO_SCHEDULE):
            case.call(backend, student)
        return
    case.call(backend, student)
    *before, flagship = device_work(lambda: case.call(backend, student))  # every kernel is ours, with a prediction too
    counting = ["fdiv_count_kernel"] * plan["count_first"]
    weighing = {0: (), 1: WEIGH_ONE, 3: WEIGH}[plan["launches"] - 1 - len(counting)]
    expected = [*weighing, *counting]
    assert [work.name for work in before] == expected
    assert flagship.name == f"fdiv_{plan['schedule']}_kernel"
    assert (flagship.grid, flagship.block) == ([plan["blocks"], 1, 1], [plan["threads"], 1, 1])
    assert 0 <= flagship.shared - plan["shared_bytes"] <= STATIC_SHARED


@pytest.mark.parametrize(("samples", "heads", "bins"), ((1025, 1, 4), (64, 65, 4), (64, 2, 129)))
def test_many_weights_are_computed_first(backend, samples, heads, bins, device_work):
    """More than 1,024 samples, 4,096 logits or 128 bins."""
    case = make((samples, 3, 16, 16), BF16, heads=heads, normalizer=normalizer(bins)).on()
    hold(case, case.run(backend), in_float64(case))
    student = case.student.requires_grad_()
    found = tuple(work.name for work in device_work(lambda: case.call(backend, student)))
    assert found == (WEIGH if samples > 256 else WEIGH_ONE) + CLUSTER


def test_plans_differ(backend):
    """Otherwise a launcher that obeys no plan could pass test_the_launch_follows_the_plan."""
    case = batch(PRACTICE["CIFAR"])
    found = set()
    for allowed in PLANS:
        try:
            plan = planned(case, allowed)
        except ValueError:
            continue
        found.add((plan["schedule"], plan["blocks"], plan["threads"]))
    assert len(found) > 1


# Plans that cannot be.


@pytest.mark.parametrize(
    "text", ("nonsense", "cluster:3", "cluster:32", "cluster:", "grid:0", "grid:65", "Grid", " grid")
)
def test_a_plan_that_is_none(backend, text, monkeypatch):
    case = batch(PRACTICE["CIFAR"])
    before = case.options["normalizer"].mean.clone()
    monkeypatch.setenv(PLAN, text)
    message = f"{PLAN}: expected cluster, cluster:1 to cluster:16, grid or grid:1 to grid:64, got '{text}'"
    with pytest.raises(RuntimeError, match=re.escape(message)):
        case.call(backend)
    assert same_bits(case.options["normalizer"].mean, before)
    monkeypatch.delenv(PLAN)
    assert case.call(backend).isfinite()


@pytest.mark.parametrize("allowed", [plan for plan in PLANS if plan.startswith("cluster")])
def test_a_sample_that_no_cluster_holds(backend, allowed, monkeypatch):
    case = batch(PRACTICE["Wan"], FP32)
    before = case.options["normalizer"].mean.clone()
    monkeypatch.setenv(PLAN, allowed)
    with pytest.raises((RuntimeError, ValueError), match=f"{NO_SCHEDULE} can hold this sample on this device"):
        case.call(backend)
    assert same_bits(case.options["normalizer"].mean, before)
    monkeypatch.setenv(PLAN, "grid")
    assert case.call(backend).isfinite()


@pytest.mark.parametrize("text", ("", "auto", None))
def test_no_plan_is_any_plan(backend, text, monkeypatch):
    case = batch(PRACTICE["SDXL"])
    unset = case.run(backend, stats=True)
    if text is not None:
        monkeypatch.setenv(PLAN, text)
    again = case.run(backend, stats=True)
    assert same_bits(unset.grad, again.grad) and same_bits(unset.loss, again.loss)
