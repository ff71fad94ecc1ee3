"""What a call makes the device do is what its plan says: its launches, and every byte that it reads and writes."""

import pytest
import torch

from tests.gpu.calls import EVERY_OPTION, make_batch, planned, same
from tests.software_device import device, settings
from tests.software_device.settings import Setting

BF16, FP32 = torch.bfloat16, torch.float32
# The shapes of docs/cuda.md, for a device of 4 multiprocessors that hold 17 KB each: as large a part of it as those are
# of an H100.
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


@pytest.mark.parametrize(("architecture", "plan"), WAYS)
@pytest.mark.parametrize("dtype", (BF16, FP32), ids=str)
@pytest.mark.parametrize("name", SCALED)
def test_every_byte_is_in_the_plan(name, dtype, architecture, plan):
    """Of x, τ, f and the gradient: each once, and what is not held on chip of τ and f once more."""
    case = make_batch(SCALED[name], dtype, "plain", seed=3)
    student = case.student.requires_grad_()
    with Setting(architecture, plan, "random").in_force() as software:
        try:
            expected = planned(case, plan, software.limits())
        except ValueError as error:
            assert "a schedule that can hold a sample" in str(error) and plan.startswith("cluster")
            pytest.skip("no such cluster holds this sample")
        software.traffic(), software.launches()
        loss = case.call("native", student)
        traffic, launches = software.traffic(), software.launches()
        loss.backward(torch.ones(()))
        assert sum(run.written for run in software.traffic()) == 0  # an upstream of 1 moves nothing
    (launch,) = launches
    assert launch.name == f"fdiv_{expected['schedule']}_kernel"
    assert (launch.blocks, launch.threads) == (expected["blocks"], expected["threads"])
    assert launch.shared_bytes == expected["shared_bytes"]
    assert launch.cooperative == (expected["schedule"] == "grid")
    assert launch.cluster == (1 if launch.cooperative else expected["team"])
    bytes_of_n = student.numel() * student.element_size()
    images = [run for run in traffic if run.bytes == bytes_of_n]
    again = 2 * student.element_size() * expected["again"] * student.shape[0]
    assert sum(run.written for run in images) == bytes_of_n
    assert sum(run.read for run in images) == 3 * bytes_of_n + again
    assert expected["minimum_bytes"] == 4 * bytes_of_n


def test_the_shapes_need_every_schedule():
    found = set()
    for shape in SCALED.values():
        with Setting(90, "auto", "random").in_force() as software:
            plan = planned(make_batch(shape, BF16, "plain"), "auto", software.limits())
        found.add((plan["schedule"], plan["team"], plan["again"] > 0))
    assert {schedule for schedule, *_ in found} == {"cluster", "grid"} and len(found) >= 3, found


@pytest.mark.parametrize(("architecture", "plan"), WAYS)
@pytest.mark.parametrize("option", [option for option in EVERY_OPTION if option != "own divergence"])
def test_launches(option, architecture, plan):
    """Weights and masks that need launches of their own among them; nothing else is started."""
    case = make_batch((5, 3, 4, 6, 7), BF16, option, seed=1)
    with Setting(architecture, plan, "in order").in_force() as software:
        expected = planned(case, plan, software.limits())
        software.launches()
        case.call("native", case.student.requires_grad_())
        *before, flagship = software.launches()
    assert [launch.name for launch in before] == ["fdiv_weight_kernel"] * expected["weigh_first"] + [
        "fdiv_count_kernel"
    ] * expected["count_first"]
    assert flagship.name == f"fdiv_{expected['schedule']}_kernel"
    assert (flagship.blocks, flagship.threads) == (expected["blocks"], expected["threads"])


@pytest.mark.parametrize("option", ("plain", "normalizer", "mask", "none", "epsilon, guided twice"))
@pytest.mark.parametrize(("architecture", "plan"), WAYS)
def test_bits_are_the_same_under_every_scheduler(architecture, plan, option):
    first = None
    for scheduler in device.SCHEDULERS:
        for seed in (0, 1):
            with Setting(architecture, plan, scheduler, seed).in_force():
                outcome = make_batch((5, 3, 4, 6, 7), BF16, option, seed=2).run("native", stats=True)
            first = outcome if first is None else first
            assert same(first, outcome)
