"""The encoders: classic, pretrained and residual; each turns an image into skips (finest first) and a deepest map.

Level k has the image's size divided by 2**k.
"""

from __future__ import annotations

from functools import partial
from typing import Protocol

from torch import Tensor, nn
from torch.compiler import is_exporting
from torch.nn import functional as F

from unetdiff.models.attention_plan import AttentionPlan, LevelAttention
from unetdiff.models.blocks import DoubleConv, Downsample, ResnetBlock, replace_batch_norm
from unetdiff.models.config import CLASSIC, RESIDUAL, TIMM_PREFIX, ModelConfig, image_channels
from unetdiff.models.embeddings import TimeModulation
from unetdiff.models.forward_state import ForwardState
from unetdiff.models.input_normalization import RGB, InputNormalization, pretrained_normalization
from unetdiff.models.pretrained import feature_levels, load_pretrained_encoder, replace_stem
from unetdiff.models.timm_encoder import TimmEncoder

Skips = list[Tensor]

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


class Encoder(Protocol):
    """The interface of every encoder."""

    skips: list[tuple[int, int]]
    """(level, channels) of each skip, in the order they are pushed."""
    out_level: int
    """Level of the deepest map."""
    out_channels: int
    """Its channels."""

    def freezable_modules(self) -> list[nn.Module]:
        """The modules whose parameters `UNet.freeze_encoder` freezes, except for those of conditioning within them."""

    def level_modules(self, count: int) -> list[nn.Module]:
        """Those of the `count` finest levels."""

    def __call__(self, x: Tensor, state: ForwardState) -> tuple[Skips, Tensor]:
        """(B, in_channels, H, W) -> skips and deepest map."""


class ClassicEncoder(nn.Module):
    """The contracting path of 2015: per level two 3x3 convolutions and a 2x2 max-pool (Ronneberger et al., figure 1).

    `encoder.channels` has N widths; the encoder has the first N - 1 levels, and the convolutions of the deepest, N-th
    level are the mid block (`PyramidMidBlock`).
    """

    def __init__(self, config: ModelConfig, in_channels: int, time_dim: int | None, attention: AttentionPlan) -> None:
        super().__init__()
        self.levels, self.attentions = nn.ModuleList(), LevelAttention()
        channels, norm, padding = config.encoder.channels or [], config.encoder.norm or "group", config.encoder.padding
        for level, width in enumerate(channels[:-1]):
            self.levels.append(DoubleConv(in_channels, width, norm, padding, time_dim))
            self.attentions.add(attention, level, width)
            in_channels = width
        self.skips = list(enumerate(channels[:-1]))
        self.out_level, self.out_channels = len(channels) - 1, channels[-2]
        self.normalization = InputNormalization.of(config)
        self.dropout = nn.Dropout(config.encoder.dropout) if config.encoder.dropout else None

    @property
    def lost_unpadded(self) -> int:
        """Pixels of height (or width) lost without padding: 24 2^(n-2) - 8 with n widths, 184 of 572 for n = 5.

        Inputs are 2^(n-1) (b + 4) - 4 pixels high, with b the height of the encoder's deepest map. b = 8, 4 pixels more
        than the loss, is valid for every n, and the smallest for n > 2.
        """
        return 24 * 2 ** (self.out_level - 1) - 8

    def freezable_modules(self) -> list[nn.Module]:
        return list(self.levels)

    def level_modules(self, count: int) -> list[nn.Module]:
        return list(self.levels)[:count]

    def forward(self, x: Tensor, state: ForwardState) -> tuple[Skips, Tensor]:
        skips: Skips = []
        if self.normalization is not None:
            x = self.normalization(x)
        for level, block in enumerate(self.levels):
            x = state.run(block, x, state.temb)  # (B, C, H / 2^level, W / 2^level)
            x = self.attentions(level, x, state)
            if self.dropout is not None and level == self.out_level - 1:
                x = self.dropout(x)
            skips.append(state.record(f"encoder.{level}", x))
            x = F.max_pool2d(x, 2)
        return skips, x


class PretrainedEncoder(nn.Module):
    """A torchvision classifier as a feature pyramid: one map per stride 2, 4, 8, 16, 32 (convnext: 4 to 32).

    `model` keeps torchvision's tensor names. Its blocks run one after another; where the stride doubles, the map before
    is a skip. The time embedding scales and shifts the output of every composite block, and attention joins at the end
    of a level. Both are the identity at initialization: a conditioned encoder starts as the pretrained one.
    """

    def __init__(self, config: ModelConfig, in_channels: int, time_dim: int | None, attention: AttentionPlan) -> None:
        super().__init__()
        encoder = config.encoder
        self.model = load_pretrained_encoder(encoder.name, encoder.weights)
        if in_channels != RGB:
            images = image_channels(config)
            replace_stem(self.model, images, in_channels - images, pretrained=encoder.weights is not None)
        if encoder.norm in ("frozen", "group"):
            replace_batch_norm(self.model, encoder.norm)
        self.normalization = pretrained_normalization(config, IMAGENET_MEAN, IMAGENET_STD)
        self.times, self.attentions = nn.ModuleDict(), LevelAttention()
        self.block_names: list[list[str]] = []  # by level, finest first
        self.skips: list[tuple[int, int]] = []
        for level, names, channels in feature_levels(self.model, in_channels):
            self.block_names.append(names)
            self.skips.append((level, channels[-1]))
            for name, width in zip(names, channels, strict=True):
                if time_dim and any(self.model.get_submodule(name).children()):
                    self.times[name.replace(".", "_")] = TimeModulation(time_dim, width)
            self.attentions.add(attention, level, channels[-1])
        self.out_level, self.out_channels = self.skips.pop()

    def freezable_modules(self) -> list[nn.Module]:
        return [self.model]

    def level_modules(self, count: int) -> list[nn.Module]:
        return [self.model.get_submodule(name) for names in self.block_names[:count] for name in names]

    def forward(self, x: Tensor, state: ForwardState) -> tuple[Skips, Tensor]:
        x = self.normalization(x)
        maps: Skips = []
        levels = [*[level for level, _ in self.skips], self.out_level]
        for level, names in zip(levels, self.block_names, strict=True):
            x = state.run(partial(self._level, names), x, state.temb, owner=self.model)
            x = self.attentions(level, x, state)
            maps.append(state.record(f"encoder.{level}", x))  # (B, C, H / 2^level, W / 2^level)
        return maps[:-1], maps[-1]

    def _level(self, names: list[str], h: Tensor, temb: Tensor | None) -> Tensor:
        for name in names:
            h = self.model.get_submodule(name)(h)
            if is_exporting():  # convnext permutes: its strides would restrict an export to batches of two or more
                h = h.contiguous()
            key = name.replace(".", "_")
            if temb is not None and key in self.times:
                h = self.times[key](h, temb)
        return h


class ResidualEncoder(nn.Module):
    """The encoder of DDPM and Stable Diffusion (Ho et al. 2020, Rombach et al. 2022): a skip after conv_in, after every
    residual block and after every downsampler. Tensor names are diffusers'."""

    def __init__(self, config: ModelConfig, in_channels: int, time_dim: int | None, attention: AttentionPlan) -> None:
        super().__init__()
        channels, layers = config.encoder.channels or [], config.residual.layers_per_block
        self.conv_in = nn.Conv2d(in_channels, channels[0], 3, padding=1)
        self.down_blocks = nn.ModuleList()
        self.skips = [(0, channels[0])]
        previous = channels[0]
        for level, width in enumerate(channels):
            last = level == len(channels) - 1
            self.down_blocks.append(DownBlock(previous, width, level, last, config, time_dim, attention))
            self.skips += [(level, width)] * layers + ([] if last else [(level + 1, width)])
            previous = width
        self.out_level, self.out_channels = len(channels) - 1, channels[-1]

    def freezable_modules(self) -> list[nn.Module]:
        return [self]

    def level_modules(self, count: int) -> list[nn.Module]:
        return [self.conv_in, *list(self.down_blocks)[:count]] if count else []

    def forward(self, x: Tensor, state: ForwardState) -> tuple[Skips, Tensor]:
        h = self.conv_in(x)
        skips = [h]
        for level, block in enumerate(self.down_blocks):
            h = block(h, state, skips, f"encoder.{level}")
        return skips, h


class DownBlock(nn.Module):
    """An encoder level: residual blocks, each with its attention, then a downsampler."""

    def __init__(
        self,
        in_channels: int,
        channels: int,
        level: int,
        last: bool,
        config: ModelConfig,
        time_dim: int | None,
        attention: AttentionPlan,
    ) -> None:
        super().__init__()
        self.resnets, self.attentions = nn.ModuleList(), nn.ModuleList()
        for layer in range(config.residual.layers_per_block):
            self.resnets.append(resnet_block(in_channels if layer == 0 else channels, channels, config, time_dim))
            block = attention.block(level, channels)
            if block is not None:
                self.attentions.append(block)
        if last:
            self.downsamplers = nn.ModuleList()
        elif config.imported.resamples_by_resnet("down", level):
            self.downsamplers = nn.ModuleList([resnet_block(channels, channels, config, time_dim, resample="down")])
        else:
            self.downsamplers = nn.ModuleList([Downsample(channels, config.imported.downsample_padding)])

    def forward(self, h: Tensor, state: ForwardState, skips: Skips, name: str) -> Tensor:
        for layer, resnet in enumerate(self.resnets):
            h = state.run(resnet, h, state.temb)
            if len(self.attentions):
                h = state.attend(self.attentions[layer], h)
            skips.append(state.record(f"{name}.{layer}", h))
        for downsampler in self.downsamplers:
            h = state.run(downsampler, h, state.temb)
            skips.append(h)
        return h


def resnet_block(
    in_channels: int, channels: int, config: ModelConfig, time_dim: int | None, resample: str | None = None
) -> ResnetBlock:
    """A residual block with the config's options."""
    residual = config.residual
    return ResnetBlock(
        in_channels,
        channels,
        time_dim,
        groups=residual.norm_num_groups,
        eps=config.imported.norm_eps,
        scale_shift=residual.time_scale_shift == "scale_shift",
        dropout=residual.dropout,
        resample=resample,
    )


def build_encoder(
    config: ModelConfig, time_dim: int | None, attention: AttentionPlan
) -> ClassicEncoder | PretrainedEncoder | ResidualEncoder | TimmEncoder:
    """The encoder of a resolved config."""
    in_channels = config.in_channels * config.patch_size**2
    if config.encoder.name == CLASSIC:
        return ClassicEncoder(config, in_channels, time_dim, attention)
    if config.encoder.name == RESIDUAL:
        return ResidualEncoder(config, in_channels, time_dim, attention)
    if config.encoder.name.startswith(TIMM_PREFIX):
        return TimmEncoder(config, in_channels, time_dim, attention)
    return PretrainedEncoder(config, in_channels, time_dim, attention)
