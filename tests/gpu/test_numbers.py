"""Kernels compiled for a GPU, at real sizes: exactness, weights, determinism, float16, 64-bit offsets."""

import math

import pytest
import torch

import fdkernels as fdk
from fdkernels import testing
from fdkernels.call_shape import CallShape
from fdkernels.fdiv import triton_plan
from tests.cases import ORDER, Case, make, normalizer, same_bits
from tests.gpu.calls import (
    CLUSTER,
    GRID,
    KERNELS,
    OPTIONS,
    PRACTICE,
    READ_AGAIN,
    SCHEDULES,
    SPLIT,
    WHOLE,
    Schedule,
    differences,
    hold,
    in_float64,
    planned,
)

pytestmark = [pytest.mark.gpu, pytest.mark.backends(*KERNELS)]

DTYPES = ((torch.bfloat16, torch.bfloat16), (torch.bfloat16, torch.float32), (torch.float32, torch.float32))
GIB = 2**30


@pytest.mark.parametrize("dtypes", DTYPES, ids=lambda pair: "-".join(str(d)[6:] for d in pair))
@pytest.mark.parametrize("name", PRACTICE)
def test_shapes_from_practice(backend, name, dtypes):
    student, predictions = dtypes
    case = make(PRACTICE[name], student, predictions=predictions, normalizer=normalizer(4)).on()
    hold(case, case.run(backend, stats=True), in_float64(case))


@pytest.mark.parametrize("option", [option for option in OPTIONS if option != "edm, guided"])
@pytest.mark.parametrize("schedule", (*SCHEDULES, READ_AGAIN), ids=str)
def test_options_at_real_sizes(backend, schedule, option):
    """Guidance has a bound of its own, which the contract tests check."""
    case = schedule.batch(torch.float32, option)
    hold(case, case.run(backend), in_float64(case))


@pytest.mark.parametrize("schedule", (*SCHEDULES, READ_AGAIN), ids=str)
def test_the_inputs_are_left_alone(backend, schedule):
    case = schedule.batch()
    before = [getattr(case, name).clone() for name in ORDER]
    case.run(backend, stats=True)
    assert all(same_bits(getattr(case, name), v) for name, v in zip(ORDER, before, strict=True))


WEIGHTS = [*(name for name, d in fdk.divergences().items() if d.kernel), "alpha(0.5)", "alpha(-0.75)", "alpha(1)"]


def log_ratios(dtype: torch.dtype) -> torch.Tensor:
    return torch.cat((torch.linspace(-80, 80, 97), torch.tensor([-79.3, -0.02, 0.0, 1e-4, 0.3, 79.1]))).to(dtype)


@pytest.mark.parametrize("normalize", (False, True))
@pytest.mark.parametrize("dtype", (torch.float32, torch.bfloat16, torch.float16), ids=str)
@pytest.mark.parametrize("divergence", WEIGHTS)
def test_weights_up_to_80(backend, divergence, dtype, normalize):
    options = {"divergence": divergence, "ratio_range": None, "normalize_weight": normalize}
    logits = log_ratios(dtype)
    weight = fdk.fdiv_weight(logits.cuda(), backend=backend, **options)
    expected = fdk.fdiv_weight(logits.double(), backend="reference", **options)
    testing.assert_weight(weight.cpu(), expected)


@pytest.mark.parametrize("elements", (1, 32_768), ids=("one element", "many"))
@pytest.mark.parametrize("divergence", WEIGHTS)
def test_weights_inside_the_loss(backend, divergence, elements):
    """With f - τ = 1, no scale and a sum for the loss, each sample's gradient is its weight."""
    options = {"divergence": divergence, "ratio_range": None, "normalize_weight": False}
    logits = log_ratios(torch.float32)
    zeros = torch.zeros(len(logits), elements, device="cuda")
    student = zeros.clone().requires_grad_()
    loss = fdk.fused_fdiv_loss(
        student, zeros, zeros + 1, logits.cuda(), scale=None, reduction="sum", backend=backend, **options
    )
    (grad,) = torch.autograd.grad(loss, student)
    expected = fdk.fdiv_weight(logits.double(), backend="reference", **options)
    testing.assert_weight(grad[:, 0].cpu(), expected)
    assert torch.equal(grad, grad[:, :1].expand_as(grad))


MANY = (4096, 3, 16, 16)
# Far more programs, or shares of samples, than the GPU has multiprocessors. Each row: schedule, heads (0: logits are
# (B,)), bins, whether weights take a launch of their own.
REPEATED = (
    (Schedule("triton", "whole, weighed in each program", (2048, 3, 16, 16), WHOLE), 0, 1, False),
    (Schedule("triton", "whole, weighed first", MANY, WHOLE), 2, 4, True),
    (Schedule("triton", "split", PRACTICE["SDXL"], SPLIT), 2, 4, False),
    (Schedule("triton", "split, one program a sample", (4096, 130, 130), SPLIT), 2, 4, False),
    (Schedule("native", "blocks, weighed in each", (512, 3, 16, 16), CLUSTER, "cluster:1"), 2, 4, False),
    (Schedule("native", "blocks, weighed first", MANY, CLUSTER, "cluster:1"), 2, 4, True),
    (Schedule("native", "clusters of 2", (256, 4, 64, 64), CLUSTER, "cluster:2"), 0, 1, False),
    (Schedule("native", "clusters of 4", (256, 4, 128, 128), CLUSTER, "cluster:4"), 2, 4, False),
    (Schedule("native", "clusters of 16", (64, 4, 128, 128), CLUSTER, "cluster:16"), 2, 4, False),
    (Schedule("native", "the grid", (16, 4, 128, 128), GRID, "grid:1"), 2, 4, False),
    (Schedule("native", "teams of the grid", (64, 4, 128, 128), GRID, "grid:8"), 2, 4, False),
    (READ_AGAIN, 2, 4, False),
)


def repeated_case(schedule: Schedule, heads: int, bins: int, dtype: torch.dtype) -> Case:
    return make(schedule.shape, dtype, heads=heads, divergence="jeffreys", normalizer=normalizer(bins)).on()


@pytest.mark.parametrize(("schedule", "heads", "bins", "weigh_first"), REPEATED, ids=str)
def test_the_repeated_calls_are_what_their_names_say(backend, schedule, heads, bins, weigh_first):
    shape, multiprocessors = schedule.shape, torch.cuda.get_device_properties().multi_processor_count
    if backend == "triton":
        spread = triton_plan.plan(CallShape(shape[0], math.prod(shape[1:]), heads=max(heads, 1), bins=bins))
        assert (spread.schedule == "whole", spread.weigh_first) == (schedule.kernels == WHOLE, weigh_first)
        assert shape[0] * spread.programs > 3 * multiprocessors
        return
    spread = planned(repeated_case(schedule, heads, bins, torch.bfloat16), schedule.plan)
    assert spread["weigh_first"] == weigh_first and (spread["again"] > 0) == (schedule == READ_AGAIN)
    least = 1.9 if schedule == READ_AGAIN else 3
    assert spread["team"] * shape[0] > least * multiprocessors
    if spread["schedule"] == "grid":
        assert spread["buffers"] == (1 if schedule == READ_AGAIN else 2)


@pytest.mark.parametrize("dtype", (torch.bfloat16, torch.float32), ids=str)
@pytest.mark.parametrize(("schedule", "heads", "bins", "weigh_first"), REPEATED, ids=str)
def test_a_thousand_repeats(backend, schedule, heads, bins, weigh_first, dtype):
    """Calls are queued without a pause: whichever program is last, the bits are the same."""
    case = repeated_case(schedule, heads, bins, dtype)
    state = case.options["normalizer"].mean
    start = state.clone()
    first = case.step(backend, stats=True)
    different = torch.zeros((), dtype=torch.int64, device="cuda")
    for _ in range(1000):
        state.copy_(start)
        different += differences(first, case.step(backend, stats=True))
    assert different.item() == 0
    state.copy_(start)
    hold(case, first, in_float64(case))


@pytest.mark.parametrize(("schedule", "heads", "bins", "weigh_first"), REPEATED, ids=str)
def test_a_count_on_the_device(backend, schedule, heads, bins, weigh_first):
    case = repeated_case(schedule, heads, bins, torch.float32)
    mask = torch.rand(case.student.shape, device="cuda") < 0.7
    for count in (2 * mask.sum(), torch.full((), 12345.5, device="cuda")):
        counted = case.but(mask=mask, count=count)
        hold(counted, counted.run(backend), in_float64(counted))


@pytest.mark.parametrize("name", ("SDXL", "Wan"))
def test_float16_under_a_loss_scale(backend, name):
    """g/N is below float16's smallest number here: it must be scaled first, then rounded."""
    case = make(PRACTICE[name], torch.float16, heads=None, scale=None, gap=0.5).on()
    upstream = torch.full((), 65536.0, device="cuda")
    grad, want = case.run(backend, upstream).grad.cpu(), in_float64(case, upstream).grad.cpu()
    testing.assert_gradient(grad, want, upstream_is_one=False)
    assert testing.relative_l2(grad, want) < 5e-4
    assert torch.equal(grad == 0, want.half() == 0)


@pytest.mark.parametrize(("batch_size", "elements"), ((3, 2**30 + 4099), (1, 2**31 + 4099)))
def test_beyond_two_to_the_31(backend, batch_size, elements):
    """Zeros, except for a few elements around 2³⁰ and 2³¹ and at the ends of each sample."""
    torch.cuda.empty_cache()
    needed = 6 * 2 * batch_size * elements  # three inputs and the gradient, in bfloat16, and room
    free, _ = torch.cuda.mem_get_info()
    if free < needed:
        pytest.skip(f"needs {needed / GIB:.0f} GiB of free GPU memory, has {free / GIB:.0f}")
    shape = (batch_size, elements)
    student, teacher, fake = (torch.zeros(shape, dtype=torch.bfloat16, device="cuda") for _ in range(3))
    corners = {b * elements + i for b in range(batch_size) for i in (0, 17, 2**30, elements - 1)}
    positions = sorted(corners | {2**31 - 1, 2**31})
    values = [float(k) for k in range(1, len(positions) + 1)]
    for position, value in zip(positions, values, strict=True):
        fake.view(-1)[position] = value
        teacher.view(-1)[position] = -value
    weight = torch.arange(1.0, batch_size + 1, device="cuda")
    student.requires_grad_()
    loss = fdk.fused_fdiv_loss(
        student, teacher, fake, weight=weight, scale=fdk.DmdScale(0.0), reduction="sum", backend=backend
    )
    loss.backward()
    distance = [0.0] * batch_size
    for position, value in zip(positions, values, strict=True):
        distance[position // elements] += value
    total, found = 0.0, student.grad.view(-1)
    for position, value in zip(positions, values, strict=True):
        b = position // elements
        g = (b + 1) * elements / distance[b] * 2 * value
        total += 0.5 * g * g
        assert found[position].item() == pytest.approx(g, rel=2**-8), position
    assert loss.item() == pytest.approx(total, rel=1e-6)
    assert sum(int(torch.count_nonzero(part)) for part in found.split(2**28)) == len(positions)
