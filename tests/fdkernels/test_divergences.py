"""Divergences as objects: pickled, registered, failing for single samples."""

import pickle

import pytest
import torch

import fdkernels as fdk


@pytest.mark.parametrize("name", [*fdk.divergences(), "alpha(0.5)"])
def test_losses_pickle(name):
    loss = pickle.loads(pickle.dumps(fdk.FDivLoss(name)))
    logits = torch.linspace(-2, 2, 8)
    options = {"normalize_weight": False, "backend": "reference"}
    expected = fdk.fdiv_weight(logits, divergence=name, **options)
    assert torch.equal(fdk.fdiv_weight(logits, divergence=loss.divergence, **options), expected)
    assert loss.divergence.kernel == fdk.FDivLoss(name).divergence.kernel


@pytest.mark.parametrize("failure", [torch.nan, torch.inf])
def test_a_failing_sample_does_not_take_the_batch_with_it(failure):
    partial = fdk.Divergence("partial", lambda log_ratio: torch.where(log_ratio > 1, failure, log_ratio))
    weight = fdk.fdiv_weight(torch.tensor([0.0] * 7 + [2.0]), divergence=partial)
    assert torch.equal(weight[:7], torch.ones(7))
    assert weight[7].isnan()


def test_kernel_rows_are_not_for_the_taking():
    with pytest.raises(TypeError):
        fdk.Divergence("mine", lambda log_ratio: 5 * log_ratio, kernel="kl")


@pytest.mark.parametrize("arguments", [(5, torch.abs), ("x", 3), ("x", torch.abs, "ab")])
def test_bad_divergence(arguments):
    with pytest.raises(TypeError, match=r"Divergence|log_weight"):
        fdk.Divergence(*arguments)


def test_complex_log_weight():
    with pytest.raises(ValueError, match="floating"):
        fdk.fdiv_weight(torch.zeros(8), divergence=fdk.Divergence("c", lambda log_ratio: log_ratio * 1j))


def test_nearest_name_ignores_case():
    with pytest.raises(ValueError, match="did you mean 'js'"):
        fdk.fdiv_weight(torch.zeros(8), divergence="JS")
