"""Streams that overlap, captured calls and their replays: tests/gpu/test_streams.py without a clock."""

import itertools

import pytest
import torch

import fdkernels as fdk
from tests.cases import ORDER, make, normalizer
from tests.gpu.calls import make_batch, same
from tests.software_device import device
from tests.software_device.settings import Setting

PLANS = ("cluster:1", "cluster:2", "grid")
SHAPE = (5, 3, 8, 8)


@pytest.fixture(params=device.SCHEDULERS)
def scheduler(request):
    return request.param


@pytest.fixture(params=PLANS)
def software(request, scheduler):
    with Setting(90, request.param, scheduler, seed=3).in_force() as software:
        yield software


def step(case):
    return case.step("native", stats=True)


class Captured:
    """A step in a graph, with its own inputs."""

    def __init__(self, software, seed=0, option="normalizer", dtype=torch.bfloat16, stream=None):
        case = make_batch(SHAPE, dtype, option, seed=seed)
        own = {name: getattr(case, name).clone() for name in ORDER if getattr(case, name) is not None}
        self.case = case.but(**own, **case.fresh_options())
        with software.captured(stream) as self.graph:
            self.outcome = step(self.case)
        # No result: it was copied during the capture, before anything ran.
        self.outcome.mean = None

    def replay(self, case, stream=None):
        for name in ORDER:
            getattr(self.case, name).copy_(getattr(case, name))
        self.graph.replay(stream)


def eager(case):
    outcome = step(case)
    outcome.mean = None
    return outcome


@pytest.mark.parametrize("dtype", (torch.bfloat16, torch.float16, torch.float32), ids=str)
def test_replays_on_new_data(software, dtype):
    """Loss, gradient, figures and the running state, over three replays."""
    captured = Captured(software, dtype=dtype)
    state = make_batch(SHAPE, dtype).options["normalizer"]
    for seed in (1, 2, 3):
        case = make_batch(SHAPE, dtype, seed=seed).but(normalizer=state)
        captured.replay(case)
        assert same(captured.outcome, eager(case))
        assert torch.equal(captured.case.options["normalizer"].mean, state.mean)


@pytest.mark.parametrize("option", ("plain", "mask", "none", "weight", "edm, guided"))
@pytest.mark.parametrize("plan", PLANS)
def test_a_first_call_may_be_captured(plan, option):
    """The call loads its kernels despite the capture, also those of its weights, its mask and its backward."""
    with Setting(90, plan, "random").in_force() as software:
        software.use_unused()
        captured = Captured(software, option=option)
        captured.graph.replay()
        assert same(captured.outcome, eager(make_batch(SHAPE, option=option)))


def test_a_first_weight_may_be_captured():
    with Setting(90, "auto", "random").in_force() as software:
        software.use_unused()
        logits = torch.linspace(-2, 2, 40, dtype=torch.float64)  # weights of float64 need no conversion
        with software.captured() as graph:
            weight = fdk.fdiv_weight(logits, backend="native", divergence="kl")
        graph.replay()
        assert torch.equal(weight, fdk.fdiv_weight(logits, backend="native", divergence="kl"))


def test_two_graphs_and_an_eager_call_at_once(software):
    """On three streams; both graphs were captured in one stream. Launches that overlap share no ticket."""
    stream = software.new_stream()
    captured = [Captured(software, seed=seed, option="plain", stream=stream) for seed in (0, 1)]
    case = make_batch(SHAPE, option="plain", seed=2)
    alone = [eager(each.case) for each in captured] + [eager(case)]
    streams = [software.new_stream() for _ in captured]
    with software.held_back():
        for _ in range(3):
            for each, stream in zip(captured, streams, strict=True):
                each.graph.replay(stream)
            beside = eager(case)
    for outcome, expected in zip([each.outcome for each in captured] + [beside], alone, strict=True):
        assert same(outcome, expected)


@pytest.mark.parametrize(("plan", "other"), itertools.combinations_with_replacement(PLANS, 2))
def test_two_streams_at_once(scheduler, plan, other):
    with Setting(90, plan, scheduler, seed=5).in_force() as software:
        cases = [make_batch(SHAPE, option="plain", seed=seed) for seed in (1, 2)]
        streams = [software.new_stream() for _ in cases]
        alone, found = [], [[], []]
        for case, allowed in zip(cases, (plan, other), strict=True):
            with device.planned(allowed):
                alone.append(eager(case))
        with software.held_back():
            for _ in range(3):
                for which, allowed in enumerate((plan, other)):
                    with device.planned(allowed), software.on_stream(streams[which]):
                        found[which].append(eager(cases[which]))
        for expected, outcomes in zip(alone, found, strict=True):
            assert all(same(expected, outcome) for outcome in outcomes)


def test_a_thousand_repeats_have_the_same_bits():
    """Over all schedulers and seeds, which change the order in which threads run."""
    for plan in PLANS:
        case = make((3, 3, 4, 6), torch.float32, divergence="jeffreys", normalizer=normalizer(4))
        first = None
        for seed in range(70):
            for scheduler in device.SCHEDULERS:
                with Setting(90, plan, scheduler, seed).in_force():
                    outcome = case.run("native", stats=True)
                first = outcome if first is None else first
                assert same(first, outcome)


def test_more_captured_calls_than_tickets():
    """When there are no more tickets, a captured call zeroes its own."""
    with Setting(90, "cluster:1", "random").in_force() as software:
        software.use_unused(device.TIGHT)  # no other test needs its tickets
        student = torch.randn(2, 8)
        zeros = torch.zeros_like(student)
        call = lambda: fdk.fused_fdiv_loss(student, zeros, zeros + 1, divergence="rkl", backend="native")  # noqa: E731
        expected = call()
        software.launches()
        graphs = []
        for _ in range(4000):
            with software.captured() as graph:
                loss = call()
            graphs.append((graph, loss))
            if any(launch.name == "memset" for launch in software.launches()):
                break
        else:
            pytest.fail("a device has thousands of tickets, and then none")
        for graph, loss in graphs[-2:]:
            for _ in range(2):
                graph.replay()
                assert torch.equal(loss, expected)
