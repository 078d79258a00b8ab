"""What a U-Net is made of, level by level, read from its config.json: what the diagram draws."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Any

from unetdiff.models.config import CLASSIC, MID_BLOCK_RESNETS, RESIDUAL, ModelConfig
from unetdiff.models.pretrained import feature_levels, load_pretrained_encoder
from unetdiff.models.resolve import parse, resolve

JsonDict = dict[str, Any]


@dataclass(frozen=True)
class Level:
    """One resolution of the U."""

    size: int | None
    """Height (and width) of the maps in pixels; None when the network takes any size."""
    stride: int
    """Input pixels per pixel of the map."""
    encoder_channels: int | None
    """Width on the way down; None: the encoder has no map here, or its width is not in the config."""
    decoder_channels: int | None
    """Width on the way up; None: as above."""
    encoder_layers: int
    """Blocks drawn on the way down; 0: the encoder has no map at this resolution."""
    decoder_layers: int
    """Blocks drawn on the way up; 0: the level is the bottom of the U."""
    attention: bool
    """True where pixels attend (to each other, and to the tokens where there are any)."""


@dataclass(frozen=True)
class Anatomy:
    """A U-Net as the diagram needs it."""

    name: str
    in_channels: int
    levels: tuple[Level, ...]
    middle_channels: int | None
    middle_size: int | None
    middle_layers: int
    middle_attention: bool
    timestep: bool
    scale_shift: bool
    cross_attention_dim: int | None
    class_embeds: int | None
    num_classes: int | None
    """Classes of the segmentation head; None: no such head."""
    out_channels: int | None
    """Channels of the diffusion head; None: no such head."""
    head_kernel: int
    """Side of the segmentation head's convolution."""

    @property
    def attention_levels(self) -> list[int]:
        """Indices of the levels with attention, the finest first."""
        return [index for index, level in enumerate(self.levels) if level.attention]


def read_anatomy(config: JsonDict, sample_size: int | None = None) -> Anatomy:
    """The anatomy of the network in a model config (config.json of a `UNet`, or the `model:` section of a run).

    Args:
        config: nested keys of `ModelConfig`; missing ones mean their defaults, keys of others are passed over.
        sample_size: height of the images in pixels, where the config itself does not say.

    Raises:
        UserError: a config that is no `UNet`.
    """
    sections = [config.get(name) for name in ("encoder", "residual", "decoder", "conditioning", "heads", "imported")]
    patch = config.get("patch_size", 1)
    model = resolve(parse(config.get("in_channels", 3), patch, config.get("sample_size"), *sections))
    family, told = model.encoder.name, model.conditioning
    height = model.sample_size[0] if isinstance(model.sample_size, list) else model.sample_size
    size = height or sample_size
    rows, middle, bottom = _rows(model)
    attention = set(told.attention_levels or [])
    levels = tuple(
        Level(
            size=_map_size(size, stride * patch),
            stride=stride * patch,
            encoder_channels=down,
            decoder_channels=up,
            encoder_layers=down_layers,
            decoder_layers=up_layers,
            attention=stride.bit_length() - 1 in attention,
        )
        for stride, down, up, down_layers, up_layers in rows
    )
    middle_kind = model.residual.mid_block if family == RESIDUAL else None
    segmentation, diffusion = model.heads.segmentation, model.heads.diffusion
    return Anatomy(
        name=family,
        in_channels=model.in_channels,
        levels=levels,
        middle_channels=middle,
        middle_size=_map_size(size, 2**bottom * patch),
        middle_layers=MID_BLOCK_RESNETS[middle_kind] if middle_kind else (2 if family == CLASSIC else 1),
        middle_attention=middle_kind == "attention" if middle_kind else bottom in attention,
        timestep=bool(told.timestep),
        scale_shift=family != RESIDUAL or model.residual.time_scale_shift == "scale_shift",
        cross_attention_dim=told.cross_attention_dim,
        class_embeds=model.imported.num_class_embeds,
        num_classes=segmentation.num_classes if segmentation else None,
        out_channels=diffusion.out_channels if diffusion else None,
        head_kernel=model.imported.segmentation_kernel_size,
    )


Row = tuple[int, int | None, int | None, int, int]
"""stride, encoder width, decoder width, encoder blocks, decoder blocks"""


def _rows(model: ModelConfig) -> tuple[list[Row], int, int]:
    """Levels on both sides of the U (finest first), the width of the middle, and the level it is on."""
    channels, up = model.encoder.channels or [], model.decoder.channels or []
    if model.encoder.name == RESIDUAL:
        layers = model.residual.layers_per_block
        rows: list[Row] = [(2**i, c, c, layers, layers + 1) for i, c in enumerate(channels)]
        return rows, channels[-1], len(channels) - 1
    if model.encoder.name == CLASSIC:
        rows = [(2**i, c, u, 2, 2) for i, (c, u) in enumerate(zip(channels, up[::-1], strict=False))]
        return rows, channels[-1], len(channels) - 1
    maps = trunk_pyramid(model.encoder.name)
    bottom = max(maps)
    rows = [(2**level, maps.get(level), width, int(level in maps), 2) for level, width in enumerate(up[-bottom:][::-1])]
    return rows, maps[bottom], bottom


@cache
def trunk_pyramid(family: str) -> dict[int, int]:
    """Width of a torchvision trunk's map at each level (stride 2**level), asked of the trunk itself."""
    return {level: channels[-1] for level, _, channels in feature_levels(load_pretrained_encoder(family, None), 3)}


def _map_size(size: int | None, stride: int) -> int | None:
    return None if size is None else -(-size // stride)
