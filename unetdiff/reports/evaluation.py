"""The independent judge of class-conditional samples, and what its word is worth."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from unetdiff.data.base import ImageDataset
from unetdiff.evaluation.classifier import Classifier, ClassifierConfig, num_images_used, train_classifier
from unetdiff.reports.dataset_groups import open_set, size_of
from unetdiff.reports.runs import Run


@dataclass(frozen=True)
class Judging:
    """A classifier that was trained on real training images alone."""

    judge: Classifier
    labels: Sequence[str]
    """Names of its classes."""
    accuracy: float
    """Share of real validation images that it names rightly."""
    n: int
    """Validation images behind `accuracy`."""
    trained_on: int
    """Training images that it has learnt from."""

    def classify(self, images: Tensor) -> Tensor:
        """Classes (B,) of images (B, 3, H, W) in [0, 1]."""
        return self.judge.predict((images * 255).round().clamp(0, 255).to(torch.uint8))


def judge_of(run: Run, validation: ImageDataset, steps: int, cache: Path | None = None) -> Judging:
    """The judge of a run's set at the run's size, trained on real training images; `validation` tells how good it is.

    Args:
        run: names the set, and the size.
        validation: real images that the judge never sees in training.
        steps: optimizer steps.
        cache: folder where trained judges are kept; None: nowhere.

    Raises:
        UserError: the training images are not there, or have no classes.
    """
    real = open_set(run, "train", segmentation=False)
    name = "-".join(map(str, ["judge", run.config["data"].get("name", "scenes"), *(size_of(run) or ())]))
    place = None if cache is None else cache / name
    judge = train_classifier(real, len(real.labels), place, ClassifierConfig(steps=steps))
    accuracy = judge.accuracy(validation)
    return Judging(judge, list(real.labels), accuracy, num_images_used(validation), num_images_used(real))
