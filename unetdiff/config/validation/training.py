"""Constraints on the `training:` section."""

from __future__ import annotations

from pathlib import Path

from unetdiff.config.schema import RunConfig
from unetdiff.config.training import OptimizerConfig
from unetdiff.config.validation.checks import require_at_least, require_fraction, require_positive
from unetdiff.errors import config_error


def validate_length(config: RunConfig) -> None:
    """Check that either steps or epochs give the length of the run."""
    steps, epochs = config.training.steps, config.training.epochs
    if steps is None and epochs is None:
        raise config_error("training.steps", None, "set if training.epochs is null", "Set one of the two.")
    if steps is not None and epochs is not None:
        constraint = f"null with training.epochs={epochs}"
        raise config_error("training.steps", steps, constraint, "Set one of the two to null.")
    if steps is not None:
        require_at_least("training.steps", steps, 1)
    if epochs is not None:
        require_positive("training.epochs", epochs)


def validate_training(config: RunConfig) -> None:
    """Check start, batch sizes, intervals, learning rate schedule and optimizer."""
    training = config.training
    if training.resume and training.overwrite:
        raise config_error("training.resume", True, "false with training.overwrite=true", "Choose one of the two.")
    if training.init_from is not None:
        _validate_init_from(config, training.init_from)
    for name in ("batch_size", "gradient_accumulation_steps", "eval_batch_size"):
        require_at_least(f"training.{name}", getattr(training, name), 1)
    for name in ("log_every", "validate_every", "checkpoint_every", "keep_checkpoints"):
        require_at_least(f"training.{name}", getattr(training, name), 1)
    require_at_least("training.num_workers", training.num_workers, 0)
    batch, parts = training.batch_size, training.gradient_accumulation_steps
    if batch % parts:
        near = min((n for n in range(1, batch + 1) if batch % n == 0), key=lambda n: abs(n - parts))
        constraint = f"a divisor of training.batch_size={batch}"
        raise config_error("training.gradient_accumulation_steps", parts, constraint, f"The nearest is {near}.")
    if training.batch_norm_images is not None:
        require_at_least("training.batch_norm_images", training.batch_norm_images, 1)
    require_fraction("training.freeze_encoder", training.freeze_encoder)
    require_at_least("training.frozen_levels", training.frozen_levels, 0)
    for name in ("min_lr_ratio", "warmup_ratio", "warmup_lr_ratio", "no_aug_ratio"):
        require_fraction(f"training.schedule.{name}", getattr(training.schedule, name))
    require_at_least("training.ema.half_life_images", training.ema.half_life_images, 1)
    _validate_optimizer(training.optimizer)


def _validate_optimizer(optimizer: OptimizerConfig) -> None:
    require_positive("training.optimizer.lr", optimizer.lr, "Give e.g. 1e-3.")
    if optimizer.encoder_lr is not None:
        require_positive("training.optimizer.encoder_lr", optimizer.encoder_lr, "Give e.g. 1e-4.")
    if len(optimizer.betas) != 2 or not all(0 <= beta < 1 for beta in optimizer.betas):
        raise config_error(
            "training.optimizer.betas", optimizer.betas, "two numbers in [0, 1)", "Give e.g. [0.9, 0.999]."
        )
    require_at_least("training.optimizer.weight_decay", optimizer.weight_decay, 0)
    require_at_least("training.optimizer.max_grad_norm", optimizer.max_grad_norm, 0)


def _validate_init_from(config: RunConfig, path: str) -> None:
    weights, run = config.model.encoder.weights, config.training.output_dir
    if weights is not None:
        constraint = f"null with training.init_from={path}, which sets the encoder's weights"
        raise config_error("model.encoder.weights", weights, constraint, "Set one of the two to null.")
    if Path(path).resolve().is_relative_to(Path(run).resolve()):
        constraint = f"outside of the run's own directory, training.output_dir={run}"
        raise config_error("training.init_from", path, constraint, "Use another output directory, or --resume.")
