"""The training loop, one for all tasks: a task defines the loss of a batch and its evaluation, the rest is here.

One iteration of the loop is one optimizer step. Its learning rate, images, augmentation and random numbers are
functions of (seed, step), so a run that was killed and resumed ends with the weights of an uninterrupted one.
"""

from __future__ import annotations

import time
from contextlib import suppress
from dataclasses import asdict
from fractions import Fraction
from pathlib import Path
from typing import Any

import torch

from unetdiff.config.intervals import make_interval
from unetdiff.config.pretrained import KEY as PRETRAINED
from unetdiff.config.pretrained import follow_pretrained
from unetdiff.config.schema import RunConfig, flatten
from unetdiff.config.validation.run import validate
from unetdiff.config.validation.training import BEST_METRICS
from unetdiff.data.custom import MapDataset
from unetdiff.errors import TrainingStopped
from unetdiff.files.records import jsonable
from unetdiff.kernels.accelerate import accelerate_training_
from unetdiff.training import agreement, checkpoints, lora, rundir, runtime
from unetdiff.training.calibration import CALIBRATION_IMAGES, calibrate
from unetdiff.training.checkpoints import resume_hint
from unetdiff.training.class_weights import class_weights_source, describe, resolve_class_weights
from unetdiff.training.ema import EMA
from unetdiff.training.failure import end_run
from unetdiff.training.gradients import GradientComparison
from unetdiff.training.init_from import InitReport, initialize
from unetdiff.training.logger import RunLogger, log_losses
from unetdiff.training.nonfinite import skip_nonfinite
from unetdiff.training.optimizer import LearningRate, build_optimizer
from unetdiff.training.peak import reset_peak
from unetdiff.training.pixel_statistics import follow_source, resolve_pixel_statistics
from unetdiff.training.pretrained import pretrained_directory
from unetdiff.training.progress import Progress
from unetdiff.training.run_card import write_run_card
from unetdiff.training.run_data import GivenData, RunData, given_data, require_open_files
from unetdiff.training.saver import Saver
from unetdiff.training.signals import StopRequest, any_stopped, signal_name, stop_on_signals
from unetdiff.training.step import optimizer_step
from unetdiff.training.step_layers import StepLayers, require_batch_norm_images
from unetdiff.training.summary import early_stop, headline, write_summary
from unetdiff.training.sums import require_sums
from unetdiff.training.tasks.base import Task
from unetdiff.training.tasks.build import build_task
from unetdiff.training.trackers import require_trackers
from unetdiff.training.validation import run_validation

MAX_NONFINITE_STEPS = 5
"""Non-finite losses in a row that stop the run."""


def train(
    config: RunConfig,
    train_data: MapDataset | None = None,
    val_data: MapDataset | None = None,
    command: str | None = None,
) -> Path:
    """Train as configured; returns the run directory (docs/runs.md lists its files).

    Args:
        config: the whole run.
        train_data: map-style dataset of dicts, as of `unetdiff.data.custom.CustomDataset`, instead of what `data.name`
            and `data.root` say; None: those.
        val_data: of validation, likewise; both or none.
        command: the command line, for summary.json.

    Raises:
        UserError: an invalid config, dataset or run directory; nothing was trained.
        TrainingStopped: ended early by a signal, a full disk or non-finite losses; the message says how to resume.
    """
    config = follow_pretrained(config)
    data = given_data(config, train_data, val_data)
    validate(config)
    run, trainer, stop = Path(config.training.output_dir), None, StopRequest()
    try:
        trainer = Trainer(config, command, data)
        with stop_on_signals() as stop:
            trainer.run(stop)
        trainer.close()
    except TrainingStopped:
        raise
    except KeyboardInterrupt:
        number = stop.number or 2
        raise TrainingStopped(f"Stopped by {signal_name(number)}. {resume_hint(run)}", 128 + number) from None
    except Exception as error:
        end_run(error, run, None if trainer is None else trainer.saver)
    finally:
        if trainer is not None:
            with suppress(Exception):  # what ended the run is reported instead
                trainer.close()
    return run


class Trainer:
    """The state of a run: datasets, task, EMA, optimizer, progress."""

    def __init__(self, config: RunConfig, command: str | None, data: GivenData | None = None) -> None:
        self.given_data = data
        self.command, self.directory = command, Path(config.training.output_dir)
        self.logger: RunLogger | None = None
        self.claim = rundir.Claim(self.directory)
        try:
            self._build(config)
        except BaseException:
            self.claim.close()
            raise

    def _build(self, config: RunConfig) -> None:
        settings = config.training
        self.accelerator = runtime.build_accelerator(settings)
        require_sums(config, self.accelerator.num_processes)
        reset_peak(self.accelerator.device)
        require_open_files(settings.num_workers)
        require_trackers(settings.log_with)
        if self.accelerator.is_main_process:
            self.claim.check(config)
        config = rundir.with_saved_values(config, self.directory)
        self.data = RunData(follow_source(config), self.accelerator, self.given_data)
        self.config = resolve_class_weights(self.data.config, self.data.train, self.accelerator)
        self.config = resolve_pixel_statistics(self.config, self.data.train, self.accelerator)
        self.class_weights = class_weights_source(config, self.config, self.data.train.classes)
        self.epoch_steps = len(self.data.train) / settings.batch_size
        self.steps = settings.steps or max(1, round((settings.epochs or 1) * self.epoch_steps))
        epoch = Fraction(len(self.data.train), settings.batch_size)
        self.validations = make_interval(settings.validate_every, self.steps, epoch)
        self.checkpoints = make_interval(settings.checkpoint_every, self.steps, epoch)

        torch.manual_seed(settings.seed)
        self.task: Task = build_task(self.config, self.data.train, self.data.val).to(self.accelerator.device)
        if settings.best_metric is not None:
            self.task.best_metric = settings.best_metric, BEST_METRICS[settings.best_metric]
        self.init_report = self._initialize()
        require_batch_norm_images(self.task.unet, settings, self.accelerator.num_processes, self.data.train)
        if settings.lora.rank is not None:
            lora.inject(self.task.unet, settings.lora, settings.seed)
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

        if self.accelerator.is_main_process:
            self.claim.prepare(self.config)
        self.accelerator.wait_for_everyone()
        self.progress = self._resume() if settings.resume else Progress()
        self.progress.identity = agreement.identity_of(self.task, self.data.train)
        self.replanned = self.progress.plan(self.steps)
        if self.init_report is not None:
            self.progress.init_from = self.init_report.summary()
        self.prepared_optimizer: Any = self.accelerator.prepare_optimizer(self.optimizer, device_placement=False)
        if self.accelerator.scaler is not None and self.progress.scaler:
            self.accelerator.scaler.load_state_dict(self.progress.scaler)
        ema = None if self.ema is None else self.ema.task
        self.saver = Saver(
            self.directory, self.progress, self.task, ema, self.optimizer, settings, self.accelerator, self.layers
        )
        self.latents = self.data.cache_latents(self.config, self.task, self.steps, self.accelerator)
        self._wrap()

    def _initialize(self) -> InitReport | None:
        """Initial weights of a new run, before the task knows its process: the same on all of them."""
        settings, report = self.config.training, None
        checkpoint = checkpoints.newest(self.directory) if settings.resume else None
        if checkpoint is not None:
            agreement.require_length(checkpoint, self.steps)
            if settings.lora.rank is None:
                return None
        if (directory := pretrained_directory(self.config)) is not None:
            report = initialize(self.task, directory, PRETRAINED)
        elif settings.init_from is not None:
            report = initialize(self.task, settings.init_from)
        if report is not None and report.widened:
            lora.require_trained_input(settings.lora, report.widened)
        if checkpoint is not None:  # it has the adapter alone
            return None
        calibrate(self.task, self.data.train, CALIBRATION_IMAGES, settings.eval_batch_size)
        return report

    # ------------------------------------------------------------------ the loop

    def run(self, stop: StopRequest) -> None:
        """Train to the last step, with validation, previews and checkpoints on the way."""
        config, settings, progress = self.config, self.config.training, self.progress
        self._start_logging()
        meter = self.saver.meter
        metrics: dict[str, Any] = {}
        if self.has_pending_validation():
            metrics = self._validate()
        batches = self.data.batches(settings, progress.step, self.steps, self.lr.strong_until, self.accelerator)
        while progress.step < self.steps and not self._stops_early():
            start = time.perf_counter()
            self._freeze()
            lr = self.lr.set(self.optimizer, progress.step)
            self.task.set_progress(progress.step / self.steps)
            comparison = self._gradient_comparison()
            with self.saver.step():
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
            finite, stopped = bool(torch.isfinite(losses["loss"])), any_stopped(stop, self.accelerator)
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
            if self.logger is not None:
                self.logger.show_step(progress.step, meter, lr)
            is_last = progress.step == self.steps
            if progress.step % settings.log_every == 0 or is_last:
                log_losses(self.logger, meter, lr, self.accelerator)
                meter.reset()
            is_validation = self._is_validation_step()
            if is_validation or self.checkpoints.is_due(progress.step) or stopped:
                self.saver.checkpoint(required=is_last or stopped)  # before the validation, which may fail
            if is_validation and not stopped:
                metrics = self._validate()
                stopped = any_stopped(stop, self.accelerator) and not is_last
            if stopped:
                number = stop.number or 15
                raise TrainingStopped(f"Stopped by {signal_name(number)}. {resume_hint(self.directory)}", 128 + number)
        if self.logger is not None and progress.step < self.steps:
            self.logger.info(early_stop(progress, self.task, self.steps))
        if self.accelerator.is_main_process:
            extra = {"class_weights": self.class_weights, "command": self.command}
            # its card had no validation when it was exported; before the summary, which ends the run
            write_run_card(self.directory / "latest", self.directory)
            write_summary(self.directory, config, progress, self.task, self.accelerator, metrics, extra)
        self.accelerator.wait_for_everyone()

    def _is_validation_step(self) -> bool:
        return self.validations.is_due(self.progress.step) or self.progress.step == self.steps

    def _stops_early(self) -> bool:
        """Whether the last validations were not better than the best one (`training.early_stopping_patience`)."""
        patience = self.config.training.early_stopping_patience
        return patience is not None and self.progress.stale >= patience

    def has_pending_validation(self) -> bool:
        """Whether the checkpoint that is resumed was written before its validation was done."""
        progress = self.progress
        return progress.step > 0 and self._is_validation_step() and progress.validated != progress.step

    # ------------------------------------------------------------------ logging, validation, checkpoints

    def _start_logging(self) -> None:
        if not self.accelerator.is_main_process:
            return
        keys = {key: jsonable(value) for key, value in flatten(asdict(self.config)).items()}
        trackers = self.config.training.log_with
        self.logger = RunLogger(self.directory, self.progress, self.steps, trackers, keys)
        sizes, epochs = (len(self.data.train), len(self.data.val)), self.steps / self.epoch_steps
        self.logger.info(headline(self.config, self.progress, self.task, self.accelerator, sizes, self.steps, epochs))
        if self.config.training.resume and not self.progress.step:
            self.logger.info(f"{self.directory}: no checkpoint to resume; training starts at step 0")
        weights = None if self.class_weights is None else describe(self.class_weights)
        for line in (self.replanned, self.init_report, weights, self.latents):
            if line is not None:
                self.logger.info(str(line))

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
        """Validate the EMA weights (the trained ones without an EMA), whose checkpoint is already written."""
        start = time.perf_counter()
        batch_size = self.config.training.eval_batch_size
        metrics = run_validation(
            self.eval_model,
            self.data.loaded_val,
            batch_size,
            self.progress,
            self.directory,
            self.logger,
            self.accelerator,
        )
        self.progress.validated = self.progress.step
        self.progress.minutes += (time.perf_counter() - start) / 60
        self.saver.update_state()
        return metrics

    def close(self) -> None:
        """Close the progress bar and the trackers, and release the run directory."""
        logger, self.logger = self.logger, None
        try:
            if logger is not None:
                logger.close()
        finally:
            self.claim.close()

    # ------------------------------------------------------------------ parts

    @property
    def eval_model(self) -> Task:
        """The weights that are evaluated and exported: the EMA's, or the trained ones without an EMA."""
        return self.task if self.ema is None else self.ema.task

    def _resume(self) -> Progress:
        checkpoint = checkpoints.newest(self.directory)
        if checkpoint is None:
            return Progress()
        agreement.require_same_identity(checkpoint, self.task, self.data.train)
        progress = checkpoints.load(checkpoint, self.task, None if self.ema is None else self.ema.task, self.optimizer)
        agreement.require_images(checkpoint, progress, self.config.training.batch_size)
        if self.accelerator.is_main_process:
            checkpoints.prune(self.directory, self.config.training.keep_checkpoints)
            if not checkpoints.is_exported(self.directory, "latest", self.eval_model):
                checkpoints.export(self.directory, "latest", self.eval_model)
        self.accelerator.wait_for_everyone()
        return progress

    def _freeze(self) -> None:
        """Freeze the encoder during the first `training.freeze_encoder` of the run, and unfreeze it after."""
        until = round(self.config.training.freeze_encoder * self.steps)
        if (self.progress.step < until) != self.frozen:
            self._wrap()

    def _wrap(self) -> None:
        """(Re)wrap the task for the processes, which fixes the parameters that take gradients."""
        until = round(self.config.training.freeze_encoder * self.steps)
        self.frozen = self.progress.step < until
        if self.config.training.freeze_backbone:
            self.task.unet.freeze_backbone()
        elif until or self.config.training.frozen_levels:
            self.task.unet.freeze_encoder(self.frozen, self.config.training.frozen_levels)
        self.model = self.accelerator.prepare_model(self.task, device_placement=False)
        if self.config.training.compile:
            self.model = torch.compile(self.model)
