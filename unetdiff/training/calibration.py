"""Data-dependent initialization of frozen BatchNorm: statistics of the training images under the random weights.

BatchNorm cannot follow its batches under the diffusion objective: a batch mixes noise levels, inference does not. After
Salimans & Kingma 2016 ("Weight normalization", section 3).
"""

from __future__ import annotations

import torch

from unetdiff.data.base import ImageDataset, collate
from unetdiff.data.sampling import StepSampler
from unetdiff.models.blocks import FrozenBatchNorm2d
from unetdiff.training.draws import whole_batch
from unetdiff.training.tasks.base import Task

CALIBRATION_IMAGES = 512
"""Training images whose statistics a randomly initialized frozen BatchNorm takes."""


@torch.no_grad()
def calibrate(task: Task, data: ImageDataset, images: int, batch_size: int, seed: int = 0) -> int:
    """Set the statistics of every frozen BatchNorm without any; returns the number of layers set.

    The task sees `images` training images, noised as in training. Mean and variance of a layer are averages over these
    batches, with the layers before it normalized by their own batch. A pretrained encoder keeps its statistics. The
    images are the same on every process, and so is the initialization.
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
    for step, keys in enumerate(StepSampler(len(data), batch_size, seed, stop=steps, buckets=data.buckets)):
        batch = collate([data[key] for key in keys])  # type: ignore[index]
        task(batch, whole_batch(step, len(keys), task.unet.device))
    for norm, momentum in zip(fresh, momenta, strict=True):
        norm.training, norm.momentum = False, momentum
    return len(fresh)


def _is_fresh(norm: FrozenBatchNorm2d) -> bool:
    mean, var = norm.running_mean, norm.running_var
    return mean is not None and var is not None and not mean.any() and bool((var == 1).all())
