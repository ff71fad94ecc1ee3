"""Sample quality: Fréchet and kernel distance (torchmetrics), precision and recall, balance of the classes.

All figures use the features of a small classifier trained on the same images, so that nothing is downloaded. The
features are divided by their mean standard deviation over the data, which fixes the unit of the distances.
"""

from __future__ import annotations

import math
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from fdistill.files import cached, write

FIGURES = ("frechet", "kid", "kid_std", "precision", "recall", "class_tv")
FEATURES = 64
EPOCHS = 40
WEIGHTS = "classifier.safetensors"


class Classifier(nn.Module):
    """A classifier of digits. Called as a module it returns features, as torchmetrics expects."""

    num_features = FEATURES

    def __init__(self, classes: int = 10) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(1, 32, 3, padding=1), nn.ReLU(),
            nn.Conv2d(32, 64, 3, padding=1, stride=2), nn.ReLU(),
            nn.Flatten(), nn.Linear(64 * 16, FEATURES), nn.ReLU(),
        )  # fmt: skip
        self.head = nn.Linear(FEATURES, classes)
        self.register_buffer("unit", torch.ones(()))
        self.register_buffer("held_out_accuracy", torch.zeros(()))

    def forward(self, images: Tensor) -> Tensor:
        return self.body(images) / self.get_buffer("unit")

    def classify(self, images: Tensor) -> Tensor:
        return self.head(self.body(images)).argmax(1)


def load_or_train_classifier(images: Tensor, labels: Tensor, home: Path) -> Classifier:
    """The classifier from the folder `home`, or one that is trained now."""

    def make(folder: Path) -> None:
        write(folder / WEIGHTS, save(train_classifier(images, labels).state_dict()))

    net = Classifier().to(images.device)
    net.load_state_dict(load_file(cached(home, "classifier", make) / WEIGHTS))
    return net.requires_grad_(False).eval()


@torch.enable_grad()  # the caller may evaluate under no_grad
def train_classifier(images: Tensor, labels: Tensor) -> Classifier:
    """A classifier trained on four fifths of the data, at random, and scored on the rest."""
    generator = torch.Generator().manual_seed(0)
    order = torch.randperm(len(images), generator=generator)
    held_out, train = order[: len(order) // 5], order[len(order) // 5 :]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        net = Classifier().to(images.device)
    optimizer = torch.optim.AdamW(net.parameters(), lr=2e-3, weight_decay=0.05)
    batches = EPOCHS * (len(train) // 64)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, batches)
    for _ in range(EPOCHS):
        for batch in train[torch.randperm(len(train), generator=generator)].split(64)[: len(train) // 64]:
            loss = cross_entropy(net.head(net.body(images[batch])), labels[batch])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    with torch.no_grad():
        net.get_buffer("unit").copy_(net(images).std(0).mean())
        correct = net.classify(images[held_out]) == labels[held_out]
        net.get_buffer("held_out_accuracy").copy_(correct.float().mean())
    return net


def precision_recall(real: Tensor, generated: Tensor, k: int) -> tuple[float, float]:
    """Kynkäänniemi et al. 2019: the part of one set that lies within the other's k-nearest-neighbor balls."""

    def covered(points: Tensor, centres: Tensor) -> float:
        # Rank k + 1 is the k-th neighbor, because each point is its own nearest.
        radius = torch.cdist(centres, centres).kthvalue(k + 1, dim=1).values
        return (torch.cdist(points, centres) <= radius).any(1).double().mean().item()

    real, generated = real.double(), generated.double()
    return covered(generated, real), covered(real, generated)


def class_histogram(classes: Tensor) -> Tensor:
    return torch.bincount(classes, minlength=10).double() / len(classes)


class Yardstick:
    """Compares sets of images with all the real ones.

    Args:
        images, labels: the data.
        cache: folder of the trained classifier.
        neighbours: k of precision and recall.
    """

    def __init__(self, images: Tensor, labels: Tensor, cache: Path, neighbours: int) -> None:
        self.classifier = load_or_train_classifier(images, labels, cache / "digits-classifier-v1")
        self.images = images
        self.neighbours = neighbours
        self.real_features = self.classifier(images)
        self.real_classes = class_histogram(self.classifier.classify(images))

    @torch.no_grad()
    def measure(self, images: Tensor) -> dict[str, Any]:
        """Every figure of a set of images in [-1, 1]; all NaN if an image is not finite.

        Figures are comparable only for sets as large as the real one.
        """
        if not images.isfinite().all():
            return {**dict.fromkeys(FIGURES, math.nan), "classes": None}
        from torchmetrics.image.fid import FrechetInceptionDistance
        from torchmetrics.image.kid import KernelInceptionDistance

        features = self.classifier(images)
        with warnings.catch_warnings(), torch.random.fork_rng(devices=[]):
            warnings.simplefilter("ignore")  # torchmetrics warns that it keeps 1797 features in memory
            torch.manual_seed(0)
            frechet = FrechetInceptionDistance(feature=self.classifier, normalize=True)
            size = min(1000, len(images))
            kernel = KernelInceptionDistance(feature=self.classifier, normalize=True, subsets=20, subset_size=size)
            for metric in (frechet, kernel):
                metric.update(self.images, real=True)
                metric.update(images, real=False)
            distance, (kernel_mean, kernel_std) = frechet.compute(), kernel.compute()
        precision, recall = precision_recall(self.real_features, features, self.neighbours)
        classes = class_histogram(self.classifier.classify(images))
        return {
            "frechet": float(distance),
            "kid": float(kernel_mean),
            "kid_std": float(kernel_std),
            "precision": precision,
            "recall": recall,
            "class_tv": float(0.5 * (classes - self.real_classes).abs().sum()),
            "classes": classes.tolist(),
        }

    def floor(self, bootstraps: int) -> dict[str, Any]:
        """Mean figures of real against real: bootstraps of the data, each as large as the data, against the data."""
        rows = []
        for seed in range(bootstraps):
            picks = np.random.default_rng(seed).integers(len(self.images), size=len(self.images))
            rows.append(self.measure(self.images[torch.from_numpy(picks)]))
        floor = {key: float(np.mean([row[key] for row in rows])) for key in rows[0] if key != "classes"}
        distances = [row["frechet"] for row in rows]
        return {**floor, "frechet_range": [min(distances), max(distances)]}
