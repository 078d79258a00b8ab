"""The structure of a U-Net level by level, from its config.json, as the diagram shows it."""

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
    """One resolution level."""

    size: int | None
    """Height (and width) of the feature maps in pixels; None if unknown."""
    stride: int
    """Input pixels per feature-map pixel."""
    encoder_channels: int | None
    """Channels in the encoder; None: no feature map at this level, or unknown."""
    decoder_channels: int | None
    """Channels in the decoder; None: as above."""
    encoder_layers: int
    """Blocks in the encoder; 0: no feature map at this level."""
    decoder_layers: int
    """Blocks in the decoder; 0: the lowest level."""
    attention: bool
    """True if the level has attention (self-attention, and cross-attention if there are tokens)."""


@dataclass(frozen=True)
class NetworkSpec:
    """The structure of a U-Net."""

    name: str
    in_channels: int
    levels: tuple[Level, ...]
    mid_block_channels: int | None
    mid_block_size: int | None
    mid_block_layers: int
    mid_block_attention: bool
    timestep: bool
    scale_shift: bool
    cross_attention_dim: int | None
    num_classes: int | None
    """Classes of the segmentation head; None: no segmentation head."""
    out_channels: int | None
    """Channels of the diffusion head; None: no diffusion head."""
    segmentation_head: str
    """What the segmentation head is: "1×1 convolution" or "feature pyramid"."""

    @property
    def attention_levels(self) -> list[int]:
        """Indices of the levels with attention, the highest resolution first."""
        return [index for index, level in enumerate(self.levels) if level.attention]


def read_network_spec(config: JsonDict, sample_size: int | None = None) -> NetworkSpec:
    """The spec of a model config (config.json of a `UNet`, or the `model:` section of a run).

    Args:
        config: nested keys of `ModelConfig`; missing keys have their defaults, unknown ones are ignored.
        sample_size: height of the images in pixels, if the config has none.

    Raises:
        UserError: not the config of a `UNet`.
    """
    sections = [config.get(name) for name in ("encoder", "residual", "decoder", "conditioning", "heads", "imported")]
    patch = config.get("patch_size", 1)
    model = resolve(parse(config.get("in_channels", 3), patch, config.get("sample_size"), *sections))
    encoder, conditioning = model.encoder.name, model.conditioning
    height = model.sample_size[0] if isinstance(model.sample_size, list) else model.sample_size
    size = height or sample_size
    rows, width, bottom = _rows(model)
    attention = set(conditioning.attention_levels or [])
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
    mid_block_kind = model.residual.mid_block if encoder == RESIDUAL else None
    segmentation, diffusion = model.heads.segmentation, model.heads.diffusion
    return NetworkSpec(
        name=encoder,
        in_channels=model.in_channels,
        levels=levels,
        mid_block_channels=width,
        mid_block_size=_map_size(size, 2**bottom * patch),
        mid_block_layers=MID_BLOCK_RESNETS[mid_block_kind] if mid_block_kind else (2 if encoder == CLASSIC else 1),
        mid_block_attention=mid_block_kind == "attention" if mid_block_kind else bottom in attention,
        timestep=bool(conditioning.timestep),
        scale_shift=encoder != RESIDUAL or model.residual.time_scale_shift == "scale_shift",
        cross_attention_dim=conditioning.cross_attention_dim,
        num_classes=segmentation.num_classes if segmentation else None,
        out_channels=diffusion.out_channels if diffusion else None,
        segmentation_head=_segmentation_head(model),
    )


def _segmentation_head(model: ModelConfig) -> str:
    head, kernel = model.heads.segmentation, model.imported.segmentation_kernel_size
    if head is not None and head.pyramid is not None:
        return "feature pyramid"
    return f"{kernel}×{kernel} convolution"


Row = tuple[int, int | None, int | None, int, int]
"""Stride, encoder channels, decoder channels, encoder blocks, decoder blocks."""


def _rows(model: ModelConfig) -> tuple[list[Row], int, int]:
    """The levels (highest resolution first), the channels of the mid block, and its level."""
    channels, up = model.encoder.channels or [], model.decoder.channels or []
    if model.encoder.name == RESIDUAL:
        layers = model.residual.layers_per_block
        rows: list[Row] = [(2**i, c, c, layers, layers + 1) for i, c in enumerate(channels)]
        return rows, channels[-1], len(channels) - 1
    if model.encoder.name == CLASSIC:
        rows = [(2**i, c, u, 2, 2) for i, (c, u) in enumerate(zip(channels, up[::-1], strict=False))]
        return rows, channels[-1], len(channels) - 1
    maps = pretrained_levels(model.encoder.name)
    bottom = max(maps)
    rows = [(2**level, maps.get(level), width, int(level in maps), 2) for level, width in enumerate(up[-bottom:][::-1])]
    return rows, maps[bottom], bottom


@cache
def pretrained_levels(name: str) -> dict[int, int]:
    """Channels of a pretrained encoder's feature map at each level (stride 2**level)."""
    return {level: channels[-1] for level, _, channels in feature_levels(load_pretrained_encoder(name, None), 3)}


def _map_size(size: int | None, stride: int) -> int | None:
    return None if size is None else -(-size // stride)
