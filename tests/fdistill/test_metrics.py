import numpy as np
import pytest
import torch
from scipy import linalg

from fdistill.config import MixtureConfig
from fdistill.digits import load_digits
from fdistill.gmm import Mixture
from fdistill.metrics import Yardstick, precision_recall


@pytest.fixture(scope="module")
def yardstick(cache):
    torch.set_num_threads(1)
    return Yardstick(*load_digits(), cache, neighbours=5)


def test_the_classifier_reads_digits(yardstick):
    assert float(yardstick.classifier.get_buffer("held_out_accuracy")) > 0.97
    assert float(yardstick.real_features.std(0).mean()) == pytest.approx(1, abs=1e-4)


def test_the_cached_classifier_is_the_same(yardstick, cache):
    again = Yardstick(*load_digits(), cache, neighbours=5)
    assert torch.equal(again.real_features, yardstick.real_features)


def test_frechet_is_the_closed_form(yardstick):
    noise = torch.randn(yardstick.images.shape, generator=torch.Generator().manual_seed(0))
    noisy = (yardstick.images + 0.5 * noise).clamp(-1, 1)
    a, b = yardstick.real_features.double().numpy(), yardstick.classifier(noisy).double().numpy()
    cross = np.sqrt(linalg.eigvals(np.cov(a.T) @ np.cov(b.T)).astype(complex)).real.sum()
    expected = ((a.mean(0) - b.mean(0)) ** 2).sum() + np.trace(np.cov(a.T) + np.cov(b.T)) - 2 * cross
    measured = yardstick.measure(noisy)
    assert measured["frechet"] == pytest.approx(expected, rel=1e-3)
    assert measured["kid"] > 0.1


def test_real_against_itself_is_perfect(yardstick):
    same = yardstick.measure(yardstick.images)
    assert same["frechet"] == pytest.approx(0, abs=1e-3)
    assert (same["precision"], same["recall"], same["class_tv"]) == (1, 1, 0)


def test_one_class_alone_is_seen(yardstick):
    ones = yardstick.images[load_digits()[1] == 1]
    measured = yardstick.measure(ones.repeat(10, 1, 1, 1)[:1797])
    assert measured["class_tv"] > 0.85
    assert measured["recall"] < 0.3


def test_the_floor_is_that_of_a_bootstrap(yardstick):
    floor = yardstick.floor(2)
    assert 0.05 < floor["frechet_range"][0] <= floor["frechet"] <= floor["frechet_range"][1] < 0.3


def test_precision_and_recall_on_known_sets():
    generator = torch.Generator().manual_seed(0)
    near, far = torch.randn(200, 2, generator=generator), torch.randn(200, 2, generator=generator) + 100
    assert precision_recall(near, far, 3) == (0, 0)
    assert precision_recall(near, near, 3) == (1, 1)
    precision, recall = precision_recall(torch.cat((near, far)), near, 3)
    assert (precision, recall) == (1, 0.5)


def test_mode_weights_and_on_mode_fraction():
    mixture = Mixture(MixtureConfig())
    mode, distance = mixture.nearest_mode(mixture.means + torch.tensor([0.3, 0.0]))
    assert mode.tolist() == list(range(9))
    assert distance.tolist() == pytest.approx([2.0] * 9)
