"""The training loop, one for all tasks: a task defines the loss of a batch and its evaluation, the rest is here.

One iteration of the loop is one optimizer step. Its learning rate, images, augmentation and random numbers are
functions of (seed, step), so a run that was killed and resumed ends with the weights of an uninterrupted one.
"""

from __future__ import annotations

import errno
import math
import time
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor

from unetdiff.config.schema import RunConfig
from unetdiff.config.validation.run import validate
from unetdiff.errors import TrainingStopped
from unetdiff.kernels.accelerate import accelerate_training_
from unetdiff.training import checkpoints, runtime
from unetdiff.training.calibration import CALIBRATION_IMAGES, calibrate
from unetdiff.training.checkpoints import Progress, resume_hint
from unetdiff.training.class_weights import class_weights_source, describe, resolve_class_weights
from unetdiff.training.ema import EMA
from unetdiff.training.gradients import GradientComparison
from unetdiff.training.init_from import InitReport, initialize
from unetdiff.training.logger import LossMeter, RunLogger
from unetdiff.training.nonfinite import skip_nonfinite
from unetdiff.training.optimizer import LearningRate, build_optimizer
from unetdiff.training.peak import reset_peak
from unetdiff.training.run_data import RunData
from unetdiff.training.rundir import open_run
from unetdiff.training.signals import StopRequest, stop_on_signals
from unetdiff.training.step import optimizer_step
from unetdiff.training.step_layers import StepLayers, require_batch_norm_images
from unetdiff.training.summary import headline, write_summary
from unetdiff.training.sums import require_sums
from unetdiff.training.tasks.base import Task
from unetdiff.training.tasks.build import build_task
from unetdiff.training.validation import run_validation

MAX_NONFINITE_STEPS = 5
"""Non-finite losses in a row that stop the run."""


def train(config: RunConfig, command: str | None = None) -> Path:
    """Train as configured; returns the run directory (docs/runs.md lists its files).

    Args:
        config: the whole run.
        command: the command line, for summary.json.

    Raises:
        UserError: an invalid config, dataset or run directory; nothing was trained.
        TrainingStopped: ended early by a signal, a full disk or non-finite losses; the message says how to resume.
    """
    validate(config)
    trainer = Trainer(config, command)
    try:
        with stop_on_signals() as stop:
            trainer.run(stop)
    except (OSError, SafetensorError) as error:
        if getattr(error, "errno", None) == errno.ENOSPC or "No space left" in str(error):
            raise TrainingStopped(f"The disk is full ({error}). {resume_hint(trainer.directory)}") from error
        raise
    finally:
        trainer.close()
    return trainer.directory


class Trainer:
    """The state of a run: datasets, task, EMA, optimizer, progress."""

    def __init__(self, config: RunConfig, command: str | None) -> None:
        self.command = command
        settings = config.training
        self.accelerator = runtime.build_accelerator(settings)
        require_sums(config, self.accelerator.num_processes)
        reset_peak(self.accelerator.device)
        self.logger: RunLogger | None = None
        self.data = RunData(config, self.accelerator)
        self.config = resolve_class_weights(config, self.data.train, self.accelerator)
        self.class_weights = class_weights_source(config, self.config, self.data.train.classes)
        self.epoch_steps = len(self.data.train) / settings.batch_size
        self.steps = settings.steps or max(1, round((settings.epochs or 1) * self.epoch_steps))

        torch.manual_seed(settings.seed)
        self.task: Task = build_task(self.config, self.data.train, self.data.val).to(self.accelerator.device)
        self.init_report = self._initialize()
        require_batch_norm_images(self.task.unet, settings, self.accelerator.num_processes, self.data.train)
        self.layers = StepLayers(self.task, self.accelerator.num_processes, settings.batch_norm_images)
        accelerate_training_(self.task.unet)
        self.task.set_memory_format(
            settings.channels_last, (self.accelerator.process_index, self.accelerator.num_processes)
        )
        if settings.gradient_checkpointing:
            self.task.unet.enable_gradient_checkpointing()
        self.ema = EMA(self.task, settings.ema) if settings.ema.enabled else None
        self.optimizer = build_optimizer(self.task, settings.optimizer)
        self.lr = LearningRate(settings.schedule, self.steps, self.steps / self.epoch_steps)

        self.directory = Path(settings.output_dir)
        if self.accelerator.is_main_process:
            self.directory = open_run(self.config)
        self.accelerator.wait_for_everyone()
        self.progress = self._resume() if settings.resume else Progress(validated=0)
        self.replanned = self.progress.plan(self.steps)
        if self.init_report is not None:
            self.progress.init_from = self.init_report.summary()
        self.prepared_optimizer: Any = self.accelerator.prepare_optimizer(self.optimizer, device_placement=False)
        if self.accelerator.scaler is not None and self.progress.scaler:
            self.accelerator.scaler.load_state_dict(self.progress.scaler)
        self._wrap()

    def _initialize(self) -> InitReport | None:
        """Initial weights of a new run, before the task knows its process: the same on all of them."""
        settings, report = self.config.training, None
        checkpoint = checkpoints.newest(Path(settings.output_dir)) if settings.resume else None
        if checkpoint is not None:
            checkpoints.require_length(checkpoint, self.steps)
            return None
        if settings.init_from is not None:
            report = initialize(self.task, settings.init_from)
        calibrate(self.task, self.data.train, CALIBRATION_IMAGES, settings.eval_batch_size)
        return report

    # ------------------------------------------------------------------ the loop

    def run(self, stop: StopRequest) -> None:
        """Train to the last step, with validation, previews and checkpoints on the way."""
        config, settings, progress = self.config, self.config.training, self.progress
        self._start_logging()
        meter = LossMeter()
        metrics: dict[str, Any] = {}
        if self.has_pending_validation():
            metrics = self._validate()
            self._checkpoint()
        batches = self.data.batches(settings, progress.step, self.steps, self.lr.strong_until, self.accelerator)
        while progress.step < self.steps:
            start = time.perf_counter()
            self._freeze()
            lr = self.lr.set(self.optimizer, progress.step)
            self.task.set_progress(progress.step / self.steps)
            comparison = self._gradient_comparison()
            losses, data_wait, names = optimizer_step(
                self.model,
                self.prepared_optimizer,
                batches,
                progress.step,
                settings,
                self.accelerator,
                self.layers,
                comparison,
            )
            progress.step += 1
            progress.images += settings.batch_size
            if comparison is not None:
                self._log_gradients(comparison)
            finite, stopped = self._sync_flags(losses["loss"], stop)
            if finite:
                progress.nonfinite = 0
                if self.ema is not None:
                    self.ema.update(self.task, progress.images, settings.batch_size)
                meter.add(losses, settings.batch_size)
            else:
                skip_nonfinite(losses, names, progress, MAX_NONFINITE_STEPS, self.directory, self.logger)
            seconds = time.perf_counter() - start
            meter.add_time(seconds, data_wait)
            progress.minutes += seconds / 60
            progress.train_minutes += seconds / 60
            is_last = progress.step == self.steps
            if progress.step % settings.log_every == 0 or is_last:
                self._log(meter, lr)
                meter = LossMeter()
            if self._is_validation_step():
                metrics = self._validate()
            if progress.step % settings.checkpoint_every == 0 or is_last or stopped:
                self._checkpoint()
            if stopped:
                number = stop.number or 15
                raise TrainingStopped(f"Stopped by signal {number}. {resume_hint(self.directory)}", 128 + number)
        if self.accelerator.is_main_process:
            extra = {"class_weights": self.class_weights, "command": self.command}
            write_summary(self.directory, config, progress, self.task, self.accelerator, metrics, extra)
        self.accelerator.wait_for_everyone()

    def _is_validation_step(self) -> bool:
        return self.progress.step % self.config.training.validate_every == 0 or self.progress.step == self.steps

    def has_pending_validation(self) -> bool:
        """Whether the checkpoint that is resumed was written because its validation failed."""
        progress = self.progress
        return progress.step > 0 and self._is_validation_step() and progress.validated not in (None, progress.step)

    def _sync_flags(self, loss: Tensor, stop: StopRequest) -> tuple[bool, bool]:
        """Whether this step was finite, and whether any process received a stop signal."""
        stopped = stop.number is not None
        if self.accelerator.num_processes > 1:
            flag = torch.tensor(float(stopped), device=self.accelerator.device)
            stopped = bool(self.accelerator.reduce(flag, reduction="sum") > 0)
        return bool(torch.isfinite(loss)), stopped

    # ------------------------------------------------------------------ logging, validation, checkpoints

    def _start_logging(self) -> None:
        if not self.accelerator.is_main_process:
            return
        self.logger = RunLogger(self.directory, self.progress.step, self.steps)
        sizes, epochs = (len(self.data.train), len(self.data.val)), self.steps / self.epoch_steps
        self.logger.info(headline(self.config, self.progress, self.task, self.accelerator, sizes, self.steps, epochs))
        if self.replanned is not None:
            self.logger.info(self.replanned)
        if self.init_report is not None:
            self.logger.info(str(self.init_report))
        if self.class_weights is not None:
            self.logger.info(describe(self.class_weights))

    def _log(self, meter: LossMeter, lr: float) -> None:
        progress = self.progress
        losses = meter.means(self.accelerator)
        if self.logger is None:
            return
        speed, wait = meter.images_per_second(), meter.data_wait()
        metrics = {"images": progress.images, "minutes": progress.minutes, **losses, "lr": lr}
        metrics |= {"images_per_second": speed, "data_wait": wait}
        self.logger.log_metrics("train", progress.step, metrics)
        postfix = {"loss": f"{losses.get('loss', math.nan):.4f}", "lr": f"{lr:.2e}"}
        self.logger.update_bar(progress.step, postfix | {"img/s": f"{speed:.0f}", "wait": f"{wait:.0%}"})

    def _gradient_comparison(self) -> GradientComparison | None:
        """A hook that compares the losses' gradients in the next step, if `joint.log_gradients` is due."""
        every = self.config.joint.log_gradients
        if self.config.task != "joint" or not every or (self.progress.step + 1) % every:
            return None
        return GradientComparison(self.task.unet, self.accelerator)

    def _log_gradients(self, comparison: GradientComparison) -> None:
        metrics = comparison.metrics()
        if self.logger is not None:
            self.logger.log_metrics("gradients", self.progress.step, {"images": self.progress.images, **metrics})

    def _validate(self) -> dict[str, Any]:
        """Validate the EMA weights (the trained ones without an EMA); a failure writes a checkpoint first."""
        start = time.perf_counter()
        batch_size = self.config.training.eval_batch_size
        try:
            metrics = run_validation(
                self.eval_model, self.data.val, batch_size, self.progress, self.directory, self.logger, self.accelerator
            )
        except Exception:
            if self.logger is not None:
                self._save()
                self.logger.info(f"step {self.progress.step}: validation failed. {resume_hint(self.directory)}")
            raise
        self.progress.validated = self.progress.step
        self.progress.minutes += (time.perf_counter() - start) / 60
        return metrics

    def _checkpoint(self) -> None:
        if self.logger is not None:
            self._save()
            checkpoints.export(self.directory, "latest", self.eval_model)
        self.accelerator.wait_for_everyone()

    def _save(self) -> None:
        if self.accelerator.scaler is not None:
            self.progress.scaler = self.accelerator.scaler.state_dict()
        ema = None if self.ema is None else self.ema.task
        keep = self.config.training.keep_checkpoints
        checkpoints.save(self.directory, self.progress, self.task, ema, self.optimizer, keep)

    def close(self) -> None:
        """Close the progress bar and the trackers."""
        if self.logger is not None:
            self.logger.close()

    # ------------------------------------------------------------------ parts

    @property
    def eval_model(self) -> Task:
        """The weights that are evaluated and exported: the EMA's, or the trained ones without an EMA."""
        return self.task if self.ema is None else self.ema.task

    def _resume(self) -> Progress:
        if self.accelerator.is_main_process:
            checkpoints.restore_swapped(self.directory / "best")
            checkpoints.restore_swapped(self.directory / "latest")
        self.accelerator.wait_for_everyone()
        checkpoint = checkpoints.newest(self.directory)
        if checkpoint is None:
            return Progress(validated=0)
        return checkpoints.load(checkpoint, self.task, None if self.ema is None else self.ema.task, self.optimizer)

    def _freeze(self) -> None:
        """Freeze the encoder during the first `training.freeze_encoder` of the run, and unfreeze it after."""
        until = round(self.config.training.freeze_encoder * self.steps)
        if (self.progress.step < until) != self.frozen:
            self._wrap()

    def _wrap(self) -> None:
        """(Re)wrap the task for the processes, which fixes the parameters that take gradients."""
        until = round(self.config.training.freeze_encoder * self.steps)
        self.frozen = self.progress.step < until
        if until or self.config.training.frozen_levels:
            self.task.unet.freeze_encoder(self.frozen, self.config.training.frozen_levels)
        self.model = self.accelerator.prepare_model(self.task, device_placement=False)
        if self.config.training.compile:
            self.model = torch.compile(self.model)
