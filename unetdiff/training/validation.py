"""Validation: evaluate a task on the validation split, log metrics and previews, keep the best weights."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from torch.utils.data import DataLoader

from unetdiff.console import progress_bar
from unetdiff.data.base import ImageDataset
from unetdiff.data.loaders import eval_loader
from unetdiff.training import checkpoints
from unetdiff.training.logger import RunLogger
from unetdiff.training.progress import Progress
from unetdiff.training.tasks.base import Task


def run_validation(
    task: Task,
    val: ImageDataset,
    batch_size: int,
    progress: Progress,
    run: Path,
    logger: RunLogger | None,
    accelerator: Accelerator,
) -> dict[str, Any]:
    """The metrics of `task` on the validation split; `best/` is exported where they improve. Collective.

    Args:
        task: the weights to evaluate, in eval mode: the EMA's, or the trained ones without an EMA.
        val: the validation split.
        batch_size: images per batch of a process.
        progress: updated with the best value and its step.
        run: the run directory.
        logger: of the main process; None on the others.
        accelerator: of this run.
    """
    loader = eval_loader(val, batch_size, accelerator.process_index, accelerator.num_processes)
    metrics = task.evaluate(_Shown(loader, enabled=logger is not None), accelerator)
    if logger is not None:
        images, more = task.preview(accelerator)
        metrics |= more
        minutes = {"minutes": progress.minutes, "train_minutes": progress.train_minutes}
        logger.log_metrics("validation", progress.step, {"images": progress.images, **minutes, **metrics})
        logger.save_images(progress.step, images)
    name, direction = task.best_metric
    value = metrics[name]
    improved = progress.best is None or (value > progress.best if direction == "max" else value < progress.best)
    progress.stale += 1
    if improved and math.isfinite(value):
        progress.best, progress.best_step, progress.stale = value, progress.step, 0
        if logger is not None:
            checkpoints.export(run, "best", task)
    if logger is not None:
        star = " (best)" if progress.best_step == progress.step else ""
        logger.info(f"step {progress.step}: {name} {value:.4f}{star}")
    accelerator.wait_for_everyone()
    return metrics


class _Shown:
    """A loader with a progress bar each time it is iterated: a joint task does so once for each head."""

    def __init__(self, loader: DataLoader[dict[str, Any]], enabled: bool) -> None:
        self.loader, self.enabled = loader, enabled

    def __iter__(self) -> Iterator[dict[str, Any]]:
        yield from progress_bar(self.loader, desc="validation", unit="batch", leave=False, enabled=self.enabled)
