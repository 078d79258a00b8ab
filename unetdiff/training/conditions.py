"""Builds the conditioner of a config's `diffusion.condition`, sized by the dataset."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from unetdiff.data.base import ImageDataset
from unetdiff.diffusion.codecs import Codec, LatentCodec
from unetdiff.diffusion.conditioning.base import Conditioner
from unetdiff.diffusion.conditioning.captions import CaptionConditioner
from unetdiff.diffusion.conditioning.classes import ClassConditioner
from unetdiff.diffusion.conditioning.images import ImageConditioner, channels_of
from unetdiff.diffusion.conditioning.layouts import LayoutConditioner
from unetdiff.diffusion.conditioning.prompt import PromptConditioner
from unetdiff.diffusion.conditioning.text import TextConditioner
from unetdiff.diffusion.conditioning.text_encoder import CachedFeatures, TextEncoder
from unetdiff.errors import UserError, config_error
from unetdiff.training.pretrained import component_path

if TYPE_CHECKING:
    from unetdiff.config.schema import RunConfig


def condition_channels(config: RunConfig, codec: Codec) -> int:
    """Channels that the condition concatenates to the noisy image (or latents), or inpainting's to the latents."""
    if config.task == "segmentation":
        return 0
    if config.diffusion.inpainting.enabled:
        return 1 + codec.channels
    channels = {"layout": config.diffusion.layout.channels, "image": channels_of(_latent_channels(codec))}
    return channels.get(config.diffusion.condition, 0)


def _latent_channels(codec: Codec) -> int | None:
    """Channels of the latents; None: a condition image is pixels."""
    return codec.channels if isinstance(codec, LatentCodec) else None


def build_conditioner(config: RunConfig, train: ImageDataset, codec: Codec) -> Conditioner | None:
    """A new conditioner for a denoiser with this codec; None: unconditional.

    Raises:
        UserError: a dataset without the condition, or a network without cross-attention where the condition needs it.
    """
    diffusion, dim = config.diffusion, config.model.conditioning.cross_attention_dim
    if diffusion.condition == "none":
        return None
    if diffusion.condition == "image":
        image = diffusion.image
        conditioner = ImageConditioner(image.degradation, image.strength, _latent_channels(codec))
        conditioner.latents_of = codec.encode
        return conditioner
    if diffusion.condition == "layout":
        layout, palette = diffusion.layout, [[int(level) for level in color] for color in train.palette]
        return LayoutConditioner(len(train.classes), dim, layout.grid, layout.channels, train.classes, palette)
    if dim is None:
        raise UserError(
            f"model.conditioning.cross_attention_dim=null: must be set with diffusion.condition={diffusion.condition}. "
            "Use e.g. 64, or diffusion.condition=none."
        )
    if diffusion.condition == "text":
        return _text_conditioner(config, train, dim, condition_channels(config, codec))
    if not train.labels:
        raise UserError(
            f"diffusion.condition=class: must be none with data.name={config.data.name}, which has no labels."
        )
    return ClassConditioner(len(train.labels), dim, diffusion.class_tokens, train.labels, diffusion.max_classes)


def _text_conditioner(config: RunConfig, train: ImageDataset, dim: int, channels: int) -> CaptionConditioner:
    text = config.diffusion.text
    captions = [part.caption(i) for part in (train, train.regularization) if part for i in range(len(part))]
    encoder = TextEncoder.from_pretrained(component_path(config, text.encoder), text.max_tokens, not text.projection)
    cache = None if text.cache_dir is None else Path(text.cache_dir)
    if not text.projection:
        if encoder.width != dim:
            constraint = f"{encoder.width}, the width of {text.encoder}, with diffusion.text.projection=false"
            raise config_error("model.conditioning.cross_attention_dim", dim, constraint)
        prompts = PromptConditioner(dim, encoder.max_tokens, channels)
        prompts.features = CachedFeatures(encoder, captions, cache)
        return prompts
    if text.max_tokens is None:
        encoder.max_tokens = min(encoder.max_tokens, max(encoder.lengths(list(dict.fromkeys(captions)))))
    conditioner = TextConditioner(dim, encoder.width, encoder.max_tokens)
    conditioner.features = CachedFeatures(encoder, captions, cache)
    return conditioner
