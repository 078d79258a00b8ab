"""When a run writes checkpoints, and what is saved of a run that fails in the middle of a step."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import torch
from accelerate import Accelerator
from safetensors import SafetensorError

from unetdiff.config.training import TrainingConfig
from unetdiff.training import checkpoints
from unetdiff.training.logger import LossMeter
from unetdiff.training.progress import Progress
from unetdiff.training.step_layers import StepLayers
from unetdiff.training.tasks.base import Task


class Saver:
    """The checkpoints of a run. Only the main process writes.

    Args:
        run: the run directory.
        progress: of the run, kept up to date by the trainer.
        task: the trained weights.
        ema: the averaged weights, or None.
        optimizer: of the task.
        settings: `keep_checkpoints`.
        accelerator: of this run.
        layers: of the task, which remember the running statistics before a step.

    Attributes:
        meter: losses since the last line of metrics.jsonl, saved with each checkpoint.
    """

    def __init__(
        self,
        run: Path,
        progress: Progress,
        task: Task,
        ema: Task | None,
        optimizer: torch.optim.Optimizer,
        settings: TrainingConfig,
        accelerator: Accelerator,
        layers: StepLayers,
    ) -> None:
        self.run, self.progress, self.task, self.ema = run, progress, task, ema
        self.optimizer, self.settings, self.accelerator, self.layers = optimizer, settings, accelerator, layers
        self.meter = LossMeter()
        self.meter.load_state(progress.meter, accelerator.device)
        self.saved = progress.step  # step of the newest checkpoint
        self.started = self.in_step = self.updating = False
        optimizer.register_step_pre_hook(self._begin_update)

    def _begin_update(self, *args: object) -> None:
        self.updating = True

    @contextmanager
    def step(self) -> Iterator[None]:
        """Around an optimizer step, so that `rescue` knows whether the weights are those of the last finished one."""
        self.started, self.in_step, self.updating = True, True, False
        yield
        self.in_step = False

    def checkpoint(self, required: bool) -> None:
        """Write a checkpoint and `latest/`. Collective.

        During a streak of non-finite losses none is written unless it is required, and no older one is deleted then:
        one of them may be the last that can be trained.
        """
        if self.progress.nonfinite and not required:
            return
        if self.accelerator.is_main_process:
            self._save_and_export()
        self.accelerator.wait_for_everyone()

    def update_state(self) -> None:
        """Record a validation in the checkpoint of this step, if there is one."""
        if self.accelerator.is_main_process and self.saved == self.progress.step:
            self._save()

    def rescue(self) -> None:
        """After a failure within a step: write a checkpoint of the last finished step, if the weights are still its."""
        if not self.in_step or self.updating or not self.progress.step or not self.accelerator.is_main_process:
            return
        self.layers.discard()  # running statistics of the unfinished step
        with suppress(OSError, SafetensorError, MemoryError, RuntimeError):
            if self.saved != self.progress.step:
                self._save_and_export()

    def _save_and_export(self) -> None:
        self._save()
        checkpoints.export(self.run, "latest", self.task if self.ema is None else self.ema)

    def _save(self) -> None:
        progress = self.progress
        if self.accelerator.scaler is not None:
            progress.scaler = self.accelerator.scaler.state_dict()
        progress.meter = self.meter.state()
        keep = None if progress.nonfinite else self.settings.keep_checkpoints
        checkpoints.save(self.run, progress, self.task, self.ema, self.optimizer, keep)
        self.saved = progress.step
