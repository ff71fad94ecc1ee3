"""A call does on the device what its plan says: its launches, and every byte that it reads and writes."""

import math

import pytest
import torch

from tests.cases import make
from tests.gpu.calls import EVERY_OPTION, WEIGH, WEIGH_ONE, hold, in_float64, make_batch, planned, same
from tests.software_device import device, settings
from tests.software_device.settings import Setting

BF16, FP32 = torch.bfloat16, torch.float32
# The shapes of docs/cuda.md, scaled to a device of 4 multiprocessors that hold 17 KB each: a shape takes as large a
# part of this device as the original takes of an H100.
SCALED = {
    "CIFAR": (4, 3, 8, 10),
    "ImageNet-64": (2, 3, 16, 20),
    "SD1.5": (2, 4, 16, 20),
    "SDXL": (2, 4, 32, 40),
    "Wan": (1, 16, 4, 8, 10),
    "pixels, 512": (2, 3, 40, 44),
    "pixels, 1024": (3, 3, 48, 52),
    "pixels, 2048": (2, 3, 96, 100),
}
WAYS = [(int(way[3:5]), way[6:]) for way in settings.WAYS]
STATIC = 3 << 10  # bytes of shared memory that are not for samples


def holds(shape, plan):
    """Whether the clusters of a plan hold a sample in float32, in the shared memory of as many blocks."""
    schedule, _, blocks = plan.partition(":")
    return schedule != "cluster" or 4 * math.prod(shape[1:]) <= int(blocks) * (device.TIGHT.shared_per_block - STATIC)


@pytest.mark.parametrize("name", SCALED)
def test_a_cluster_that_cannot_hold_a_sample_is_refused(name):
    for architecture, plan in WAYS:
        if not holds(SCALED[name], plan):
            with (
                Setting(architecture, plan, "random").in_force() as software,
                pytest.raises(ValueError, match="can hold a sample"),
            ):
                planned(make_batch(SCALED[name], BF16, "plain"), plan, software.limits())


@pytest.mark.parametrize(
    ("name", "architecture", "plan"),
    [(name, *way) for name, shape in SCALED.items() for way in WAYS if holds(shape, way[1])],
)
@pytest.mark.parametrize(
    ("option", "dtype", "inputs", "predictions"),
    (("plain", BF16, 3, 2), ("plain", FP32, 3, 2), ("epsilon, guided twice", BF16, 6, 4)),
    ids=("plain, bf16", "plain, fp32", "guided"),
)
def test_every_byte_is_in_the_plan(name, architecture, plan, option, dtype, inputs, predictions):
    """Inputs are read once and the gradient is written once; predictions that are not held on chip are read again."""
    case = make_batch(SCALED[name], dtype, option, seed=3)
    student = case.student.requires_grad_()
    with Setting(architecture, plan, "random").in_force() as software:
        expected = planned(case, plan, software.limits())
        software.begin()
        loss = case.call("native", student)
        traffic, launches = software.traffic(), software.launches()
        loss.backward(torch.ones(()))
        assert sum(run.written for run in software.traffic()) == 0  # an upstream of 1 moves nothing
    (launch,) = launches
    launch.hold("fdiv", expected)
    bytes_of_n = student.numel() * student.element_size()
    images = [run for run in traffic if run.bytes == bytes_of_n]
    again = predictions * student.element_size() * expected["again"] * student.shape[0]
    assert sum(run.written for run in images) == bytes_of_n
    assert sum(run.read for run in images) == inputs * bytes_of_n + again
    assert expected["minimum_bytes"] == (inputs + 1) * bytes_of_n


def test_long_sums_of_a_thread():
    """A thread adds 960 elements, in float for so few at a time that rounding does not show."""
    case = make((1, 480 * 1024), FP32, heads=None, divergence="rkl", seed=3)
    case = case.but(teacher=torch.zeros_like(case.teacher), fake=torch.full_like(case.fake, 0.1))
    limits = device.SMALL._replace(multiprocessors=1)
    with Setting(90, "grid:1", "in order", limits=limits).in_force() as software:
        software.begin()
        loss = case.run("native").loss
        launch, *_ = software.launches()
    assert (launch.blocks, launch.threads) == (1, 512)
    torch.testing.assert_close(loss.double(), torch.as_tensor(case.expected().loss), rtol=2e-7, atol=0)


def test_the_shapes_need_every_schedule():
    found = set()
    for shape in SCALED.values():
        with Setting(90, "auto", "random").in_force() as software:
            plan = planned(make_batch(shape, BF16, "plain"), "auto", software.limits())
        found.add((plan["schedule"], plan["team"], plan["again"] > 0))
    assert {schedule for schedule, *_ in found} == {"cluster", "grid"} and len(found) >= 3, found


# With BIG, weights and masks that need their own launches.
OPTIONS = {option: (5, 3, 4, 6, 7) for option in EVERY_OPTION if option != "own divergence"}
BIG = (("normalizer", (260, 1, 2, 4)), ("mask", (2, 1, 70, 130)))  # weighed by many blocks; mask counted first
LARGE = ("cluster:4", "cluster:8", "cluster:16")  # take seconds each with many samples


@pytest.mark.parametrize(
    ("option", "shape", "architecture", "plan"),
    [(*call, *way) for call in OPTIONS.items() for way in WAYS]
    + [(*BIG[0], *way) for way in WAYS if way[1] not in LARGE]
    + [(*BIG[1], *way) for way in WAYS if holds(BIG[1][1], way[1])],
    ids=str,
)
def test_launches(option, shape, architecture, plan):
    """The launches are those of the plan, nothing else starts, and results are right."""
    case = make_batch(shape, BF16, option, seed=1)
    with Setting(architecture, plan, "in order").in_force() as software:
        expected = planned(case, plan, software.limits())
        software.begin()
        two = torch.full((5,) if option == "none" else (), 2.0)
        outcome = case.run("native", two)
        *before, flagship, scale = software.launches()
    wanted = list(WEIGH if shape[0] > 256 else WEIGH_ONE) if expected["weigh_first"] else []
    assert [launch.name for launch in before] == wanted + ["fdiv_count_kernel"] * expected["count_first"]
    assert expected["count_first"] == ((option, shape) == BIG[1])
    assert flagship.name == f"fdiv_{expected['schedule']}_kernel" and scale.name == "scale_kernel"
    assert (flagship.blocks, flagship.threads) == (expected["blocks"], expected["threads"])
    if option != "a bad sample":
        hold(case, outcome, in_float64(case, two))


@pytest.mark.parametrize("option", ("plain", "normalizer", "mask", "none", "epsilon, guided twice"))
@pytest.mark.parametrize(("architecture", "plan"), WAYS)
def test_bits_are_the_same_under_every_scheduler(architecture, plan, option):
    first = None
    for scheduler, seed in device.SEEDED:
        with Setting(architecture, plan, scheduler, seed).in_force():
            outcome = make_batch((5, 3, 4, 6, 7), BF16, option, seed=2).run("native", stats=True)
        first = outcome if first is None else first
        assert same(first, outcome)
