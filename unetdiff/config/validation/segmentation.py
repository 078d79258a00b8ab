"""Constraints on the `segmentation:` section."""

from __future__ import annotations

from dataclasses import asdict

from unetdiff.config.schema import RunConfig
from unetdiff.config.validation.data import require_captions
from unetdiff.config.validation.diffusion import validate_noise
from unetdiff.errors import config_error, did_you_mean
from unetdiff.segmentation.config import LOSS_NAMES, SegmentationConfig


def validate_segmentation(config: RunConfig) -> None:
    """Check losses, class weights and noise of the segmentation head."""
    segmentation = config.segmentation
    _validate_losses(segmentation.losses)
    parts = config.training.gradient_accumulation_steps
    if "lovasz" in segmentation.losses and parts > 1:
        constraint = "1 with lovasz in segmentation.losses, which sorts the pixels of the whole batch"
        raise config_error("training.gradient_accumulation_steps", parts, constraint, "Or use dice instead of lovasz.")
    _validate_class_weights(config)
    _validate_cross_entropy(segmentation)
    if config.diffusion.noise.process == "edm":
        constraint = f"ddpm or flow with task={config.task}, whose segmentation head sees clean images at timestep 0"
        raise config_error("diffusion.noise.process", "edm", constraint)
    _validate_timestep(config)
    _validate_context(config)
    _validate_pseudo_labels(config)
    if segmentation.noise or segmentation.pseudo_labels is not None:
        validate_noise(config)


def _validate_pseudo_labels(config: RunConfig) -> None:
    given = config.segmentation.pseudo_labels
    if given is None:
        return
    key, value = "segmentation.pseudo_labels", asdict(given)
    if config.data.label_fraction == 1 and config.data.unlabelled_root is None:
        constraint = "null without images that have no masks"
        raise config_error(key, value, constraint, "Give data.label_fraction or data.unlabelled_root.")
    if config.model.encoder.padding == "valid":
        raise config_error(
            key, value, "null with model.encoder.padding=valid, whose logits are smaller than its images"
        )
    if config.segmentation.context == "caption":
        raise config_error(key, value, "null with segmentation.context=caption", "Use context=classes or none.")


def _validate_timestep(config: RunConfig) -> None:
    segmentation, count = config.segmentation, config.diffusion.noise.num_train_timesteps
    timestep, key = segmentation.timestep, "segmentation.timestep"
    if timestep and not (config.model.conditioning.timestep or config.task == "joint"):
        constraint = "0 without model.conditioning.timestep"
        raise config_error(key, timestep, constraint, "Set model.conditioning.timestep=true.")
    if timestep >= count:
        raise config_error(key, timestep, f"less than {count} (diffusion.noise.num_train_timesteps)")
    if segmentation.noised and not timestep:
        constraint = "false with segmentation.timestep=0, a clean image"
        raise config_error("segmentation.noised", True, constraint, "Give segmentation.timestep, e.g. 50.")
    if segmentation.noise and timestep:
        constraint = f"0 with {key}={timestep}: images of all timesteps, or of one"
        raise config_error("segmentation.noise", segmentation.noise, constraint)
    if segmentation.noised:
        validate_noise(config)


def _validate_context(config: RunConfig) -> None:
    context, conditioning, head = (
        config.segmentation.context,
        config.model.conditioning,
        config.model.heads.segmentation,
    )
    if context != "none" and conditioning.cross_attention_dim is None:
        constraint = "none without model.conditioning.cross_attention_dim, whose cross-attention reads it"
        raise config_error("segmentation.context", context, constraint)
    if context != "none" and config.model.encoder.padding == "valid":
        constraint = "none with model.encoder.padding=valid"
        raise config_error("segmentation.context", context, constraint, "Use padding=same.")
    if context == "caption":
        require_captions("segmentation.context", context, config.data)
    if head is not None and head.attention_maps and context != "classes":
        constraint = "false without segmentation.context=classes, one token per class"
        raise config_error("model.heads.segmentation.attention_maps", True, constraint)


def _validate_losses(losses: dict[str, float]) -> None:
    if not losses or not any(losses.values()):
        constraint = "a mapping with a positive weight"
        raise config_error("segmentation.losses", losses, constraint, "Give e.g. {cross_entropy: 1.0}.")
    for name in losses:
        if name not in LOSS_NAMES:
            raise config_error(
                "segmentation.losses",
                losses,
                f"a mapping with keys among {', '.join(LOSS_NAMES)}",
                did_you_mean(name, LOSS_NAMES),
            )


def _validate_class_weights(config: RunConfig) -> None:
    key, weights = "segmentation.class_weights", config.segmentation.class_weights
    until = config.segmentation.class_weights_anneal_until
    if until is not None and weights is None:
        raise config_error(f"{key}_anneal_until", until, "null without segmentation.class_weights")
    if weights is None:
        return
    if not any(config.segmentation.losses.get(name) for name in ("cross_entropy", "focal")):
        raise config_error(key, weights, "null without cross_entropy or focal in segmentation.losses")
    if isinstance(weights, str):
        return
    head = config.model.heads.segmentation
    classes = config.data.num_classes or (None if head is None else head.num_classes)
    if classes is not None and len(weights) != classes:
        raise config_error(key, weights, f"a list of {classes} numbers, one per class")
    if not any(weights):
        raise config_error(key, weights, "a list of finite numbers of at least 0, one of them positive")


def _validate_cross_entropy(segmentation: SegmentationConfig) -> None:
    smoothing, ohem = segmentation.label_smoothing, segmentation.ohem
    if not segmentation.losses.get("cross_entropy"):
        remedy = "Or give cross_entropy a weight."
        if smoothing:
            constraint = "0 without cross_entropy in segmentation.losses"
            raise config_error("segmentation.label_smoothing", smoothing, constraint, remedy)
        if segmentation.border_weights is not None:
            constraint, value = "null without cross_entropy in segmentation.losses", asdict(segmentation.border_weights)
            raise config_error("segmentation.border_weights", value, constraint, remedy)
        if ohem is not None:
            constraint = "null without cross_entropy in segmentation.losses"
            raise config_error("segmentation.ohem", asdict(ohem), constraint, remedy)
    if smoothing and segmentation.border_weights is not None:
        constraint = "0 with segmentation.border_weights, which weight the true class only"
        raise config_error("segmentation.label_smoothing", smoothing, constraint)
    if ohem is not None and ohem.threshold == 0 and ohem.min_fraction == 0:
        constraint = "positive with segmentation.ohem.min_fraction=0, or no pixel is kept"
        raise config_error("segmentation.ohem.threshold", 0.0, constraint, "Give e.g. 0.7 and 0.2.")
