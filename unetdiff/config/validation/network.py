"""What the `model:` section may not say."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from unetdiff.config.validation.config_error import at_least, config_error
from unetdiff.errors import UserError
from unetdiff.models.config import DiffusionHeadConfig, HeadsConfig, SegmentationHeadConfig
from unetdiff.models.resolve import resolve

if TYPE_CHECKING:
    from unetdiff.config.parsing import RunConfig


def validate_network(config: RunConfig) -> None:
    model, noisy = config.model, config.task != "segmentation"
    for key, channels in (
        ("model.encoder.channels", model.encoder.channels),
        ("model.decoder.channels", model.decoder.channels),
    ):
        if channels is not None and (not channels or min(channels) < 1):
            raise config_error(key, channels, "has no width at some level", "give positive integers, e.g. [32, 64]")
    if model.in_channels != 3:
        raise config_error("model.in_channels", model.in_channels, "does not fit RGB images", "use 3")
    dim = model.conditioning.cross_attention_dim
    if dim is not None and dim < 1:
        raise config_error(
            "model.conditioning.cross_attention_dim", dim, "is no width", "use a positive integer or null"
        )
    if model.imported.num_class_embeds is not None:
        raise config_error(
            "model.imported.num_class_embeds",
            model.imported.num_class_embeds,
            "is for imported networks and is not trained here",
            "use null; classes are told by diffusion.condition class",
        )
    if model.imported.class_embed_type is not None:
        raise config_error(
            "model.imported.class_embed_type",
            model.imported.class_embed_type,
            "is for imported networks and is not trained here",
            "use null",
        )
    at_least("model.conditioning.attention_head_dim", model.conditioning.attention_head_dim, 1)
    heads = HeadsConfig(
        SegmentationHeadConfig() if config.task != "diffusion" else None, DiffusionHeadConfig() if noisy else None
    )
    try:
        resolve(replace(model, heads=heads))  # what the network itself refuses: family, norms, padding, levels
    except UserError as error:
        raise UserError(f"model.{error} (task {config.task})") from None


def validate_heads(config: RunConfig) -> None:
    heads = config.model.heads
    if heads.diffusion is not None and heads.diffusion.out_channels != config.model.in_channels:
        raise config_error(
            "model.heads.diffusion.out_channels",
            heads.diffusion.out_channels,
            "differs from the image's channels",
            f"use {config.model.in_channels}, or leave the heads out: they follow from the task",
        )
    classes = config.data.num_classes
    if heads.segmentation is not None and classes not in (None, heads.segmentation.num_classes):
        raise config_error(
            "model.heads.segmentation.num_classes",
            heads.segmentation.num_classes,
            f"differs from data.num_classes ({classes})",
            "leave the heads out: they follow from the data set",
        )
