"""`DmdScale(over=...)`: one mean for each block of frames, or one for the batch."""

import pytest
import torch

import fdkernels as fdk
from tests.cases import make, normalizer
from tests.fdkernels import test_stats
from tests.fdkernels.test_nonfinite import poison

pytestmark = pytest.mark.contract("exactness")

SHAPE = (3, 6, 2, 5, 4)
OVERS = ("frame", 2, 3, 6, "batch")


def uniform(*size, seed=0):
    return torch.rand(size, generator=torch.Generator().manual_seed(seed))


def case(over, dtype=torch.float32, floor=0.0, kept_only=False, **options):
    made = make(SHAPE, dtype, scale=fdk.DmdScale(floor=floor, over=over, kept_only=kept_only), **options)
    # Frames differ in size, so that the mean of another set would give another gradient.
    sizes = torch.linspace(0.2, 3.0, 18).reshape(3, 6, 1, 1, 1)
    student = made.teacher.double() + sizes * (made.student.double() - made.teacher.double())
    return made.but(student=student.to(dtype))


@pytest.mark.parametrize("over", OVERS)
@pytest.mark.parametrize("dtype", (torch.bfloat16, torch.float16, torch.float32, torch.float64), ids=str)
def test_exact(backend, over, dtype):
    checked = case(over, dtype)
    checked.check(backend)
    test_stats.check(checked, backend)
    same = torch.equal(checked.run(backend).grad, checked.but(scale="dmd").run(backend).grad)
    assert same == (over == 6)  # all frames of a sample


@pytest.mark.parametrize("over", OVERS)
def test_with_everything(backend, over):
    noisy = torch.randn(SHAPE, generator=torch.Generator().manual_seed(1))
    checked = case(
        over, floor=0.3, kept_only=True, multiplier=0.5 + uniform(3, 6), mask=uniform(3, 6, 1, 5, 1) < 0.7,
        prediction=fdk.Prediction("edm", noisy, sigma=0.2 + uniform(3, 6, seed=2)), normalizer=normalizer(4),
    )  # fmt: skip
    uncond = checked.teacher + 0.1
    checked.check(backend)
    checked.but(teacher_uncond=uncond, guidance_scale=2.0, reduction="sum").check(backend)
    checked.but(count=100, student=checked.student.transpose(2, 3).contiguous().transpose(2, 3)).check(backend)


@pytest.mark.parametrize("over", OVERS[:-1])
@pytest.mark.parametrize("mask", (None, (3, 6), (1, 6, 1, 5, 4), SHAPE))
def test_none(backend, over, mask):
    """Each sample's loss. A mask keeps different parts of its blocks, or nothing."""
    keep = None if mask is None else uniform(*mask, seed=4) < 0.6
    checked = case(over, reduction="none", mask=keep)
    checked.check(backend)
    test_stats.check(checked, backend)
    checked.check(backend, torch.tensor([0.5, 3.0, -1.0]))
    checked.but(mask=torch.zeros(3, dtype=torch.bool)).check(backend)


@pytest.mark.parametrize("over", OVERS)
@pytest.mark.parametrize("nonfinite", ("propagate", "zero"))
def test_a_set_stands_and_falls_as_one(backend, over, nonfinite):
    good = case(over, nonfinite=nonfinite)
    sets = len(good.expected().bad)
    # First the last element of sample 1 is bad; then all of sample 1, which has no weight.
    for change, bad in (
        ({"fake": poison(good.fake, 1, torch.nan)}, 1),
        ({"logits": poison(good.logits, 1, torch.inf)}, sets // 3),
    ):
        outcome, expected = good.but(**change).run(backend, stats=True), good.but(**change).expected()
        good.hold(outcome, expected)
        assert outcome.stats.nonfinite_samples == expected.bad.sum() == max(bad, 1)
        lost = outcome.grad.isnan() if nonfinite == "propagate" else outcome.grad == 0
        assert lost.sum() == outcome.grad.numel() // sets * max(bad, 1)


def test_given_weights_and_none(backend):
    for over in ("frame", "batch"):
        weighed = make(SHAPE, heads=None, scale=fdk.DmdScale(over=over), weight=torch.tensor([0.5, 2.0, 1.0]))
        weighed.check(backend)
        test_stats.check(weighed, backend)
        make(SHAPE, heads=None, scale=fdk.DmdScale(over=over)).check(backend)


def test_weights_beyond_float32(backend):
    """h is 2 e^90 for the sample; with this eps the loss is 5e18."""
    options = {"divergence": "pearson", "ratio_range": None, "normalize_weight": False}
    for over in ("sample", "frame", "batch"):
        huge = make((1, 2, 3), heads=0, scale=fdk.DmdScale(eps=1e30, over=over), **options).but(
            logits=torch.tensor([45.0])
        )
        assert huge.check(backend).loss.isfinite()


@pytest.mark.host_code("no kernel runs over an empty batch")
def test_an_empty_batch(backend):
    for over in OVERS:
        empty = make(SHAPE, heads=None, weight=torch.ones(0), scale=fdk.DmdScale(over=over))
        empty = empty.but(**{name: getattr(empty, name)[:0] for name in ("student", "teacher", "fake")})
        outcome = empty.run(backend, stats=True)
        assert outcome.loss == 0 and outcome.grad.shape == empty.student.shape and outcome.stats.weight.shape == (0,)


def test_levels_that_a_kind_does_not_read(backend):
    unread = {"flow_prediction": {"alpha": torch.ones(7), "sigma": torch.full((3,), 0.5)}, "sample": {}}
    for kind, levels in unread.items():
        noisy = torch.zeros(SHAPE if levels else (2, 2))
        case(2, prediction=fdk.Prediction(kind, noisy, **levels)).check(backend)


BAD = {
    "over": {"scale": fdk.DmdScale(over=4)},
    "reduction": {"scale": fdk.DmdScale(over="batch"), "reduction": "none"},
    "mask": {"mask": torch.ones(3, 5, dtype=torch.bool)},
    "sigma": {"prediction": fdk.Prediction("flow_prediction", torch.zeros(SHAPE), sigma=torch.ones(2))},
}


@pytest.mark.contract("bad input")
@pytest.mark.parametrize("name", BAD)
def test_no_state_moves_before_an_error(backend, name):
    state = normalizer(4)
    before = state.mean.clone()
    with pytest.raises(ValueError, match=f"^{name}: "):
        case("frame", normalizer=state).but(**BAD[name]).call(backend)
    assert torch.equal(state.mean, before)


@pytest.mark.contract("bad input")
def test_bad_sets(backend):
    for over in (0, -1, 1.5, True, "frames", None):
        with pytest.raises(ValueError, match="^over: expected 'sample', 'batch', 'frame' or a number"):
            fdk.DmdScale(over=over)
    with pytest.raises(TypeError, match="^kept_only: expected a bool"):
        fdk.DmdScale(kept_only=1)
    with pytest.raises(ValueError, match=r"^over: expected blocks that divide the frames.*4 of \(3, 6, 2, 5, 4\)"):
        case(4).run(backend)
    with pytest.raises(ValueError, match="^over: expected blocks"):
        make((4,), scale=fdk.DmdScale(over="frame")).run(backend)
    with pytest.raises(ValueError, match="^reduction: expected 'mean' or 'sum' with over='batch'"):
        case("batch", reduction="none").run(backend)
