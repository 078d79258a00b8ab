"""How a config's `diffusion.condition` becomes a conditioner, sized by the data set."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from unetdiff.data import PictureDataset
from unetdiff.diffusion.codecs import Latents, Space
from unetdiff.diffusion.conditioning import (
    ClassConditioner,
    Conditioner,
    LayoutConditioner,
    PictureConditioner,
    TextConditioner,
)
from unetdiff.diffusion.conditioning.images import channels_of
from unetdiff.diffusion.conditioning.text_encoder import CachedFeatures, TextEncoder
from unetdiff.errors import UserError

if TYPE_CHECKING:
    from unetdiff.config.parsing import RunConfig


def needs_layout(config: RunConfig) -> bool:
    """Whether the denoiser needs each picture's mask: to draw it, for a layout, or for the classes that it shows."""
    given = config.diffusion
    return config.task == "diffusion" and (
        given.target == "mask"
        or given.condition == "layout"
        or (given.condition == "class" and given.classes_at_once > 1)
    )


def channels_beside(config: RunConfig, space: Space) -> int:
    """Channels that the condition puts beside what is noised."""
    if config.task == "segmentation":
        return 0
    beside = {"layout": config.diffusion.layout.channels, "picture": channels_of(_latent_channels(space))}
    return beside.get(config.diffusion.condition, 0)


def _latent_channels(space: Space) -> int | None:
    """Channels of the latents; None: what is told of a picture are its pixels."""
    return space.channels if isinstance(space, Latents) else None


def build_conditioner(config: RunConfig, train: PictureDataset, space: Space) -> Conditioner | None:
    """A fresh conditioner for a denoiser of `space`; None: it is told nothing.

    Raises:
        UserError: the set has not what the condition is made of, or the network no way to be told.
    """
    given, dim = config.diffusion, config.model.conditioning.cross_attention_dim
    if given.condition == "none":
        return None
    if given.condition == "picture":
        told = PictureConditioner(given.picture.degradation, given.picture.strength, _latent_channels(space))
        told.latents_of = space.encode
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
    return ClassConditioner(len(train.labels), dim, given.class_tokens, train.labels, given.classes_at_once)


def _text_conditioner(config: RunConfig, train: PictureDataset, dim: int) -> TextConditioner:
    text = config.diffusion.text
    captions = [train.caption(i) for i in range(len(train))]
    encoder = TextEncoder.from_pretrained(text.encoder, text.max_tokens)
    if text.max_tokens is None:
        encoder.max_tokens = min(encoder.max_tokens, max(encoder.lengths(list(dict.fromkeys(captions)))))
    conditioner = TextConditioner(dim, encoder.width, encoder.max_tokens)
    conditioner.features = CachedFeatures(encoder, captions, None if text.cache_dir is None else Path(text.cache_dir))
    return conditioner
