"""The independent judge of class-conditional samples, and what its word is worth."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from unetdiff.data.base import ImageDataset
from unetdiff.evaluation.classifier import Judge, Recipe, images_used, train_judge
from unetdiff.reports.dataset_groups import open_dataset, size_of
from unetdiff.reports.runs import Run


@dataclass(frozen=True)
class SampleClassifier:
    """A classifier that was trained on real training images alone."""

    judge: Judge
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


def train_sample_classifier(
    run: Run, validation: ImageDataset, steps: int, cache: Path | None = None
) -> SampleClassifier:
    """The judge of a run's set at the run's size, trained on real training images; `validation` tells how good it is.

    Args:
        run: names the set, and the size.
        validation: real images that the judge never sees in training.
        steps: optimizer steps.
        cache: folder where trained judges are kept; None: nowhere.

    Raises:
        UserError: the training images are not there, or have no classes.
    """
    real = open_dataset(run, "train", segmentation=False)
    name = "-".join(map(str, ["judge", run.config["data"].get("name", "scenes"), *(size_of(run) or ())]))
    place = None if cache is None else cache / name
    judge = train_judge(real, len(real.labels), place, Recipe(steps=steps))
    accuracy = judge.accuracy(validation)
    return SampleClassifier(judge, list(real.labels), accuracy, images_used(validation), images_used(real))
