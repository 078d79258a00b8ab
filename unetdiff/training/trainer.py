"""The one loop. A task says what a batch costs and how it is judged; everything else of a run is here.

One iteration of the loop is one optimizer step. Its learning rate, its images, their augmentation and every random
number are functions of (seed, step), so a run that was killed and resumed ends with the weights of one that was not.
"""

from __future__ import annotations

import errno
import json
import math
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import gather_object
from safetensors import SafetensorError
from torch import Tensor
from torch.utils.data import DataLoader

from unetdiff.config.schema import RunConfig
from unetdiff.config.validation.run import validate
from unetdiff.data.base import collate
from unetdiff.data.build import build_dataset
from unetdiff.data.check import require_clean
from unetdiff.data.loaders import eval_loader
from unetdiff.data.repeat_factors import repeat_factors
from unetdiff.data.sampling import StepSampler
from unetdiff.data.stats import class_presence
from unetdiff.errors import TrainingStopped
from unetdiff.kernels.accelerate import accelerate_training_
from unetdiff.training import checkpoints
from unetdiff.training import runtime as machine
from unetdiff.training.calibration import CALIBRATION_IMAGES, calibrate
from unetdiff.training.checkpoints import Progress
from unetdiff.training.class_weights import provenance, sentence, with_numbers
from unetdiff.training.conditions import needs_layout
from unetdiff.training.ema import EMA
from unetdiff.training.gradients import GradientComparison
from unetdiff.training.init_from import Start, start_from
from unetdiff.training.logger import RunLogger, Window
from unetdiff.training.optimizer import LearningRate, build_optimizer
from unetdiff.training.peak import forget_peak
from unetdiff.training.rundir import open_run
from unetdiff.training.signals import StopRequest, leave_to_main, stop_on_signals
from unetdiff.training.step import optimizer_step
from unetdiff.training.summary import headline, write_summary
from unetdiff.training.tasks.base import Batch, Task
from unetdiff.training.tasks.build import build_task

MAX_NONFINITE_STEPS = 5
"""Non-finite losses in a row that stop the run."""


def train(config: RunConfig, command: str | None = None) -> Path:
    """Train what a config says; returns the run directory (see docs/runs.md for what is in it).

    Args:
        config: the whole run.
        command: the command line, for summary.json.

    Raises:
        UserError: a config, data set or run directory that cannot be used; nothing was trained.
        TrainingStopped: ended early by a signal, a full disk or non-finite losses; the message says how to go on.
    """
    validate(config)
    trainer = Trainer(config, command)
    try:
        with stop_on_signals() as stop:
            trainer.run(stop)
    except (OSError, SafetensorError) as error:
        if getattr(error, "errno", None) == errno.ENOSPC or "No space left" in str(error):
            raise TrainingStopped(f"the disk is full ({error}). {trainer.how_to_go_on()}") from error
        raise
    finally:
        trainer.close()
    return trainer.directory


class Trainer:
    """A run's state: data, task, average, optimizer, progress."""

    def __init__(self, config: RunConfig, command: str | None) -> None:
        self.command = command
        settings = config.training
        self.accelerator = machine.build_accelerator(settings)
        forget_peak(self.accelerator.device)
        self.records: RunLogger | None = None
        masks, layout = config.task != "diffusion", needs_layout(config)
        if self.accelerator.is_main_process:
            require_clean(config.data, masks=masks or layout)
        self.accelerator.wait_for_everyone()
        self.data = build_dataset(config.data, "train", masks, layout)
        self.val = build_dataset(config.data, "val", masks, layout)
        self.factors = None
        if masks and config.data.repeat_factor_threshold:
            self.factors = repeat_factors(class_presence(self.data), config.data.repeat_factor_threshold)
        asked, config = config, with_numbers(config, self.data, self.accelerator)
        self.config, self.class_weights = config, provenance(asked, config, self.data.classes)
        self.epoch_steps = len(self.data) / settings.batch_size
        self.steps = settings.steps or max(1, round((settings.epochs or 1) * self.epoch_steps))

        torch.manual_seed(settings.seed)
        self.task: Task = build_task(config, self.data, self.val).to(self.accelerator.device)
        whole = checkpoints.newest(Path(settings.output_dir)) if settings.resume else None
        if whole is not None:
            checkpoints.require_length(whole, self.steps)
        self.start: Start | None = None
        if whole is None:  # before the task knows its process: the same start on all of them
            if settings.init_from is not None:
                self.start = start_from(self.task, settings.init_from)
            calibrate(self.task, self.data, CALIBRATION_IMAGES, settings.eval_batch_size)
        accelerate_training_(self.task.unet)
        self.task.set_memory_format(
            settings.channels_last, (self.accelerator.process_index, self.accelerator.num_processes)
        )
        if settings.gradient_checkpointing:
            self.task.unet.enable_gradient_checkpointing()
        self.ema = EMA(self.task, settings.ema) if settings.ema.enabled else None
        self.optimizer = build_optimizer(self.task, settings.optimizer)
        self.rate = LearningRate(settings.schedule, self.steps, self.steps / self.epoch_steps)

        self.directory = Path(settings.output_dir)
        if self.accelerator.is_main_process:
            self.directory = open_run(config)
        self.accelerator.wait_for_everyone()
        self.progress = self._resumed() if settings.resume else Progress(validated=0)
        self.replanned = self.progress.plan(self.steps)
        if self.start is not None:
            self.progress.start = self.start.facts()
        self.prepared_optimizer: Any = self.accelerator.prepare_optimizer(self.optimizer, device_placement=False)
        if self.accelerator.scaler is not None and self.progress.scaler:
            self.accelerator.scaler.load_state_dict(self.progress.scaler)
        self._wrap()

    # ------------------------------------------------------------------ the loop

    def run(self, stop: StopRequest) -> None:
        """Train to the last step; validate, draw and checkpoint on the way."""
        config, settings, progress = self.config, self.config.training, self.progress
        if self.accelerator.is_main_process:
            sizes = len(self.data), len(self.val)
            self.records = RunLogger(self.directory, progress.step, self.steps)
            epochs = self.steps / self.epoch_steps
            self.records.say(headline(config, progress, self.task, self.accelerator, sizes, self.steps, epochs))
            if self.replanned is not None:
                self.records.say(self.replanned)
            if self.start is not None:
                self.records.say(self.start.sentence())
            if self.class_weights is not None:
                self.records.say(sentence(self.class_weights))
        window = Window()
        figures: dict[str, Any] = {}
        if self.has_pending_validation():
            figures = self._validate()
            self._checkpoint()
        batches = self._batches()
        while progress.step < self.steps:
            began = time.perf_counter()
            self._freeze()
            rate = self.rate.set(self.optimizer, progress.step)
            self.task.set_progress(progress.step / self.steps)
            comparison = self._comparison()
            losses, waited, names = optimizer_step(
                self.model, self.prepared_optimizer, batches, progress.step, settings, self.accelerator, comparison
            )
            progress.step += 1
            progress.images += settings.batch_size
            if comparison is not None:
                self._log_gradients(comparison)
            finite, stopped = self._agree(losses["loss"], stop)
            if finite:
                progress.nonfinite = 0
                if self.ema is not None:
                    self.ema.update(self.task, progress.images, settings.batch_size)
                window.add(losses, settings.batch_size)
            else:
                self._nonfinite(losses, names)
            window.spend(time.perf_counter() - began, waited)
            progress.minutes += (time.perf_counter() - began) / 60
            progress.train_minutes += (time.perf_counter() - began) / 60
            last = progress.step == self.steps
            if progress.step % settings.log_every == 0 or last:
                self._log(window, rate)
                window = Window()
            if self._validates():
                figures = self._validate()
            if progress.step % settings.checkpoint_every == 0 or last or stopped:
                self._checkpoint()
            if stopped:
                number = stop.number or 15
                raise TrainingStopped(f"stopped by signal {number}. {self.how_to_go_on()}", 128 + number)
        if self.accelerator.is_main_process:
            more = {
                "init_from": progress.start,
                "replanned": progress.replanned,
                "class_weights": self.class_weights,
                "command": self.command,
            }
            write_summary(self.directory, config, progress, self.task, self.accelerator, figures, more)
        self.accelerator.wait_for_everyone()

    def _validates(self) -> bool:
        """Whether this step is one after which the weights are judged."""
        return self.progress.step % self.config.training.validate_every == 0 or self.progress.step == self.steps

    def has_pending_validation(self) -> bool:
        """Whether the checkpoint that a run goes on from was written because its validation failed."""
        progress = self.progress
        return progress.step > 0 and self._validates() and progress.validated not in (None, progress.step)

    def _agree(self, loss: Tensor, stop: StopRequest) -> tuple[bool, bool]:
        """Whether this step was finite, and whether any process was asked to stop."""
        stopped = stop.number is not None
        if self.accelerator.num_processes > 1:
            flag = torch.tensor(float(stopped), device=self.accelerator.device)
            stopped = bool(self.accelerator.reduce(flag, reduction="sum") > 0)
        return bool(torch.isfinite(loss)), stopped

    def _nonfinite(self, losses: dict[str, Tensor], names: list[str]) -> None:
        progress = self.progress
        progress.nonfinite += 1
        progress.skipped += 1
        names = gather_object(names)  # of every process: any of them may have met it
        figures = {"losses": {name: float(value) for name, value in losses.items()}, "names": names}
        if self.records is not None:
            self.records.line("nonfinite", progress.step, {"in_a_row": progress.nonfinite, "names": names})
            self.records.say(f"step {progress.step}: the loss is not finite; skipped ({progress.nonfinite} in a row)")
        if progress.nonfinite < MAX_NONFINITE_STEPS:
            return
        path = self.directory / "nonfinite.json"
        if self.accelerator.is_main_process:
            path.write_text(json.dumps({"step": progress.step, **figures}, indent=1))
        raise TrainingStopped(
            f"{progress.nonfinite} non-finite losses in a row at step {progress.step}; the last batch's files "
            f"are named in {path}. Lower training.optimizer.lr, or look at those files. {self.how_to_go_on()}"
        )

    # ------------------------------------------------------------------ what happens now and then

    def _log(self, window: Window, rate: float) -> None:
        progress = self.progress
        losses = window.means()
        if self.accelerator.num_processes > 1 and losses:
            values = torch.tensor(list(losses.values()), device=self.accelerator.device)
            values = self.accelerator.reduce(values, reduction="mean")  # type: ignore[assignment]
            losses = dict(zip(losses, values.tolist(), strict=True))
        if self.records is None:
            return
        speed, wait = window.images_per_second(), window.data_wait()
        figures = {"images": progress.images, "minutes": progress.minutes, **losses, "lr": rate}
        figures |= {"images_per_second": speed, "data_wait": wait}
        self.records.line("train", progress.step, figures)
        shown = {"loss": f"{losses.get('loss', math.nan):.4f}", "lr": f"{rate:.2e}"}
        self.records.advance(progress.step, shown | {"img/s": f"{speed:.0f}", "wait": f"{wait:.0%}"})

    def _comparison(self) -> GradientComparison | None:
        """What looks at the next step's gradients, where the config asks for it."""
        every = self.config.joint.log_gradients
        if self.config.task != "joint" or not every or (self.progress.step + 1) % every:
            return None
        return GradientComparison(self.task.unet, self.accelerator)

    def _log_gradients(self, comparison: GradientComparison) -> None:
        figures = comparison.figures()
        if self.records is not None:
            self.records.line("gradients", self.progress.step, {"images": self.progress.images, **figures})

    def _validate(self) -> dict[str, Any]:
        """Judge the averaged weights (or the weights), keep them if they are the best, and draw; where that fails,
        what was trained is kept."""
        began = time.perf_counter()
        try:
            figures = self._judge()
            self.progress.validated = self.progress.step
            self.progress.minutes += (time.perf_counter() - began) / 60
            return figures
        except Exception:
            if self.records is not None:
                self._save()
                self.records.say(f"step {self.progress.step}: the validation failed. {self.how_to_go_on()}")
            raise

    def _judge(self) -> dict[str, Any]:
        task, progress = self.eval_model, self.progress
        rank, world = self.accelerator.process_index, self.accelerator.num_processes
        loader = eval_loader(self.val, self.config.training.eval_batch_size, rank, world)
        figures = task.evaluate(loader, self.accelerator)
        if self.records is not None:
            images, more = task.preview(self.accelerator)
            figures |= more
            spent = {"minutes": progress.minutes, "train_minutes": progress.train_minutes}
            entry = {"images": progress.images, **spent, **figures}
            self.records.line("validation", progress.step, entry)
            self.records.save_images(progress.step, images)
        name, direction = task.best
        value = figures[name]
        better = progress.best is None or (value > progress.best if direction == "max" else value < progress.best)
        if better and math.isfinite(value):
            progress.best, progress.best_step = value, progress.step
            if self.records is not None:
                checkpoints.export(self.directory, "best", task)
        if self.records is not None:
            star = " (best)" if progress.best_step == progress.step else ""
            self.records.say(f"step {progress.step}: {name} {value:.4f}{star}")
        self.accelerator.wait_for_everyone()
        return figures

    def _checkpoint(self) -> None:
        if self.records is not None:
            self._save()
            checkpoints.export(self.directory, "latest", self.eval_model)
        self.accelerator.wait_for_everyone()

    def _save(self) -> None:
        if self.accelerator.scaler is not None:
            self.progress.scaler = self.accelerator.scaler.state_dict()
        average = None if self.ema is None else self.ema.task
        keep = self.config.training.keep_checkpoints
        checkpoints.save(self.directory, self.progress, self.task, average, self.optimizer, keep)

    def how_to_go_on(self) -> str:
        """One sentence: which checkpoint is whole, and how to resume."""
        whole = checkpoints.newest(self.directory)
        if whole is None:
            return "No checkpoint was written yet; start again with --resume."
        return f"The last whole checkpoint is {whole}; go on with --resume."

    def close(self) -> None:
        """End the progress bar, the trackers, and what joins the processes (left open, gloo may abort at exit)."""
        if self.records is not None:
            self.records.close()
        self.accelerator.end_training()

    # ------------------------------------------------------------------ parts

    @property
    def eval_model(self) -> Task:
        """The weights that are judged and exported: the average, or the weights themselves without one."""
        return self.task if self.ema is None else self.ema.task

    def _resumed(self) -> Progress:
        for name in ("best", "latest"):
            if self.accelerator.is_main_process:
                checkpoints.restore_swapped(self.directory / name)
        self.accelerator.wait_for_everyone()
        whole = checkpoints.newest(self.directory)
        if whole is None:
            return Progress(validated=0)
        return checkpoints.load(whole, self.task, None if self.ema is None else self.ema.task, self.optimizer)

    def _batches(self) -> Iterator[Batch]:
        settings = self.config.training
        sampler = StepSampler(
            len(self.data),
            settings.batch_size,
            settings.seed,
            start=self.progress.step,
            stop=self.steps,
            rank=self.accelerator.process_index,
            world_size=self.accelerator.num_processes,
            accumulation_steps=settings.gradient_accumulation_steps,
            strong_until=self.rate.strong_until,
            factors=self.factors,
        )
        return iter(
            DataLoader(
                self.data,
                batch_sampler=sampler,
                collate_fn=collate,
                num_workers=settings.num_workers,
                worker_init_fn=leave_to_main,
                pin_memory=self.accelerator.device.type == "cuda",
            )
        )

    def _freeze(self) -> None:
        """Freeze the encoder in the run's first share, and let it learn after."""
        until = round(self.config.training.freeze_encoder * self.steps)
        frozen = self.progress.step < until
        if frozen != self.frozen:
            self._wrap()

    def _wrap(self) -> None:
        """(Re)wrap the task for the processes; which parameters take gradients is fixed from here on."""
        until = round(self.config.training.freeze_encoder * self.steps)
        self.frozen = self.progress.step < until
        if until or self.config.training.frozen_levels:
            self.task.unet.freeze_encoder(self.frozen, self.config.training.frozen_levels)
        self.model = self.accelerator.prepare_model(self.task, device_placement=False)
        if self.config.training.compile:
            self.model = torch.compile(self.model)
