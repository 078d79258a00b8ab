"""Constraints on the `model:` section."""

from __future__ import annotations

from dataclasses import replace

from unetdiff.config.schema import RunConfig
from unetdiff.config.validation.data import image_size, reads_rgb
from unetdiff.errors import UserError, config_error
from unetdiff.models.config import DiffusionHeadConfig, HeadsConfig, SegmentationHeadConfig
from unetdiff.models.resolve import resolve


def validate_network(config: RunConfig) -> None:
    """Check what training supports of the network, then what the network itself supports."""
    model, noisy = config.model, config.task != "segmentation"
    size = image_size(config)
    if size is not None and config.latent.vae is None and model.patch_size > min(size):
        constraint = f"at most {min(size)}, the shorter side of the training images"
        raise config_error("model.patch_size", model.patch_size, constraint)
    if model.in_channels != 3:
        remedy = "The network's channels follow from the images; set data.channels to read them otherwise."
        raise config_error("model.in_channels", model.in_channels, "3, its default", remedy)
    own = model.encoder.mean or model.encoder.std
    if own is not None and noisy and config.training.init_from is None and model.pretrained is None:
        key, value = ("mean", model.encoder.mean) if model.encoder.mean is not None else ("std", model.encoder.std)
        raise config_error(f"model.encoder.{key}", value, f"null with task={config.task}, whose input is noised")
    channels = 3 if reads_rgb(config) else config.data.channels or len(own or [0] * 3)
    imported = model.imported
    if imported.num_class_embeds is not None:
        constraint = "null: it describes imported networks and is not trained"
        remedy = "Use diffusion.condition=class for classes."
        raise config_error("model.imported.num_class_embeds", imported.num_class_embeds, constraint, remedy)
    if imported.class_embed_type is not None:
        constraint = "null: it describes imported networks and is not trained"
        raise config_error("model.imported.class_embed_type", imported.class_embed_type, constraint)
    heads = HeadsConfig(
        (model.heads.segmentation or SegmentationHeadConfig()) if config.task != "diffusion" else None,
        DiffusionHeadConfig() if noisy else None,
    )
    try:
        resolve(replace(model, heads=heads, in_channels=channels))
    except UserError as error:
        raise UserError(f"model.{error}") from None


def validate_heads(config: RunConfig) -> None:
    """Check that heads, where the config has them, agree with the data."""
    heads, remedy = config.model.heads, "Leave the heads out: task and dataset determine them."
    if heads.diffusion is not None and heads.diffusion.out_channels != config.model.in_channels:
        constraint = f"{config.model.in_channels}, the channels of the images"
        raise config_error("model.heads.diffusion.out_channels", heads.diffusion.out_channels, constraint, remedy)
    classes = config.data.num_classes
    if heads.segmentation is not None and classes not in (None, heads.segmentation.num_classes):
        constraint = f"{classes} (data.num_classes)"
        raise config_error("model.heads.segmentation.num_classes", heads.segmentation.num_classes, constraint, remedy)
