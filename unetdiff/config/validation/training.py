"""Constraints on the `training:` section."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from unetdiff.config.intervals import validate_interval
from unetdiff.config.schema import RunConfig
from unetdiff.config.training import WITH_BETAS, WITHOUT_WEIGHT_DECAY, OptimizerConfig
from unetdiff.errors import config_error, did_you_mean

SEGMENTATION_METRICS = (
    *("mean_iou", "fw_iou", "mean_dice", "mean_precision", "mean_recall", "mean_accuracy", "pixel_accuracy"),
)
BEST_METRICS: dict[str, Literal["max", "min"]] = {
    **{f"segmentation/{name}": "max" for name in SEGMENTATION_METRICS},
    "segmentation/loss": "min",
    "diffusion/loss": "min",
}
"""Validation metrics that may select the best weights -> their better direction."""


def validate_length(config: RunConfig) -> None:
    """Check that either steps or epochs give the length of the run."""
    steps, epochs = config.training.steps, config.training.epochs
    if steps is None and epochs is None:
        raise config_error("training.steps", None, "set if training.epochs is null", "Set one of the two.")
    if steps is not None and epochs is not None:
        constraint = f"null with training.epochs={epochs}"
        raise config_error("training.steps", steps, constraint, "Set one of the two to null.")


def validate_training(config: RunConfig) -> None:
    """Check start, batch sizes and validation."""
    training = config.training
    validate_interval("training.validate_every", training.validate_every)
    validate_interval("training.checkpoint_every", training.checkpoint_every)
    _validate_optimizer(training.optimizer)
    if training.best_metric is not None:
        _validate_best_metric(config, training.best_metric)
    if training.resume and training.overwrite:
        raise config_error("training.resume", True, "false with training.overwrite=true", "Choose one of the two.")
    if training.freeze_backbone:
        others = {"freeze_encoder": training.freeze_encoder, "frozen_levels": training.frozen_levels}
        for name, value in others.items():
            if value:
                constraint = "0 with training.freeze_backbone=true, which freezes all levels"
                raise config_error(f"training.{name}", value, constraint)
        if training.lora.rank is not None:
            constraint = f"false with training.lora.rank={training.lora.rank}, which freezes the backbone itself"
            raise config_error("training.freeze_backbone", True, constraint)
    _require_weights_to_freeze(config)
    model = config.model
    if model.revision is not None and model.pretrained is None:
        raise config_error("model.revision", model.revision, "null without model.pretrained")
    if training.init_from is not None:
        _validate_init_from(config, training.init_from)
    batch, parts = training.batch_size, training.gradient_accumulation_steps
    if batch % parts:
        near = min((n for n in range(1, batch + 1) if batch % n == 0), key=lambda n: abs(n - parts))
        constraint = f"a divisor of training.batch_size={batch}"
        raise config_error("training.gradient_accumulation_steps", parts, constraint, f"The nearest is {near}.")


def _require_weights_to_freeze(config: RunConfig) -> None:
    """Check that what is frozen was trained before: random weights would stay random."""
    training = config.training
    if training.init_from or config.model.pretrained or config.model.encoder.weights:
        return
    without = "without model.pretrained, training.init_from or model.encoder.weights"
    if training.freeze_backbone:
        constraint = f"false {without}, as a backbone of random weights would stay random"
        raise config_error("training.freeze_backbone", True, constraint, "Give the network to freeze.")
    reasons = {"frozen_levels": "levels would stay random", "freeze_encoder": "the encoder would stay random"}
    for name, reason in reasons.items():
        if value := getattr(training, name):
            remedy = f"Give the weights to freeze, or training.{name}=0."
            raise config_error(f"training.{name}", value, f"0 {without}, as {reason}", remedy)


def _validate_optimizer(config: OptimizerConfig) -> None:
    key, name = "training.optimizer", config.name
    if name not in WITH_BETAS and config.betas != OptimizerConfig().betas:
        raise config_error(f"{key}.betas", config.betas, f"left out with {key}.name={name}, which has none")
    if name in WITHOUT_WEIGHT_DECAY and config.weight_decay:
        raise config_error(f"{key}.weight_decay", config.weight_decay, f"left out with {key}.name={name}")
    for own in ("lr", "betas", "weight_decay"):
        if own in config.args:
            raise config_error(f"{key}.args", config.args, f"without {own}", f"Set {key}.{own}.")


def _validate_best_metric(config: RunConfig, name: str) -> None:
    heads = ("segmentation", "diffusion") if config.task == "joint" else (config.task,)
    known = [metric for metric in BEST_METRICS if metric.startswith(heads)]
    if name not in known:
        constraint = f"one of {', '.join(known)}, or null"
        raise config_error("training.best_metric", name, constraint, did_you_mean(name, known))


def _validate_init_from(config: RunConfig, path: str) -> None:
    if config.model.pretrained is not None:
        constraint = f"null with model.pretrained={config.model.pretrained}, which sets all weights"
        raise config_error("training.init_from", path, constraint, "Set one of the two to null.")
    weights, run = config.model.encoder.weights, config.training.output_dir
    if weights is not None:
        constraint = f"null with training.init_from={path}, which sets the encoder's weights"
        raise config_error("model.encoder.weights", weights, constraint, "Set one of the two to null.")
    if Path(path).resolve().is_relative_to(Path(run).resolve()):
        constraint = f"outside of the run's own directory, training.output_dir={run}"
        raise config_error("training.init_from", path, constraint, "Use another output directory, or --resume.")
