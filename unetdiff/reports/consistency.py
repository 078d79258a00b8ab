"""Class consistency: accuracy of an independent classifier on class-conditional samples, with its interval."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from unetdiff.data.base import ImageDataset
from unetdiff.evaluation.classifier import Classifier, ClassifierConfig, num_images_used, train_classifier
from unetdiff.reports.dataset_groups import open_dataset, size_of
from unetdiff.reports.runs import Run


@dataclass
class Consistency:
    """Fraction of a run's samples that the classifier assigns to the class they were conditioned on."""

    value: float
    n: int
    """Samples."""
    low: float
    high: float
    """Ends of the 95 % Wilson interval."""
    per_class: dict[str, float]


@dataclass(frozen=True)
class SampleClassifier:
    """A classifier trained on real training images only."""

    classifier: Classifier
    labels: Sequence[str]
    """Names of its classes."""
    accuracy: float
    """Accuracy on real validation images."""
    n: int
    """Validation images behind `accuracy`."""
    trained_on: int
    """Number of training images."""

    def classify(self, images: Tensor) -> Tensor:
        """Classes (B,) of images (B, 3, H, W) in [0, 1]."""
        return self.classifier.predict((images * 255).round().clamp(0, 255).to(torch.uint8))


def train_sample_classifier(
    run: Run, validation: ImageDataset, steps: int, cache: Path | None = None
) -> SampleClassifier:
    """Train a classifier on the real training images of a run's dataset, at the run's image size.

    Args:
        run: gives dataset and image size.
        validation: real images that measure the classifier's accuracy; it is not trained on them.
        steps: optimizer steps.
        cache: folder that keeps trained classifiers; None: they are not kept.

    Raises:
        UserError: the training images are missing, or have no classes.
    """
    real = open_dataset(run, "train", segmentation=False)
    name = "-".join(map(str, ["classifier", run.config["data"].get("name", "scenes"), *(size_of(run) or ())]))
    file = None if cache is None else cache / name
    classifier = train_classifier(real, len(real.labels), file, ClassifierConfig(steps=steps))
    accuracy = classifier.accuracy(validation)
    return SampleClassifier(classifier, list(real.labels), accuracy, num_images_used(validation), num_images_used(real))


def consistency(target: Tensor, predicted: Tensor, labels: Sequence[str]) -> Consistency:
    """Class consistency of samples conditioned on classes `target` (n,) and classified as `predicted` (n,)."""
    correct = target == predicted
    low, high = wilson(int(correct.sum()), len(correct))
    per_class = {labels[label]: float(correct[target == label].float().mean()) for label in target.unique().tolist()}
    return Consistency(float(correct.float().mean()), len(correct), low, high, per_class)


def wilson(successes: int, n: int, z: float = 1.96) -> tuple[float, float]:
    """Ends of the 95 % score interval of a proportion (Wilson 1927), which holds near 0 and 1, too."""
    if n == 0:
        return 0.0, 1.0
    p = successes / n
    center = (p + z * z / (2 * n)) / (1 + z * z / n)
    half = z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n)) / (1 + z * z / n)
    # rounding must not put the end of the interval on the wrong side of the proportion
    return min(p, max(0.0, center - half)), max(p, min(1.0, center + half))
