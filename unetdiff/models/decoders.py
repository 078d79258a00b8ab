"""The middle and the way up: from the deepest map and the skips to one full-resolution map that every head reads."""

from __future__ import annotations

from functools import partial
from typing import Any

from torch import Tensor, nn

from unetdiff.kernels.upsample_conv import join
from unetdiff.models.blocks import DoubleConv, Upsample, Upsample2d, centre_crop
from unetdiff.models.conditioning import AttentionPlan, ForwardState, LevelAttention
from unetdiff.models.config import MIDDLE_RESNETS, ResidualConfig
from unetdiff.models.encoders import Skips, resnet_block


class PyramidMiddle(nn.Module):
    """The bottom of the classic network: two convolutions, and attention where the plan has it.

    A trunk's deepest level is its own bottom: there, the middle is empty.
    """

    def __init__(
        self,
        channels: tuple[int, int] | None,
        level: int,
        norm: str,
        padding: str,
        time_dim: int | None,
        attention: AttentionPlan,
    ) -> None:
        super().__init__()
        self.block = DoubleConv(*channels, norm, padding, time_dim) if channels else None
        self.attention = attention.block(level, channels[1]) if channels else None

    def forward(self, h: Tensor, condition: ForwardState) -> Tensor:
        if self.block is not None:
            h = condition.run(self.block, h, condition.temb)
        if self.attention is not None:
            h = condition.run(self.attention, h, condition.context)
        return condition.keep("middle", h)


class PyramidDecoder(nn.Module):
    """The expanding path of 2015, for the classic encoder and for trunks: grow, join the skip, two convolutions.

    One step a level; the levels finer than the finest skip are grown without one, up to the image's own size.
    """

    def __init__(
        self,
        in_channels: int,
        in_level: int,
        skips: list[tuple[int, int]],
        channels: list[int],
        norm: str,
        upsample: str,
        align_corners: bool,
        padding: str,
        time_dim: int | None,
        attention: AttentionPlan,
    ) -> None:
        super().__init__()
        widths = dict(skips)
        self.valid = padding == "valid"
        self.grows, self.blocks, self.attentions = nn.ModuleList(), nn.ModuleList(), LevelAttention()
        self.levels = list(range(in_level - 1, in_level - 1 - len(channels), -1))
        for level, width in zip(self.levels, channels, strict=True):
            grow = Upsample2d(upsample, in_channels, align_corners)
            self.grows.append(grow)
            joined = grow.out_channels + widths.get(level, 0)
            self.blocks.append(DoubleConv(joined, width, norm, padding, time_dim))
            self.attentions.add(attention, level, width)
            in_channels = width
        self.with_skip = set(widths)
        self.out_level = self.levels[-1]
        self.out_channels = in_channels

    def forward(self, h: Tensor, skips: Skips, size: tuple[int, int], condition: ForwardState) -> Tensor:
        """`size` is the image's (height, width). Takes the skips out of their list: each is freed once read."""
        for level, grow, block in zip(self.levels, self.grows, self.blocks, strict=True):
            skip = skips.pop() if level in self.with_skip else None
            if self.valid:
                h = grow(h, None)
                if skip is not None:
                    h = join(centre_crop(skip, (h.shape[-2], h.shape[-1])), h)
                h = condition.run(block, h, condition.temb)
            else:
                # without a skip, ceil(size / 2^level): what a strided, padded stem would have put out
                to = tuple((side + 2**level - 1) // 2**level for side in size) if skip is None else skip.shape[-2:]
                h = condition.run(partial(_step, grow, block), h, to, skip, condition.temb, within=block)
            del skip
            h = self.attentions(level, h, condition)
            condition.keep(f"decoder.{level}", h)
        return h  # (B, C, H, W)


def _step(grow: Any, block: Any, h: Tensor, size: tuple[int, int], skip: Tensor | None, temb: Tensor | None) -> Tensor:
    """A level's map (B, C, height, width) from that of the level below and the skip: by its Grow and its DoubleConv."""
    if grow.kind == "nearest":
        return block.grown(h, size, skip, temb)
    h = grow(h, size)
    return block(h if skip is None else join(skip, h), temb)


class ResidualMiddle(nn.Module):
    """Residual block, attention, residual block at the coarsest level, or less of it (`residual.middle`)."""

    def __init__(
        self,
        channels: int,
        level: int,
        options: ResidualConfig,
        time_dim: int | None,
        attention: AttentionPlan,
    ) -> None:
        super().__init__()
        count = MIDDLE_RESNETS[options.middle or "attention"]
        self.resnets = nn.ModuleList([resnet_block(channels, channels, options, time_dim) for _ in range(count)])
        attends = options.middle == "attention"
        self.attentions = nn.ModuleList([attention.middle(level, channels)] if attends else [])

    def forward(self, h: Tensor, condition: ForwardState) -> Tensor:
        for index, resnet in enumerate(self.resnets):
            h = condition.run(resnet, h, condition.temb)
            if index == 0:
                for attention in self.attentions:
                    h = condition.run(attention, h, condition.context)
        return condition.keep("middle", h)


class ResidualDecoder(nn.Module):
    """The denoiser's way up: a skip into every residual block. Tensor names are diffusers'."""

    def __init__(
        self,
        channels: list[int],
        skips: list[tuple[int, int]],
        options: ResidualConfig,
        time_dim: int | None,
        attention: AttentionPlan,
    ) -> None:
        super().__init__()
        self.up_blocks = nn.ModuleList()
        widths = [width for _, width in skips]
        previous = channels[-1]
        for level in range(len(channels) - 1, -1, -1):
            own = [widths.pop() for _ in range(options.layers_per_block + 1)]
            self.up_blocks.append(UpBlock(previous, channels[level], own, level, options, time_dim, attention))
            previous = channels[level]
        self.out_level, self.out_channels = 0, previous

    def forward(self, h: Tensor, skips: Skips, size: tuple[int, int], condition: ForwardState) -> Tensor:
        """Takes the skips out of their list."""
        for index, block in enumerate(self.up_blocks):
            level = len(self.up_blocks) - 1 - index
            h = block(h, skips, condition, f"decoder.{level}")
        return h  # (B, C, H, W)


class UpBlock(nn.Module):
    """A level on the way up: residual blocks, each with a skip and its attention, then an upsampler."""

    def __init__(
        self,
        in_channels: int,
        channels: int,
        skips: list[int],
        level: int,
        options: ResidualConfig,
        time_dim: int | None,
        attention: AttentionPlan,
    ) -> None:
        super().__init__()
        self.resnets, self.attentions = nn.ModuleList(), nn.ModuleList()
        for skip in skips:
            self.resnets.append(resnet_block(in_channels + skip, channels, options, time_dim))
            block = attention.block(level, channels)
            if block is not None:
                self.attentions.append(block)
            in_channels = channels
        if level == 0:
            self.upsamplers = nn.ModuleList()
        elif options.resample == "resnet":
            self.upsamplers = nn.ModuleList([resnet_block(channels, channels, options, time_dim, resample="up")])
        else:
            self.upsamplers = nn.ModuleList([Upsample(channels)])

    def forward(self, h: Tensor, skips: Skips, condition: ForwardState, name: str) -> Tensor:
        for layer, resnet in enumerate(self.resnets):
            h = join(h, skips.pop())  # what was joined is freed before the block runs
            h = condition.run(resnet, h, condition.temb)
            if len(self.attentions):
                h = condition.run(self.attentions[layer], h, condition.context)
            condition.keep(f"{name}.{layer}", h)
        for upsampler in self.upsamplers:
            size = (skips[-1].shape[-2], skips[-1].shape[-1])
            h = condition.run(upsampler, h, condition.temb, size)
        return h
