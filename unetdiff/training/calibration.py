"""Data-dependent start of frozen BatchNorm: the statistics of the training images under the random weights.

BatchNorm cannot follow its batches under the diffusion objective (a batch mixes noise levels, inference does not), and
GroupNorm leaves in what all images have in common, which slows a segmenter's start from random weights (figures in
docs/results.md). After Salimans & Kingma 2016 ("Weight normalization", section 3).
"""

from __future__ import annotations

import torch

from unetdiff.data.base import ImageDataset, collate
from unetdiff.data.sampling import StepSampler
from unetdiff.models.blocks import FrozenBatchNorm2d
from unetdiff.training.tasks.base import Task

CALIBRATION_IMAGES = 512
"""Training images whose statistics a randomly initialized frozen BatchNorm takes."""


@torch.no_grad()
def calibrate(task: Task, data: ImageDataset, images: int, batch_size: int, seed: int = 0) -> int:
    """Set the statistics of every frozen BatchNorm that has none yet; returns how many were set.

    The task sees `images` images as it will in training, noised where it noises them. Each layer's mean and variance
    are the averages over those batches, with the layers before it normalised by their own batch. A trunk with
    pretrained statistics keeps them. The same images on every process, so that all of them start alike.
    """
    fresh = [m for m in task.modules() if isinstance(m, FrozenBatchNorm2d) and _is_fresh(m)]
    batch_size = min(batch_size, len(data))
    if not fresh or images < 1:
        return 0
    momenta = [norm.momentum for norm in fresh]
    for norm in fresh:
        norm.training, norm.momentum = True, None  # None: a plain average over the batches
        norm.reset_running_stats()
    steps = max(1, images // batch_size)
    for step, keys in enumerate(StepSampler(len(data), batch_size, seed, stop=steps)):
        task(collate([data[key] for key in keys]), step)  # type: ignore[index]
    for norm, momentum in zip(fresh, momenta, strict=True):
        norm.training, norm.momentum = False, momentum
    return len(fresh)


def _is_fresh(norm: FrozenBatchNorm2d) -> bool:
    mean, var = norm.running_mean, norm.running_var
    return mean is not None and var is not None and not mean.any() and bool((var == 1).all())
