"""What the `diffusion:` and `joint:` sections may not say."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from unetdiff.config.validation.config_error import at_least, config_error, share
from unetdiff.config.validation.data import WITH_LABELS, WITH_MASKS, image_size, require_captions
from unetdiff.models.config import CLASSIC, RESIDUAL

if TYPE_CHECKING:
    from unetdiff.config.parsing import RunConfig


def _validate_condition(config: RunConfig) -> None:
    """What the denoiser is told must be in the data set, and must reach the network."""
    given, dim = config.diffusion, config.model.conditioning.cross_attention_dim
    several = given.condition == "class" and given.max_classes > 1
    needs = {
        "class": ("image classes", WITH_LABELS),
        "layout": ("masks", WITH_MASKS),
    }
    if several:
        needs["class"] = ("masks that show the classes", WITH_MASKS)
    if given.condition in needs:
        what, sets = needs[given.condition]
        if config.data.name not in sets:
            raise config_error(
                "diffusion.condition",
                given.condition,
                f"needs {what}, which {config.data.name} has not",
                f"use none, or data.name {', '.join(sets)}",
            )
    if config.task == "joint" and (several or given.condition in ("layout", "image")):
        name, value = ("max_classes", given.max_classes) if several else ("condition", given.condition)
        raise config_error(
            f"diffusion.{name}",
            value,
            "does not go with task joint: one head would be told what the other is to find, or see more channels",
            "use class with max_classes 1, text or none",
        )
    if given.condition == "text":
        require_captions("diffusion.condition", "text", config.data)
        if given.text.max_tokens is not None:
            at_least("diffusion.text.max_tokens", given.text.max_tokens, 1)
    if given.condition in ("class", "text") and dim is None:
        raise config_error(
            "model.conditioning.cross_attention_dim",
            None,
            f"leaves diffusion.condition {given.condition} without tokens",
            "give a width such as 64, or set diffusion.condition to none",
        )
    if given.condition == "layout":
        at_least("diffusion.layout.grid", given.layout.grid, 0)
        at_least("diffusion.layout.channels", given.layout.channels, 0)
        if not given.layout.channels and (not given.layout.grid or dim is None):
            raise config_error(
                "diffusion.layout.channels",
                0,
                "leaves the layout without channels, and without a grid or cross_attention_dim there are no tokens",
                "give channels such as 8, or diffusion.layout.grid and model.conditioning.cross_attention_dim",
            )
    if given.condition == "image" and given.image.degradation != "none":
        least = 1 if given.image.degradation == "downscale" else 0
        if not least < given.image.strength < math.inf:
            raise config_error(
                "diffusion.image.strength",
                given.image.strength,
                f"degrades nothing by {given.image.degradation}",
                f"use more than {least}",
            )


def _validate_latent(config: RunConfig) -> None:
    """What cannot be with latents, as far as the config alone tells."""
    vae, model = config.diffusion.latent.vae, config.model
    if vae is None:
        return
    if config.task == "joint":
        right = "use task diffusion, or null"
        raise config_error(
            "diffusion.latent.vae", vae, "does not go with task joint, whose other head sees pixels", right
        )
    family = model.encoder.name
    if family not in (CLASSIC, RESIDUAL):
        why = "sees images, not the latents of diffusion.latent.vae"
        raise config_error("model.encoder.name", family, why, f"use {RESIDUAL} or {CLASSIC}")
    for key, value in (("sample_size", model.sample_size), ("heads.diffusion", model.heads.diffusion)):
        if value is not None:
            right = "leave it out"
            raise config_error(f"model.{key}", value, "follows from the images and from diffusion.latent.vae", right)


def _validate_target(config: RunConfig) -> None:
    """What cannot be where masks are drawn, and what cannot be told where images are."""
    given, key = config.diffusion, "diffusion.target"
    clean = given.condition == "image" and given.image.degradation == "none"
    if given.target == "image":
        if clean:
            right = "use downscale, grayscale or blur, or diffusion.target mask"
            raise config_error("diffusion.image.degradation", "none", "tells the image that is to be drawn", right)
        return
    if config.task == "joint":
        why = "does not go with task joint, whose other head sees no noisy masks"
        raise config_error(key, "mask", why, "use task diffusion, or image")
    if config.data.name not in WITH_MASKS:
        right = f"use image, or data.name {', '.join(WITH_MASKS)}"
        raise config_error(key, "mask", f"needs masks, which {config.data.name} has not", right)
    if given.condition == "layout":
        raise config_error(
            "diffusion.condition", "layout", f"tells the mask that is to be drawn ({key} mask)", "use image"
        )
    if given.latent.vae is not None:
        why = f"makes latents of images, and masks are drawn ({key} mask)"
        raise config_error("diffusion.latent.vae", given.latent.vae, why, "use null")
    family = config.model.encoder.name
    if family not in (CLASSIC, RESIDUAL):
        why = f"sees an image in its first three channels, where the noisy masks of {key} mask are"
        raise config_error("model.encoder.name", family, why, f"use {RESIDUAL} or {CLASSIC}")
    if config.model.heads.diffusion is not None:
        asked = config.model.heads.diffusion.out_channels
        why = "is not to be given: there is a channel for each class"
        raise config_error("model.heads.diffusion.out_channels", asked, why, "leave the heads out")


def validate_noise(config: RunConfig) -> None:
    """Refuse a forward process that cannot be."""
    given = config.diffusion
    if given.noise.zero_terminal_snr and given.prediction_type == "epsilon":
        raise config_error(
            "diffusion.prediction_type",
            "epsilon",
            "learns nothing where the last timestep is pure noise (diffusion.noise.zero_terminal_snr true)",
            "use v_prediction or sample",
        )
    at_least("diffusion.noise.num_train_timesteps", given.noise.num_train_timesteps, 2)
    if not 0 < given.noise.input_scale < math.inf:
        right = "use 1.0, or e.g. 0.1 for masks"
        raise config_error("diffusion.noise.input_scale", given.noise.input_scale, "is no positive number", right)


def validate_diffusion(config: RunConfig) -> None:
    given = config.diffusion
    _validate_target(config)
    _validate_latent(config)
    validate_noise(config)
    if given.weighting == "clamped_snr" and given.prediction_type == "epsilon":
        raise config_error("diffusion.weighting", "clamped_snr", "goes to infinity for epsilon", "use min_snr")
    _validate_condition(config)
    for name in ("class_tokens", "max_classes", "preview_per_class", "preview_rows"):
        at_least(f"diffusion.{name}", getattr(given, name), 1)
    if not 1 <= given.preview_steps <= given.noise.num_train_timesteps:
        raise config_error(
            "diffusion.preview_steps",
            given.preview_steps,
            "is out of range",
            f"use 1 to {given.noise.num_train_timesteps} (diffusion.noise.num_train_timesteps)",
        )
    if not 0 < given.snr_gamma < math.inf:
        raise config_error("diffusion.snr_gamma", given.snr_gamma, "is no positive number", "the paper uses 5.0")
    if given.weighting == "clamped_snr" and given.snr_gamma < 1:
        raise config_error(
            "diffusion.snr_gamma", given.snr_gamma, "is below clamped_snr's least weight of 1", "use 5.0"
        )
    if not 0 <= given.offset_noise < math.inf:
        raise config_error(
            "diffusion.offset_noise", given.offset_noise, "is no strength", "use 0 (off) or more, e.g. 0.1"
        )
    share("diffusion.condition_dropout", given.condition_dropout)
    size, trained = config.model.sample_size, image_size(config)
    if size is not None and trained is not None and trained != ([size, size] if isinstance(size, int) else size):
        raise config_error(
            "model.sample_size",
            size,
            f"is not the size that the images have ({trained})",
            f"use {trained[0]}" if trained[0] == trained[1] else "use null",
        )


def validate_joint(config: RunConfig) -> None:
    given = config.joint
    for name, weight in (
        ("segmentation_weight", given.segmentation_weight),
        ("diffusion_weight", given.diffusion_weight),
    ):
        if not 0 < weight < math.inf:
            raise config_error(f"joint.{name}", weight, "leaves a head untrained", "use a positive number, e.g. 1.0")
    if not 0 < given.segmentation_fraction <= 1:
        raise config_error(
            "joint.segmentation_fraction",
            given.segmentation_fraction,
            "is no share of a batch",
            "use 1 or less, above 0",
        )
    _validate_gradients(config)


def _validate_gradients(config: RunConfig) -> None:
    """What reads the gradients of each loss by itself goes through one step's graph several times."""
    given, training = config.joint, config.training
    balanced = given.weighting == "gradient_norm"
    at_least("joint.log_gradients", given.log_gradients, 0)
    if training.compile and (balanced or given.log_gradients):
        key = "joint.weighting" if balanced else "joint.log_gradients"
        why = (
            f"does not go with {key} {given.weighting if balanced else given.log_gradients}, which looks into the step"
        )
        raise config_error("training.compile", True, why, f"use false, or leave {key} out")
    if balanced and training.mixed_precision == "fp16":
        right = "use bf16 or no, or joint.weighting fixed or uncertainty"
        raise config_error("training.mixed_precision", "fp16", "underflows in joint.weighting gradient_norm", right)
