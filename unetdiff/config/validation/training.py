"""What the `training:` section may not say."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING

from unetdiff.config.validation.config_error import at_least, config_error, share

if TYPE_CHECKING:
    from unetdiff.config.parsing import RunConfig


def validate_length(config: RunConfig) -> None:
    given = config.training
    if given.steps is None and given.epochs is None:
        raise config_error("training.steps", None, "and training.epochs null give no length", "set one of the two")
    if given.steps is not None and given.epochs is not None:
        raise config_error(
            "training.steps",
            given.steps,
            f"and training.epochs {given.epochs!r} both give the length",
            "set one of the two to null",
        )
    if given.steps is not None:
        at_least("training.steps", given.steps, 1)
    if given.epochs is not None and not 0 < given.epochs < math.inf:
        raise config_error("training.epochs", given.epochs, "is no length", "give a positive number")


def validate_training(config: RunConfig) -> None:
    given = config.training
    if given.resume and given.overwrite:
        raise config_error(
            "training.resume", True, "and training.overwrite true contradict each other", "set one of the two"
        )
    if given.init_from is not None:
        _validate_init_from(config, given.init_from)
    for name in ("batch_size", "gradient_accumulation_steps", "eval_batch_size", "log_every", "validate_every"):
        at_least(f"training.{name}", getattr(given, name), 1)
    for name in ("checkpoint_every", "keep_checkpoints", "max_nonfinite"):
        at_least(f"training.{name}", getattr(given, name), 1)
    at_least("training.num_workers", given.num_workers, 0)
    if given.batch_size % given.gradient_accumulation_steps:
        divisors = [n for n in range(1, given.batch_size + 1) if given.batch_size % n == 0]
        near = min(divisors, key=lambda n: abs(n - given.gradient_accumulation_steps))
        raise config_error(
            "training.gradient_accumulation_steps",
            given.gradient_accumulation_steps,
            f"does not divide training.batch_size {given.batch_size}",
            f"nearest that does: {near}",
        )
    share("training.freeze_encoder", given.freeze_encoder)
    at_least("training.frozen_levels", given.frozen_levels, 0)
    for name in ("min_lr_ratio", "warmup_ratio", "warmup_lr_ratio", "no_aug_ratio"):
        share(f"training.schedule.{name}", getattr(given.schedule, name))
    share("training.ema.warmup_ratio", given.ema.warmup_ratio)
    at_least("training.ema.half_life_images", given.ema.half_life_images, 1)
    optimizer = given.optimizer
    for name, lr in (("lr", optimizer.lr), ("encoder_lr", optimizer.encoder_lr)):
        if lr is not None and not 0 < lr < math.inf:
            raise config_error(
                f"training.optimizer.{name}", lr, "is no learning rate", "give a positive number, e.g. 1e-3"
            )
    if len(optimizer.betas) != 2 or not all(0 <= beta < 1 for beta in optimizer.betas):
        raise config_error("training.optimizer.betas", optimizer.betas, "are not two decays", "e.g. [0.9, 0.999]")
    at_least("training.optimizer.weight_decay", optimizer.weight_decay, 0)
    at_least("training.optimizer.max_grad_norm", optimizer.max_grad_norm, 0)


def _validate_init_from(config: RunConfig, path: str) -> None:
    weights, run = config.model.encoder.weights, config.training.output_dir
    if weights is not None:
        right = f"set model.encoder.weights to null, or training.init_from (now {path!r})"
        raise config_error("model.encoder.weights", weights, "and training.init_from both say where to start", right)
    if Path(path).resolve().is_relative_to(Path(run).resolve()):
        right = "give another training.output_dir, or go on with --resume"
        raise config_error("training.init_from", path, f"lies in the run's own directory {run!r}", right)
