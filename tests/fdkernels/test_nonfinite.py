"""One bad sample: NaN in its own gradient and in the loss, or dropped and counted. Other samples are not affected."""

import pytest
import torch

import fdkernels as fdk
from tests.cases import make, normalizer

pytestmark = pytest.mark.contract("nonfinite")

BAD = (torch.nan, torch.inf, -torch.inf)


def poison(tensor: torch.Tensor, sample: int, value: float) -> torch.Tensor:
    poisoned = tensor.clone()
    poisoned[sample].view(-1)[-1] = value
    return poisoned


def check(case, backend, bad=(1,)):
    """Compare with the oracle, and check the plain meaning beside it."""
    outcome, expected = case.run(backend, stats=True), case.expected()
    assert expected.bad.nonzero()[0].tolist() == list(bad)
    case.hold(outcome, expected)
    others = [b for b in range(len(case.student)) if b not in bad]
    assert outcome.grad[others].isfinite().all() and outcome.grad[others].any()
    if case.options.get("nonfinite") == "zero":
        assert not outcome.grad[list(bad)].any() and outcome.loss.isfinite().all()
    else:
        assert outcome.grad[list(bad)].isnan().all()
        assert outcome.loss.isnan().any()
    assert outcome.stats.nonfinite_samples.item() == len(bad)
    return outcome


@pytest.mark.pairwise
@pytest.mark.parametrize("value", BAD)
@pytest.mark.parametrize("name", ("student", "teacher", "fake", "logits", "t"))
@pytest.mark.parametrize("nonfinite", ("propagate", "zero"))
@pytest.mark.parametrize("dtype", (torch.bfloat16, torch.float32), ids=str)
def test_one_bad_sample(backend, name, value, nonfinite, dtype):
    case = make((5, 3, 6, 5), dtype, nonfinite=nonfinite, normalizer=normalizer())
    check(case.but(**{name: poison(getattr(case, name), 1, value)}), backend)


@pytest.mark.parametrize("nonfinite", ("propagate", "zero"))
@pytest.mark.parametrize("reduction", ("sum", "none"))
def test_other_reductions(backend, nonfinite, reduction):
    case = make((5, 3, 6, 5), nonfinite=nonfinite, reduction=reduction)
    outcome = check(case.but(fake=poison(case.fake, 1, torch.nan)), backend)
    if reduction == "none":
        assert outcome.loss.isnan().tolist() == [False, nonfinite == "propagate", False, False, False]


@pytest.mark.parametrize("value", BAD)
@pytest.mark.parametrize("nonfinite", ("propagate", "zero"))
def test_weight_and_multiplier(backend, value, nonfinite):
    case = make((4, 3, 6, 5), heads=None, nonfinite=nonfinite, divergence="js")
    good = torch.tensor([1.0, 0.5, 2.0, 1.5])
    check(case.but(weight=poison(good, 1, value)), backend)
    check(case.but(weight=good, multiplier=poison(good, 1, value)), backend)
    per_row = torch.rand(4, 1, 6, 1, generator=torch.Generator().manual_seed(0))
    check(case.but(weight=good, multiplier=poison(per_row, 1, value)), backend)


@pytest.mark.parametrize("nonfinite", ("propagate", "zero"))
@pytest.mark.parametrize("frames", (False, True))
def test_an_infinite_coefficient_of_x_t(backend, nonfinite, frames):
    """1/alpha can be infinite in levels that the host can't check: here, `a` changes after its check."""
    case = make((4, 3, 6, 5), heads=None, nonfinite=nonfinite)
    a = torch.ones(4, 3) if frames else torch.ones(4)
    prediction = fdk.Prediction.affine(case.teacher + 0.5, a, torch.ones(4))
    a[1] = torch.inf
    check(case.but(prediction=prediction), backend)


@pytest.mark.parametrize("value", BAD)
def test_guidance_and_noisy(backend, value):
    case = make((4, 3, 6, 5), nonfinite="zero")
    uncond = poison(case.teacher + 0.1, 1, value)
    outcome = case.but(teacher_uncond=uncond, guidance_scale=2.0).run(backend)
    assert not outcome.grad[1].any() and outcome.grad[[0, 2, 3]].isfinite().all() and outcome.loss.isfinite()
    noisy = poison(case.student + 0.3, 1, value)
    check(case.but(prediction=fdk.Prediction("flow_prediction", noisy, sigma=0.5)), backend)


def test_every_sample_bad(backend):
    case = make((3, 3, 6, 5)).but(logits=torch.full((3,), torch.nan))
    outcome = case.run(backend)
    assert outcome.grad.isnan().all() and outcome.loss.isnan()
    outcome = case.but(nonfinite="zero").run(backend, stats=True)
    assert not outcome.grad.any() and outcome.loss == 0 and outcome.stats.nonfinite_samples == 3


def test_several_bad_samples_in_different_ways(backend):
    case = make((6, 3, 6, 5), nonfinite="zero", normalizer=normalizer())
    case = case.but(
        logits=poison(case.logits, 0, torch.inf), t=poison(case.t, 2, torch.nan), fake=poison(case.fake, 5, torch.inf)
    )
    check(case, backend, bad=(0, 2, 5))


def test_student_is_not_read_without_dmd(backend):
    case = make((4, 3, 6, 5), scale=None)
    poisoned = case.but(student=torch.full_like(case.student, torch.nan))
    outcome = poisoned.check(backend)
    assert outcome.grad.isfinite().all() and torch.equal(outcome.grad, case.run(backend).grad)


@pytest.mark.parametrize("mask", (None, (4, 1, 20, 20)))
def test_student_decides_no_bit_of_the_loss_without_dmd(backend, mask):
    """It is read for statistics; a NaN there sends a thread's or block's sums to the careful path."""
    for seed in range(8):
        keep = None if mask is None else torch.rand(mask, generator=torch.Generator().manual_seed(seed)) < 0.7
        case = make((4, 3, 20, 20), scale=None, seed=seed, mask=keep, reduction="none")
        poisoned = case.but(student=poison(case.student, 1, torch.nan))
        assert torch.equal(poisoned.run(backend, stats=True).loss, case.run(backend).loss), seed


@pytest.mark.parametrize("sample", range(4))
def test_statistics_leave_the_bad_sample_out(backend, sample):
    """Weights and state equal those of the batch without the bad sample."""
    case = make((4, 3, 6, 5), normalizer=normalizer(), nonfinite="zero", divergence="kl")
    others = [b for b in range(4) if b != sample]
    bad = case.but(logits=poison(case.logits, sample, torch.nan)).run(backend)
    without = case.but(
        student=case.student[others],
        teacher=case.teacher[others],
        fake=case.fake[others],
        logits=case.logits[others],
        t=case.t[others],
    ).run(backend)
    torch.testing.assert_close(bad.grad[others] * 4 / 3, without.grad, rtol=1e-6, atol=0)
    torch.testing.assert_close(bad.mean, without.mean, rtol=1e-7, atol=0)
