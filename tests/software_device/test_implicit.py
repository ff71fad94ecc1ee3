"""The op implicit in every schedule: what its launch reads and writes, its bits, captured calls and streams."""

import math

import pytest
import torch

from fdkernels import _core
from fdkernels.call_shape import CallShape
from fdkernels.implicit.arguments import IMPLICIT
from tests.implicit import make_implicit, raw_implicit, weighted_implicit
from tests.software_device import device, settings
from tests.software_device.settings import Setting
from tests.software_device.test_plans import SCALED
from tools.gpu_check.stage import NO_SCHEDULE

BF16, FP32 = torch.bfloat16, torch.float32
WAYS = [(int(way[3:5]), way[6:]) for way in settings.WAYS]


def planned(shape, dtype, with_grad, plan, limits):
    name = {BF16: "bf16", FP32: "fp32"}[dtype]
    call = CallShape(shape[0], math.prod(shape[1:]), name, with_grad=with_grad, op="implicit")
    return _core.plan(call, limits, plan)


@pytest.mark.parametrize(("architecture", "plan"), [way for way in WAYS if way[1] != "auto"])
@pytest.mark.parametrize("wanted", (("student", "teacher", "fake"), ("fake",), ()), ids=len)
@pytest.mark.parametrize("dtype", (BF16, FP32), ids=str)
@pytest.mark.parametrize("name", SCALED)
def test_every_byte(name, dtype, wanted, architecture, plan):
    """The launch is that of the plan. It reads each input once, and what it cannot hold twice. It writes each gradient
    that is wanted once. A cluster that cannot hold a sample is refused."""
    shape = SCALED[name]
    case = make_implicit(shape, dtype, seed=3)
    inputs = {name: getattr(case, name).requires_grad_(name in wanted) for name in case.ORDER}
    with Setting(architecture, plan, "random").in_force() as software:
        software.begin()
        loss = case.call("native", **inputs)
        traffic, launches = software.traffic(), software.launches()
        if software.fallbacks:
            with pytest.raises(ValueError, match="can hold a sample"):
                planned(shape, dtype, bool(wanted), plan, software.limits())
            return
        expected = planned(shape, dtype, bool(wanted), plan, software.limits())
        if wanted:
            loss.backward()
            assert [each.name for each in software.launches()] == ["scale_kernel"]  # one for all gradients
        assert sum(run.written for run in software.traffic()) == 0  # an upstream of 1 moves nothing
    (launch,) = launches
    launch.hold("implicit", expected)
    of_n = case.student.numel() * case.student.element_size()
    images = [run for run in traffic if run.bytes == of_n]
    assert sum(run.written for run in images) == len(wanted) * of_n
    again = 3 * case.student.element_size() * expected["again"] * shape[0]
    assert sum(run.read for run in images) == 3 * of_n + again
    assert wanted or expected["again"] == 0


def test_the_shapes_need_every_schedule():
    with Setting(90, "auto", "random").in_force() as software:
        plans = [planned(shape, FP32, True, "auto", software.limits()) for shape in SCALED.values()]
    assert {plan["schedule"] for plan in plans} == {"cluster", "grid"} and any(plan["again"] for plan in plans)


def test_a_cluster_that_cannot_hold_a_sample_says_so():
    ones = torch.ones(SCALED["pixels, 2048"][0])
    call = raw_implicit(
        **make_implicit(SCALED["pixels, 2048"]).tensors(), score_scale=ones, weight=ones, square_weight=ones
    )
    with Setting(90, "cluster:2", "in order").in_force() as software, pytest.raises(ValueError, match=NO_SCHEDULE):
        software.ops.implicit_native(*IMPLICIT.operands(call))


@pytest.mark.parametrize("dtype", (BF16, torch.float16, FP32, torch.float64), ids=str)
@pytest.mark.parametrize(("architecture", "plan"), WAYS)
def test_bits_are_the_same_under_every_scheduler(architecture, plan, dtype):
    first = None
    for scheduler, seed in device.SEEDED:
        with Setting(architecture, plan, scheduler, seed).in_force():
            outcome = weighted_implicit((5, 3, 4, 6, 7), dtype, kind="sim", seed=2).run("native")
        first = outcome if first is None else first
        assert first.same_bits(outcome)


def test_the_loss_does_not_depend_on_the_gradients_that_are_wanted():
    for name in SCALED:
        case = make_implicit(SCALED[name], FP32)
        with Setting(90, "auto", "random").in_force():
            losses = [
                case.call("native", **{name: getattr(case, name).detach().requires_grad_(name in wanted)
                                       for name in case.ORDER}).detach()
                for wanted in ((), ("fake",), case.ORDER)
            ]  # fmt: skip
        assert torch.equal(losses[0], losses[1]) and torch.equal(losses[0], losses[2])


def test_long_sums_of_a_thread():
    """A thread adds 960 elements, in float for so few at a time that rounding does not show."""
    case = make_implicit((1, 480 * 1024), alpha=0.0)
    case = case.but(
        student=torch.full_like(case.student, -0.1),
        teacher=torch.zeros_like(case.teacher),
        fake=torch.full_like(case.fake, -0.3),
    )
    limits = device.SMALL._replace(multiprocessors=1)
    with Setting(90, "grid:1", "in order", limits=limits).in_force() as software:
        software.begin()
        loss = case.run("native").loss
        launch, *_ = software.launches()
    assert (launch.blocks, launch.threads) == (1, 512)
    torch.testing.assert_close(loss.double(), case.expected()[0], rtol=2e-7, atol=0)


@pytest.mark.parametrize("scheduler", device.SCHEDULERS)
@pytest.mark.parametrize("plan", ("cluster:1", "cluster:2", "grid"))
def test_replays_on_new_data(plan, scheduler):
    with Setting(90, plan, scheduler, seed=3).in_force() as software:
        software.use_unused()  # a first call may be captured
        case = weighted_implicit((5, 3, 8, 8), BF16, kind="sim")
        case = case.but(**{name: tensor.clone() for name, tensor in case.tensors().items()})
        with software.captured() as graph:
            outcome = case.step("native")
        for seed in (1, 2, 3):
            other = make_implicit((5, 3, 8, 8), BF16, seed=seed)
            for name, tensor in case.tensors().items():
                tensor.copy_(getattr(other, name))
            graph.replay()
            assert outcome.same_bits(case.step("native"))


@pytest.mark.parametrize("scheduler", device.SCHEDULERS)
@pytest.mark.parametrize("plan", ("cluster:1", "cluster:2", "grid"))
def test_two_streams_at_once(plan, scheduler):
    with Setting(90, plan, scheduler, seed=5).in_force() as software:
        cases = [make_implicit((5, 3, 8, 8), BF16, seed=seed) for seed in (1, 2)]
        alone = [case.step("native") for case in cases]
        streams, found = [software.new_stream() for _ in cases], [[], []]
        with software.held_back():
            for _ in range(3):
                for which, case in enumerate(cases):
                    with software.on_stream(streams[which]):
                        found[which].append(case.step("native"))
        for expected, outcomes in zip(alone, found, strict=True):
            assert all(expected.same_bits(outcome) for outcome in outcomes)
