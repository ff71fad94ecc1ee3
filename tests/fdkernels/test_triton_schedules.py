"""Every option of the Triton backend under every schedule, on cases of their own; tickets; the order of programs."""

import random

import pytest
import torch

import fdkernels as fdk
from fdkernels._triton import launch as launching
from fdkernels._triton import plan
from fdkernels.fdiv import triton_launch, triton_plan
from fdkernels.fdiv.triton_plan import Limits
from tests.cases import assert_stats, make, normalizer, same_bits

pytestmark = [pytest.mark.contract("exactness"), pytest.mark.backends("triton")]

SHAPE = (5, 3, 4, 6, 7)  # 504 elements a sample
SCHEDULES = {
    "whole": Limits(whole_elements=512, whole_elements_general=512),
    "whole, weights first": Limits(whole_elements=512, whole_elements_general=512, weighed=0),
    "one piece": Limits(whole_elements=0, whole_elements_general=0, tiles=(512, 512), most_programs=1),
    "pieces": Limits(whole_elements=0, whole_elements_general=0, tiles=(128, 128)),
    "pieces of tiles": Limits(whole_elements=0, whole_elements_general=0, tiles=(64, 64), most_programs=10),
}


@pytest.fixture(params=SCHEDULES)
def schedule(request, monkeypatch, _small_programs):
    monkeypatch.setattr(triton_plan, "LIMITS", SCHEDULES[request.param])
    return request.param


def random_like(shape, seed, low=0.1):
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed)) + low


def raw(kind, levels):
    sigma = 0.85 * random_like(levels, 11)
    noisy = 2 * torch.randn(SHAPE, generator=torch.Generator().manual_seed(12))
    return fdk.Prediction(kind, noisy, alpha=1.2 - 0.5 * sigma, sigma=sigma)


OPTIONS = {
    "plain": {},
    "normalizer": {"normalizer": lambda: normalizer(7, t_range=(0.1, 0.9))},
    "unequal bins": {"normalizer": lambda: normalizer(4, edges=torch.tensor([0.2, 0.35, 0.8]))},
    "eval": {"normalizer": lambda: normalizer(3).eval(), "divergence": "kl"},
    "alpha, not normalized": {"divergence": "alpha(-0.7)", "normalize_weight": False},
    "multiplier per sample": {"multiplier": lambda: random_like((5,), 1)},
    "multiplier per row": {"multiplier": lambda: random_like((5, 1, 4, 6, 1), 2)},
    "no scale": {"scale": None},
    "mask per frame": {"mask": lambda: random_like((5, 3, 1, 1, 1), 3, 0.0) < 0.7},
    "mask shared": {"mask": lambda: random_like((1, 1, 4, 6, 7), 4, 0.0) < 0.7},
    "mask full": {"mask": lambda: random_like(SHAPE, 5, 0.0) < 0.7, "nonfinite": "zero"},
    "edm per sample": {"prediction": lambda: raw("edm", (5,))},
    "flow per frame": {"prediction": lambda: raw("flow_prediction", (5, 3, 1, 1, 1)), "divergence": "le_cam"},
    "epsilon, guided": {
        "prediction": lambda: raw("epsilon", (1,) * 5),
        "teacher_uncond": lambda: random_like(SHAPE, 6), "guidance_scale": 1.75,
        "fake_uncond": lambda: random_like(SHAPE, 7), "fake_guidance_scale": 0.5,
    },
}  # fmt: skip


def held_out(options, dtype=torch.float32, **more):
    made = {name: value() if callable(value) else value for name, value in options.items()}
    return make(SHAPE, dtype, seed=1234, heads=3, **made, **more)


@pytest.mark.pairwise
@pytest.mark.parametrize("schedule", SCHEDULES, indirect=True)
@pytest.mark.parametrize("reduction", ("mean", "sum", "none"))
@pytest.mark.parametrize("option", OPTIONS)
def test_options(backend, schedule, option, reduction):
    held_out(OPTIONS[option], reduction=reduction).check(backend)


@pytest.mark.pairwise
@pytest.mark.parametrize("schedule", SCHEDULES, indirect=True)
@pytest.mark.parametrize("dtype", (torch.bfloat16, torch.float16, torch.float64), ids=str)
@pytest.mark.parametrize("option", ("plain", "mask per frame", "flow per frame", "epsilon, guided"))
def test_dtypes(backend, schedule, option, dtype):
    case = held_out(OPTIONS[option], dtype, reduction="none")
    case.check(backend)
    case.check(backend, torch.tensor([3.0, 1.0, 0.0, -0.5, 65536.0], dtype=torch.promote_types(dtype, torch.float32)))


def test_without_logits(backend, schedule):
    make(SHAPE, seed=77, heads=None).check(backend)
    make(SHAPE, seed=78, heads=None, weight=torch.tensor([0.2, 3.0, 0.0, 1.0, 0.7])).check(backend)


@pytest.mark.pairwise
@pytest.mark.parametrize("schedule", SCHEDULES, indirect=True)
@pytest.mark.parametrize("bad", ("student", "teacher", "logits", "t"))
@pytest.mark.parametrize("nonfinite", ("propagate", "zero"))
def test_a_bad_sample(backend, schedule, bad, nonfinite):
    case = held_out(OPTIONS["normalizer"], nonfinite=nonfinite)
    poisoned = getattr(case, bad).clone()
    poisoned[3].view(-1)[-1] = torch.nan
    case = case.but(**{bad: poisoned})
    outcome = case.check(backend)
    assert outcome.grad[3].isnan().all() if nonfinite == "propagate" else not outcome.grad[3].any()


@pytest.mark.pairwise
@pytest.mark.parametrize("schedule", SCHEDULES, indirect=True)
@pytest.mark.parametrize("size", (1e-25, 1e-21, 1e22, 1e30))
@pytest.mark.parametrize("option", ("plain", "mask full", "multiplier per row"))
def test_squares_that_float32_cannot_hold(backend, schedule, option, size):
    """The energy under- or overflows float32, although neither the loss nor the gradient does."""
    case = held_out(OPTIONS[option])
    images = {name: getattr(case, name) * size for name in ("student", "teacher", "fake")}
    case.but(**images, scale=fdk.DmdScale(0.0)).check(backend)


@pytest.mark.parametrize("option", ("plain", "mask per frame"))
def test_a_fake_score_that_is_the_teacher(backend, schedule, option):
    case = held_out(OPTIONS[option])
    outcome = case.but(fake=case.teacher).check(backend)
    assert outcome.loss == 0 and not outcome.grad.any()


def test_statistics(backend, schedule):
    for option in ("normalizer", "mask full", "multiplier per sample", "flow per frame"):
        case = held_out(OPTIONS[option], reduction="none")
        assert_stats(case.run(backend, stats=True).stats, case.expected())


def test_offsets_in_64_bits(backend, schedule, monkeypatch):
    """If 64-bit offsets are forced, the results have the same bits as with 32."""
    for option in ("plain", "mask per frame", "flow per frame"):
        case = held_out(OPTIONS[option], torch.bfloat16)
        narrow = case.run(backend, torch.tensor(2.0))
        with monkeypatch.context() as patch:
            for module in (plan, triton_plan):
                patch.setattr(module, "needs_int64", lambda offset: True)
            wide = case.run(backend, torch.tensor(2.0))
        assert same_bits(narrow.grad, wide.grad) and same_bits(narrow.loss, wide.loss)


def test_more_samples_than_a_block_of_them(backend, monkeypatch):
    """The program that reports goes through the batch block by block."""
    case = make((150, 3, 5), seed=5, normalizer=normalizer(20), mask=random_like((150, 3, 1), 1, 0.0) < 0.8)
    for limits in (
        Limits(whole_elements=0, whole_elements_general=0, tiles=(16,), most_programs=150),
        Limits(whole_elements=16, weighed=0),
    ):
        monkeypatch.setattr(triton_plan, "LIMITS", limits)
        if not limits.whole_elements:
            small = triton_plan.plan
            monkeypatch.setattr(triton_launch, "plan", lambda *a, **k: small(*a, **k)._replace(samples=32))  # noqa: B023
        case.check(backend)
        monkeypatch.undo()


@pytest.mark.cpu_only("the ticket of the interpreter")
def test_tickets_are_left_at_zero(backend, schedule):
    held_out(OPTIONS["normalizer"]).run(backend)
    assert not launching.ticket(torch.device("cpu")).any()


@pytest.mark.cpu_only("a GPU has an order of its own")
@pytest.mark.parametrize("option", ("plain", "normalizer", "mask full"))
def test_any_order_of_programs(backend, schedule, option, monkeypatch):
    """The bits are the same whichever program draws the last ticket, and no program reads what another has written."""
    from triton.runtime.interpreter import interpreter_builder as builder

    case = held_out(OPTIONS[option], torch.bfloat16)
    first = case.run(backend, stats=True)
    in_order = builder.set_grid_idx
    for seed in range(3):
        shuffled = {}

        def permuted(x, y, z, shuffled=shuffled, seed=seed):
            programs = builder.grid_dim[0]
            if programs not in shuffled:
                shuffled[programs] = random.Random(seed).sample(range(programs), programs)
            in_order(shuffled[programs][x], y, z)

        monkeypatch.setattr(builder, "set_grid_idx", permuted)
        again = case.run(backend, stats=True)
        monkeypatch.setattr(builder, "set_grid_idx", in_order)
        assert same_bits(first.grad, again.grad) and same_bits(first.loss, again.loss)
        assert all(same_bits(a, b) for a, b in zip(first.stats, again.stats, strict=True))
        assert first.mean is None or same_bits(first.mean, again.mean)
