"""The exponential moving average of a task's weights: parameters averaged, buffers copied."""

from __future__ import annotations

import copy

import torch
from torch.optim.swa_utils import get_ema_multi_avg_fn

from unetdiff.config.training import EMAConfig
from unetdiff.training import lora
from unetdiff.training.tasks.base import Task

WARMUP_RATIO = 0.05
"""The half-life is at most this fraction of the images seen so far (EDM2)."""


def ema_decay(images: int, batch_size: int, half_life_images: float) -> float:
    """The decay β of one optimizer step, average = β average + (1 - β) weights (Karras et al. 2022, training code).

    The half-life is in images, independent of the batch size, and at most `WARMUP_RATIO` of the images seen so far, so
    that the random initialization is forgotten.
    """
    half_life = min(half_life_images, WARMUP_RATIO * images)
    return 0.5 ** (batch_size / max(half_life, 1e-8))


class EMA:
    """An averaged copy of the task, in eval mode, used for validation, previews and export.

    The weights that an adapter (`training.lora`) leaves as they are belong to both.
    """

    def __init__(self, task: Task, config: EMAConfig) -> None:
        self.config = config
        frozen = lora.frozen_parameters(task)
        shared = {id(p): p for p in task.parameters() if id(p) in frozen}
        self.task = copy.deepcopy(task, shared).eval().requires_grad_(False)

    @torch.no_grad()
    def update(self, task: Task, images: int, batch_size: int) -> None:
        """Average in the task's weights after a step; `images`: images seen so far, this step included."""
        decay = ema_decay(images, batch_size, self.config.half_life_images)
        update_average = get_ema_multi_avg_fn(decay)
        pairs = zip(self.task.parameters(), task.parameters(), strict=True)
        averages, weights = zip(*((one, other) for one, other in pairs if one is not other), strict=True)
        update_average(list(averages), list(weights), None)
        for average, buffer in zip(self.task.buffers(), task.buffers(), strict=True):
            average.copy_(buffer)
