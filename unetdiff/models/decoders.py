"""Mid block and decoder: from the deepest map and the skips to the full-resolution map that every head reads."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from unetdiff.models.attention_plan import AttentionPlan, LevelAttention
from unetdiff.models.blocks import DoubleConv, Upsample, Upsample2d, center_crop
from unetdiff.models.config import CLASSIC, MID_BLOCK_RESNETS, RESIDUAL, ModelConfig
from unetdiff.models.encoders import Encoder, Skips, resnet_block
from unetdiff.models.forward_state import ForwardState


class PyramidMidBlock(nn.Module):
    """The deepest level of the classic network: two convolutions, and attention if that level attends.

    Empty for pretrained encoders, which include their deepest level.
    """

    def __init__(
        self,
        channels: tuple[int, int] | None,
        level: int,
        norm: str,
        padding: str,
        time_dim: int | None,
        attention: AttentionPlan,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.block = DoubleConv(*channels, norm, padding, time_dim) if channels else None
        self.attention = attention.block(level, channels[1]) if channels else None
        self.dropout = nn.Dropout(dropout) if dropout else None

    def forward(self, h: Tensor, state: ForwardState) -> Tensor:
        if self.block is not None:
            h = state.run(self.block, h, state.temb)
        if self.attention is not None:
            h = state.attend(self.attention, h)
        if self.dropout is not None:
            h = self.dropout(h)
        return state.record("mid_block", h)


class PyramidDecoder(nn.Module):
    """The expanding path of 2015, for the classic and the pretrained encoders.

    One block per level; levels finer than the finest skip are upsampled without one, up to the image's size.

    finest: only so many of its levels, for a map and skips that another decoder left; None: all.
    """

    def __init__(
        self,
        config: ModelConfig,
        in_channels: int,
        encoder: Encoder,
        time_dim: int | None,
        attention: AttentionPlan,
        finest: int | None = None,
    ) -> None:
        super().__init__()
        decoder, skips = config.decoder, dict(encoder.skips)
        self.up_blocks, self.attentions = nn.ModuleList(), LevelAttention()
        channels = decoder.channels or []
        levels = list(range(encoder.out_level - 1, encoder.out_level - 1 - len(channels), -1))
        first = 0 if finest is None else len(channels) - finest
        in_channels = channels[first - 1] if first else in_channels
        channels, self.levels = channels[first:], levels[first:]
        for level, width in zip(self.levels, channels, strict=True):
            upsample = Upsample2d(decoder.upsample or "nearest", in_channels, decoder.align_corners)
            joined = upsample.out_channels + skips.get(level, 0)
            block = DoubleConv(joined, width, decoder.norm or "group", config.encoder.padding, time_dim)
            self.up_blocks.append(PyramidUpBlock(upsample, block))
            self.attentions.add(attention, level, width)
            in_channels = width
        self.valid = config.encoder.padding == "valid"
        self.skip_levels = set(skips)
        self.out_level, self.out_channels = self.levels[-1], in_channels
        self.level_maps = {
            level: (f"decoder.{level}", width) for level, width in zip(self.levels[::-1], channels[::-1], strict=True)
        }
        """Name (of `UNet.features`) and channels of each level's last map, finest first."""

    def forward(
        self, h: Tensor, skips: Skips, size: tuple[int, int], state: ForwardState, part: slice = slice(None)
    ) -> Tensor:
        """Pops the skips, so that each is freed after use.

        Args:
            h: the deepest map.
            skips: the encoder's.
            size: (height, width) of the image.
            state: of the forward pass.
            part: of its levels, coarsest first.
        """
        for level, up_block in list(zip(self.levels, self.up_blocks, strict=True))[part]:
            skip = skips.pop() if level in self.skip_levels else None
            h = state.run(up_block, h, skip, self._size(level, skip, size), state.temb)
            del skip
            h = self.attentions(level, h, state)
            state.record(f"decoder.{level}", h)
        return h  # (B, C, H, W)

    def finest_modules(self, count: int) -> list[nn.Module]:
        """Those of the `count` finest levels."""
        levels = self.levels[len(self.levels) - count :]
        attentions = [self.attentions[str(level)] for level in levels if str(level) in self.attentions]
        return [*list(self.up_blocks)[len(self.up_blocks) - count :], *attentions]

    def _size(self, level: int, skip: Tensor | None, size: tuple[int, int]) -> tuple[int, int] | None:
        """The skip's size; without a skip ceil(size / 2^level), as a strided, padded stem has; None: double."""
        if self.valid:
            return None
        if skip is not None:
            return skip.shape[-2], skip.shape[-1]
        return (size[0] + 2**level - 1) // 2**level, (size[1] + 2**level - 1) // 2**level


class PyramidUpBlock(nn.Module):
    """A decoder level of Ronneberger et al. 2015, figure 1: upsample, concatenate the skip, two convolutions."""

    def __init__(self, upsample: Upsample2d, block: DoubleConv) -> None:
        super().__init__()
        self.upsample, self.block = upsample, block

    def forward(self, h: Tensor, skip: Tensor | None, size: tuple[int, int] | None, temb: Tensor | None) -> Tensor:
        """`size`: (height, width) to upsample to; None doubles, and a larger skip is cropped."""
        h = self.upsample(h, size)
        if skip is not None:
            skip = skip if size else center_crop(skip, (h.shape[-2], h.shape[-1]))
            h = torch.cat([skip, h], dim=1)  # the skip first, as bubbliiiing/unet-pytorch; residual networks: last
        return self.block(h, temb)


class ResidualMidBlock(nn.Module):
    """Residual block, attention, residual block at the coarsest level, or fewer of them (`residual.mid_block`)."""

    def __init__(self, config: ModelConfig, time_dim: int | None, attention: AttentionPlan) -> None:
        super().__init__()
        channels, kind = config.encoder.channels or [], config.residual.mid_block or "attention"
        count, width = MID_BLOCK_RESNETS[kind], channels[-1]
        self.resnets = nn.ModuleList([resnet_block(width, width, config, time_dim) for _ in range(count)])
        attentions = [attention.mid_block(len(channels) - 1, width)] if kind == "attention" else []
        self.attentions = nn.ModuleList(attentions)

    def forward(self, h: Tensor, state: ForwardState) -> Tensor:
        for index, resnet in enumerate(self.resnets):
            h = state.run(resnet, h, state.temb)
            if index == 0:
                for attention in self.attentions:
                    h = state.attend(attention, h)
        return state.record("mid_block", h)


class ResidualDecoder(nn.Module):
    """The decoder of DDPM and Stable Diffusion: a skip into every residual block. Tensor names are diffusers'.

    finest: only so many of its levels, for a map and skips that another decoder left; None: all.
    """

    def __init__(
        self,
        config: ModelConfig,
        encoder: Encoder,
        time_dim: int | None,
        attention: AttentionPlan,
        finest: int | None = None,
    ) -> None:
        super().__init__()
        self.up_blocks = nn.ModuleList()
        channels, widths = config.encoder.channels or [], [width for _, width in encoder.skips]
        previous = channels[-1]
        for level in reversed(range(len(channels))):
            skips = [widths.pop() for _ in range(config.residual.layers_per_block + 1)]
            if finest is None or level < finest:
                self.up_blocks.append(UpBlock(previous, channels[level], skips, level, config, time_dim, attention))
            previous = channels[level]
        self.out_level, self.out_channels = 0, previous
        last = config.residual.layers_per_block
        self.level_maps = {level: (f"decoder.{level}.{last}", width) for level, width in enumerate(channels)}
        """Name (of `UNet.features`) and channels of each level's last map, finest first."""

    def forward(
        self, h: Tensor, skips: Skips, size: tuple[int, int], state: ForwardState, part: slice = slice(None)
    ) -> Tensor:
        """Pops the skips. Arguments as of `PyramidDecoder.forward`, `size` unused."""
        for level, block in list(zip(reversed(range(len(self.up_blocks))), self.up_blocks, strict=True))[part]:
            h = block(h, skips, state, f"decoder.{level}")
        return h  # (B, C, H, W)

    def finest_modules(self, count: int) -> list[nn.Module]:
        """Those of the `count` finest levels."""
        return list(self.up_blocks)[len(self.up_blocks) - count :]


class UpBlock(nn.Module):
    """A decoder level: residual blocks, each with a skip and its attention, then an upsampler."""

    def __init__(
        self,
        in_channels: int,
        channels: int,
        skips: list[int],
        level: int,
        config: ModelConfig,
        time_dim: int | None,
        attention: AttentionPlan,
    ) -> None:
        super().__init__()
        self.resnets, self.attentions = nn.ModuleList(), nn.ModuleList()
        for skip in skips:
            self.resnets.append(resnet_block(in_channels + skip, channels, config, time_dim))
            block = attention.block(level, channels)
            if block is not None:
                self.attentions.append(block)
            in_channels = channels
        if level == 0:
            self.upsamplers = nn.ModuleList()
        elif config.imported.resamples_by_resnet("up", level):
            self.upsamplers = nn.ModuleList([resnet_block(channels, channels, config, time_dim, resample="up")])
        else:
            self.upsamplers = nn.ModuleList([Upsample(channels)])

    def forward(self, h: Tensor, skips: Skips, state: ForwardState, name: str) -> Tensor:
        for layer, resnet in enumerate(self.resnets):
            h = torch.cat([h, skips.pop()], dim=1)  # the skip last, as diffusers; it is freed before the block runs
            h = state.run(resnet, h, state.temb)
            if len(self.attentions):
                h = state.attend(self.attentions[layer], h)
            state.record(f"{name}.{layer}", h)
        for upsampler in self.upsamplers:
            size = (skips[-1].shape[-2], skips[-1].shape[-1])
            h = state.run(upsampler, h, state.temb, size)
        return h


def build_mid_block_and_decoder(
    config: ModelConfig, encoder: Encoder, time_dim: int | None, attention: AttentionPlan
) -> tuple[PyramidMidBlock | ResidualMidBlock, PyramidDecoder | ResidualDecoder]:
    """The mid block and the decoder that match an encoder."""
    if config.encoder.name == RESIDUAL:
        mid_block = ResidualMidBlock(config, time_dim, attention)
        return mid_block, ResidualDecoder(config, encoder, time_dim, attention)
    channels, norm, padding = config.encoder.channels or [], config.encoder.norm or "group", config.encoder.padding
    bottom = (channels[-2], channels[-1]) if config.encoder.name == CLASSIC else None
    return (
        PyramidMidBlock(bottom, encoder.out_level, norm, padding, time_dim, attention, config.encoder.dropout),
        PyramidDecoder(config, _deepest_width(config, encoder), encoder, time_dim, attention),
    )


def build_own_decoder(
    config: ModelConfig, encoder: Encoder, time_dim: int | None, attention: AttentionPlan
) -> PyramidDecoder | ResidualDecoder | None:
    """The segmentation head's decoder of its own (`heads.segmentation.own_decoder_levels`); None without one."""
    head = config.heads.segmentation
    if head is None or not head.own_decoder_levels:
        return None
    if config.encoder.name == RESIDUAL:
        return ResidualDecoder(config, encoder, time_dim, attention, head.own_decoder_levels)
    width = _deepest_width(config, encoder)
    return PyramidDecoder(config, width, encoder, time_dim, attention, head.own_decoder_levels)


def _deepest_width(config: ModelConfig, encoder: Encoder) -> int:
    """Channels of the mid block's map."""
    return (config.encoder.channels or [])[-1] if config.encoder.name == CLASSIC else encoder.out_channels
