"""How a config's `diffusion.condition` becomes a conditioner, sized by the data set."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from unetdiff.data.base import ImageDataset
from unetdiff.diffusion.codecs import Codec, LatentCodec
from unetdiff.diffusion.conditioning.base import Conditioner
from unetdiff.diffusion.conditioning.classes import ClassConditioner
from unetdiff.diffusion.conditioning.images import ImageConditioner, channels_of
from unetdiff.diffusion.conditioning.layouts import LayoutConditioner
from unetdiff.diffusion.conditioning.text import TextConditioner
from unetdiff.diffusion.conditioning.text_encoder import CachedFeatures, TextEncoder
from unetdiff.errors import UserError

if TYPE_CHECKING:
    from unetdiff.config.schema import RunConfig


def needs_layout(config: RunConfig) -> bool:
    """Whether the denoiser needs each image's mask: to draw it, for a layout, or for the classes that it shows."""
    given = config.diffusion
    return config.task == "diffusion" and (
        given.target == "mask" or given.condition == "layout" or (given.condition == "class" and given.max_classes > 1)
    )


def channels_beside(config: RunConfig, codec: Codec) -> int:
    """Channels that the condition puts beside what is noised."""
    if config.task == "segmentation":
        return 0
    beside = {"layout": config.diffusion.layout.channels, "image": channels_of(_latent_channels(codec))}
    return beside.get(config.diffusion.condition, 0)


def _latent_channels(codec: Codec) -> int | None:
    """Channels of the latents; None: what is told of an image are its pixels."""
    return codec.channels if isinstance(codec, LatentCodec) else None


def build_conditioner(config: RunConfig, train: ImageDataset, codec: Codec) -> Conditioner | None:
    """A fresh conditioner for a denoiser of `space`; None: it is told nothing.

    Raises:
        UserError: the set has not what the condition is made of, or the network no way to be told.
    """
    given, dim = config.diffusion, config.model.conditioning.cross_attention_dim
    if given.condition == "none":
        return None
    if given.condition == "image":
        told = ImageConditioner(given.image.degradation, given.image.strength, _latent_channels(codec))
        told.latents_of = codec.encode
        return told
    if given.condition == "layout":
        palette = [[int(level) for level in colour] for colour in train.palette]
        return LayoutConditioner(
            len(train.classes), dim, given.layout.grid, given.layout.channels, train.classes, palette
        )
    if dim is None:
        raise UserError(
            f"diffusion.condition: '{given.condition}' reaches the network through cross-attention; "
            "set model.conditioning.cross_attention_dim, e.g. 64, or diffusion.condition none"
        )
    if given.condition == "text":
        return _text_conditioner(config, train, dim)
    if not train.labels:
        raise UserError(f"diffusion.condition: 'class', but data.name={config.data.name} has no labels; set it to none")
    return ClassConditioner(len(train.labels), dim, given.class_tokens, train.labels, given.max_classes)


def _text_conditioner(config: RunConfig, train: ImageDataset, dim: int) -> TextConditioner:
    text = config.diffusion.text
    captions = [train.caption(i) for i in range(len(train))]
    encoder = TextEncoder.from_pretrained(text.encoder, text.max_tokens)
    if text.max_tokens is None:
        encoder.max_tokens = min(encoder.max_tokens, max(encoder.lengths(list(dict.fromkeys(captions)))))
    conditioner = TextConditioner(dim, encoder.width, encoder.max_tokens)
    conditioner.features = CachedFeatures(encoder, captions, None if text.cache_dir is None else Path(text.cache_dir))
    return conditioner
