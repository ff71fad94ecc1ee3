"""FDivStats: all figures of a step, as device tensors, from the same pass."""

import pytest
import torch

import fdkernels as fdk
from tests import device
from tests.cases import assert_stats, make, normalizer, same_bits

pytestmark = pytest.mark.contract("stats")

FIGURES = (
    "weight_min",
    "weight_mean",
    "weight_max",
    "effective_sample_size",
    "ratio_mean",
    "clip_fraction",
    "out_of_range_fraction",
    "grad_norm",
    "relative_gap",
    "nonfinite_samples",
    "generator_loss",
)


def check(case, backend):
    stats, expected = case.run(backend, stats=True).stats, case.expected()
    assert isinstance(stats, fdk.FDivStats) and set(stats._fields) == {"weight", *FIGURES}
    assert all(value.dtype == torch.float64 and not value.requires_grad for value in stats)
    assert_stats(stats, expected)
    return stats


@pytest.mark.pairwise
@pytest.mark.parametrize("divergence", ("js", "kl", "rkl", "neyman", "alpha(0.3)"))
@pytest.mark.parametrize("reduction", ("mean", "sum", "none"))
@pytest.mark.parametrize("dtype", (torch.bfloat16, torch.float16, torch.float32, torch.float64), ids=str)
def test_figures(backend, divergence, reduction, dtype):
    check(make((9, 3, 6, 5), dtype, divergence=divergence, reduction=reduction, logit_scale=3), backend)


def test_with_normalizer_and_t_outside(backend):
    case = make((12, 3, 6, 5), normalizer=normalizer(t_range=(0.2, 0.7)))
    stats = check(case, backend)
    assert 0 < stats.out_of_range_fraction < 1
    on_the_ends = case.but(t=torch.tensor([0.25, 0.75] * 6), normalizer=normalizer(t_range=(0.25, 0.75)))
    assert check(on_the_ends, backend).out_of_range_fraction == 0


@pytest.mark.parametrize("scale", ("dmd", None))
def test_scales(backend, scale):
    check(make((5, 3, 6, 5), scale=scale), backend)
    multiplier = torch.rand(5, 1, 6, 1, generator=torch.Generator().manual_seed(0))
    check(make((5, 3, 6, 5), scale=scale, multiplier=multiplier), backend)


def test_without_logits(backend):
    stats = check(make((5, 3, 6, 5), heads=None), backend)
    assert stats.ratio_mean.isnan() and stats.clip_fraction.isnan() and stats.weight_mean == 1
    weight = torch.tensor([0.5, 1, 2, 0.1, 3])
    check(make((5, 3, 6, 5), heads=None, weight=weight), backend)


def test_predictions_and_masks(backend):
    noisy = torch.randn(5, 3, 6, 5, generator=torch.Generator().manual_seed(1))
    sigma = torch.linspace(0.1, 0.9, 5)
    prediction = fdk.Prediction("flow_prediction", noisy, sigma=sigma)
    mask = torch.rand(5, 3, 6, 5, generator=torch.Generator().manual_seed(2)) < 0.5
    check(make((5, 3, 6, 5), prediction=prediction), backend)
    check(make((5, 3, 6, 5), prediction=prediction, scale=None), backend)
    check(make((5, 3, 6, 5), mask=mask), backend)


BAD = {
    "logits": {"logits": [1, 4]},
    "t": {"t": [0]},
    "logits and t": {"logits": [2], "t": [3]},
    "images": {"fake": [1], "teacher": [4]},
    "student": {"student": [2]},
    "all": {"logits": range(6)},
}


@pytest.mark.parametrize("bad", BAD)
def test_of_batches_with_bad_samples(backend, bad):
    """A bad sample is in no mean; the effective sample size still counts its place in the batch."""
    for options in ({"normalizer": normalizer(t_range=(0.2, 0.7))}, {"divergence": "kl"}):
        case = make((6, 3), logit_scale=3, seed=2, nonfinite="zero", **options)
        for name, samples in BAD[bad].items():
            poisoned = getattr(case, name).clone()
            for b in samples:
                poisoned[b].view(-1)[-1] = torch.nan
            case = case.but(**{name: poisoned})
        stats = check(case, backend)
        assert stats.nonfinite_samples == sum(map(len, BAD[bad].values()))


def test_of_bad_weights(backend):
    """Given weights, two of them bad; then no weights, with a bad t."""
    case = make((5, 3, 6, 5), heads=None, nonfinite="zero", weight=torch.tensor([0.5, torch.nan, 2, torch.inf, 3]))
    assert check(case, backend).effective_sample_size < 0.6
    t = torch.tensor([0.5, 0.1, torch.nan, 0.4, 0.6])
    case = make((5, 3, 6, 5), heads=None, nonfinite="zero").but(t=t)
    assert check(case, backend).effective_sample_size == 0.8
    check(case.but(weight=torch.tensor([0.5, 1, 2, 0.1, 3]), divergence="js"), backend)


def hidden(name, value, shape=(4, 3, 2, 8, 8)):
    """Cases whose masks hide `value` in some elements, rows or frames of an image; other masked ones are finite."""
    for size in (shape, (1, 3, 1, 1, 1), (shape[0], 1, 1, shape[3], 1), (shape[0], 3, 1, 1, 1)):
        generator = torch.Generator().manual_seed(3)
        mask = torch.rand(size, generator=generator) < 0.6
        mask.view(-1)[0], mask.view(-1)[-1] = True, False
        case = make(shape, heads=None, mask=mask)
        where = ~mask.expand(shape)
        where[..., ::2, :] = False
        if name == "noisy":
            noisy = torch.randn(shape, generator=generator).masked_fill(where, value)
            yield case.but(prediction=fdk.Prediction("edm", noisy, sigma=0.75))
        else:
            yield case.but(**{name: getattr(case, name).masked_fill(where, value)})


@pytest.mark.parametrize("value", (torch.nan, torch.inf))
@pytest.mark.parametrize("name", ("student", "teacher", "fake", "noisy"))
def test_whatever_a_mask_hides(backend, name, value):
    """Behind a mask, a value that is not finite counts as 0; a finite value counts."""
    for case in hidden(name, value, (2, 3, 2, 4, 4) if device.is_slow(backend) else (4, 3, 2, 8, 8)):
        assert check(case, backend).relative_gap > 0


def test_asking_changes_nothing(backend):
    case = make((9, 3, 6, 5), normalizer=normalizer())
    plain, with_stats = case.run(backend), case.run(backend, stats=True)
    assert same_bits(plain.grad, with_stats.grad) and same_bits(plain.loss, with_stats.loss)
    assert same_bits(plain.mean, with_stats.mean)


def test_all_ratios_clipped(backend):
    case = make((4, 3, 6, 5)).but(logits=torch.tensor([9.0, -9.0, 10.0, -10.0]))
    assert check(case, backend).clip_fraction == 1


def test_group_free_custom_divergence(backend):
    case = make((9, 3, 6, 5), normalizer=normalizer())
    own = fdk.Divergence("test_stats_own", lambda log_ratio: 0.5 * log_ratio)
    mine, theirs = (case.but(divergence=d).run(backend, stats=True).stats for d in (own, "alpha(0.5)"))
    torch.testing.assert_close(tuple(mine), tuple(theirs), rtol=1e-6, atol=0, equal_nan=True)


@pytest.mark.parametrize("given", (True, False))
def test_weight_of_samples_that_are_not_finite(backend, given):
    """A bad sample's h is NaN, also where "zero" drops it from the loss. The others' h is as if it were not there."""
    case = make((9, 3, 6, 5), nonfinite="zero", divergence="kl")
    case = case.but(t=case.t.clone().index_fill(0, torch.tensor([2]), torch.nan))
    if given:
        case = case.but(logits=None, divergence="rkl", weight=torch.linspace(0.5, 3, 9))
    weight, expected = case.run(backend, stats=True).stats.weight, torch.as_tensor(case.expected().h)
    expected[2] = torch.nan
    torch.testing.assert_close(weight, expected, rtol=1e-6, atol=0, equal_nan=True)


@pytest.mark.parametrize("batch", (1, 33, 700))
def test_weight_of_any_batch(backend, batch):
    check(make((batch, 3), heads=3, divergence="jeffreys"), backend)
