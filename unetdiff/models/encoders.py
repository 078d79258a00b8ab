"""The way down, in three families: each turns an image into skips (finest first) and a deepest map.

An encoder has `skips: list[tuple[level, channels]]` in the order it pushes them, `out_level` and `out_channels` of its
deepest map, `trunk_modules()` (what a freeze phase freezes), `level_modules(count)` (its finest levels) and
`forward(x, condition) -> (skips, deepest)`.
Level k has the image's size divided by 2**k.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import torch
import torchvision
from torch import Tensor, nn
from torch.compiler import is_exporting
from torch.nn import functional as F

from unetdiff.errors import UserError
from unetdiff.models.blocks import DoubleConv, Downsample, ResnetBlock, replace_batch_norm
from unetdiff.models.conditioning import AttentionPlan, ForwardState, LevelAttention
from unetdiff.models.config import EncoderConfig, ResidualConfig
from unetdiff.models.embeddings import TimeModulation
from unetdiff.models.loading import read_tensors
from unetdiff.models.products import use_products

Skips = list[Tensor]

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
CLASSIFIER = ("avgpool", "fc", "classifier")  # what torchvision's networks have beside their trunk


class ClassicEncoder(nn.Module):
    """The 2015 contracting path: two 3x3 convolutions, 2x2 max-pool, and again (Ronneberger et al., figure 1)."""

    def __init__(
        self,
        in_channels: int,
        channels: list[int],
        norm: str,
        padding: str,
        time_dim: int | None,
        attention: AttentionPlan,
    ) -> None:
        super().__init__()
        self.levels = nn.ModuleList()
        self.attentions = LevelAttention()
        for level, width in enumerate(channels[:-1]):
            self.levels.append(DoubleConv(in_channels, width, norm, padding, time_dim))
            self.attentions.add(attention, level, width)
            in_channels = width
        self.skips = list(enumerate(channels[:-1]))
        self.out_level, self.out_channels = len(channels) - 1, channels[-2]

    @property
    def lost_unpadded(self) -> int:
        """Pixels a side pair that the unpadded network loses, 24 2^(n-2) - 8 with n levels: 184 of 572 for 5.

        It fits inputs 2^(n-1) (b + 4) - 4; the smallest is 4 more than what is lost.
        """
        return 24 * 2 ** (self.out_level - 1) - 8

    def trunk_modules(self) -> list[nn.Module]:
        return list(self.levels)

    def level_modules(self, count: int) -> list[nn.Module]:
        return list(self.levels)[:count]

    def forward(self, x: Tensor, condition: ForwardState) -> tuple[Skips, Tensor]:
        skips: Skips = []
        for level, block in enumerate(self.levels):
            x = condition.run(block, x, condition.temb)  # (B, C, H / 2^level, W / 2^level)
            x = self.attentions(level, x, condition)
            skips.append(condition.keep(f"encoder.{level}", x))
            x = F.max_pool2d(x, 2)
        return skips, x


class TrunkEncoder(nn.Module):
    """Any torchvision classifier with a feature pyramid, as five maps (feat1 .. feat5) at strides 2 .. 32.

    The trunk keeps torchvision's own tensor names. Its blocks are run one after another; where the stride doubles, the
    map before is a skip. The time embedding scales and shifts every composite block's output (zero at the start), and
    attention joins at the end of a level (zero at the start): a conditioned trunk begins as the pretrained one.
    """

    def __init__(
        self,
        family: str,
        in_channels: int,
        weights: str | None,
        norm: str,
        statistics: str,
        time_dim: int | None,
        attention: AttentionPlan,
    ) -> None:
        super().__init__()
        self.trunk = load_trunk(family, weights)
        if in_channels != 3:
            _widen_stem(self.trunk, in_channels, pretrained=weights is not None)
        if norm in ("frozen", "group"):
            replace_batch_norm(self.trunk, norm)
        use_products(self.trunk)
        mean, std = (IMAGENET_MEAN, IMAGENET_STD) if statistics == "imagenet" else ((0.0,) * 3, (1.0,) * 3)
        # pixels p in [-1, 1]: ((p + 1) / 2 - mean) / std; channels past the third stay as they are
        scale = torch.tensor([0.5 / s for s in std] + [1.0] * (in_channels - 3))
        shift = torch.tensor([(0.5 - m) / s for m, s in zip(mean, std, strict=True)] + [0.0] * (in_channels - 3))
        self.scale: Tensor
        self.shift: Tensor
        self.register_buffer("scale", scale[:in_channels, None, None], persistent=False)
        self.register_buffer("shift", shift[:in_channels, None, None], persistent=False)

        self.times, self.attentions = nn.ModuleDict(), LevelAttention()
        self.plan: list[list[str]] = []  # names of the blocks of each level, strides 2, 4, ...
        self.skips: list[tuple[int, int]] = []
        for level, names, channels in pyramid(self.trunk, in_channels):
            self.plan.append(names)
            self.skips.append((level, channels[-1]))
            for name, width in zip(names, channels, strict=True):
                if time_dim and any(self.trunk.get_submodule(name).children()):
                    self.times[name.replace(".", "_")] = TimeModulation(time_dim, width)
            self.attentions.add(attention, level, channels[-1])
        self.out_level, self.out_channels = self.skips.pop()

    def trunk_modules(self) -> list[nn.Module]:
        return [self.trunk]

    def level_modules(self, count: int) -> list[nn.Module]:
        return [self.trunk.get_submodule(name) for names in self.plan[:count] for name in names]

    def _level(self, names: list[str], h: Tensor, temb: Tensor | None) -> Tensor:
        for name in names:
            h = self.trunk.get_submodule(name)(h)
            if is_exporting():  # convnext permutes: strides would tie an export to batches of two or more
                h = h.contiguous()
            key = name.replace(".", "_")
            if temb is not None and key in self.times:
                h = self.times[key](h, temb)
        return h

    def forward(self, x: Tensor, condition: ForwardState) -> tuple[Skips, Tensor]:
        x = x * self.scale + self.shift
        maps: Skips = []
        levels = [*[level for level, _ in self.skips], self.out_level]
        for level, names in zip(levels, self.plan, strict=True):
            x = condition.run(partial(self._level, names), x, condition.temb, within=self.trunk)
            x = self.attentions(level, x, condition)
            maps.append(condition.keep(f"encoder.{level}", x))  # (B, C, H / 2^level, W / 2^level)
        return maps[:-1], maps[-1]


class ResidualEncoder(nn.Module):
    """The denoiser's path of Ho et al. 2020 and Rombach et al. 2022: a skip after conv_in, after every block and after
    every downsampler. Tensor names are diffusers'."""

    def __init__(
        self,
        in_channels: int,
        channels: list[int],
        options: ResidualConfig,
        time_dim: int | None,
        attention: AttentionPlan,
    ) -> None:
        super().__init__()
        self.conv_in = nn.Conv2d(in_channels, channels[0], 3, padding=1)
        self.down_blocks = nn.ModuleList()
        self.skips = [(0, channels[0])]
        previous = channels[0]
        for level, width in enumerate(channels):
            last = level == len(channels) - 1
            self.down_blocks.append(DownBlock(previous, width, level, last, options, time_dim, attention))
            self.skips += [(level, width)] * options.layers_per_block + ([] if last else [(level + 1, width)])
            previous = width
        self.out_level, self.out_channels = len(channels) - 1, channels[-1]

    def trunk_modules(self) -> list[nn.Module]:
        return [self]

    def level_modules(self, count: int) -> list[nn.Module]:
        return [self.conv_in, *list(self.down_blocks)[:count]] if count else []

    def forward(self, x: Tensor, condition: ForwardState) -> tuple[Skips, Tensor]:
        h = self.conv_in(x)
        skips = [h]
        for level, block in enumerate(self.down_blocks):
            h = block(h, condition, skips, f"encoder.{level}")
        return skips, h


class DownBlock(nn.Module):
    """A level on the way down: residual blocks, each with its attention, then a downsampler."""

    def __init__(
        self,
        in_channels: int,
        channels: int,
        level: int,
        last: bool,
        options: ResidualConfig,
        time_dim: int | None,
        attention: AttentionPlan,
    ) -> None:
        super().__init__()
        self.resnets, self.attentions = nn.ModuleList(), nn.ModuleList()
        for layer in range(options.layers_per_block):
            self.resnets.append(resnet_block(in_channels if layer == 0 else channels, channels, options, time_dim))
            block = attention.block(level, channels)
            if block is not None:
                self.attentions.append(block)
        if last:
            self.downsamplers = nn.ModuleList()
        elif options.resample == "resnet":
            self.downsamplers = nn.ModuleList([resnet_block(channels, channels, options, time_dim, resample="down")])
        else:
            self.downsamplers = nn.ModuleList([Downsample(channels, options.downsample_padding)])

    def forward(self, h: Tensor, condition: ForwardState, skips: Skips, name: str) -> Tensor:
        for layer, resnet in enumerate(self.resnets):
            h = condition.run(resnet, h, condition.temb)
            if len(self.attentions):
                h = condition.run(self.attentions[layer], h, condition.context)
            skips.append(condition.keep(f"{name}.{layer}", h))
        for downsampler in self.downsamplers:
            h = condition.run(downsampler, h, condition.temb)
            skips.append(h)
        return h


def resnet_block(
    in_channels: int,
    channels: int,
    options: ResidualConfig,
    time_dim: int | None,
    resample: str | None = None,
) -> ResnetBlock:
    """A residual block with the family's options."""
    return ResnetBlock(
        in_channels,
        channels,
        time_dim,
        groups=options.norm_num_groups,
        eps=options.norm_eps,
        scale_shift=options.time_scale_shift == "scale_shift",
        dropout=options.dropout,
        resample=resample,
    )


def load_trunk(family: str, weights: str | None) -> nn.Module:
    """A torchvision classifier without its classifier: random, with ImageNet weights, or from a safetensors file.

    The file has torchvision's names (`save_file(torchvision.models.resnet18(weights="DEFAULT").state_dict(), path)`).

    Raises:
        UserError: for a file that is missing, a pickle, no safetensors file, or of another network.

    Warns:
        UserWarning: the file holds the classifier's tensors too; it names them.
    """
    trunk = torchvision.models.get_model(family, weights="DEFAULT" if weights == "imagenet" else None)
    for name in CLASSIFIER:
        if hasattr(trunk, name):
            delattr(trunk, name)
    if weights is None or weights == "imagenet":
        return trunk
    try:
        state = read_tensors(Path(weights))
    except UserError as error:
        raise UserError(f'model.encoder.weights: {error}; give a safetensors file, "imagenet" or null') from None
    unused = [name for name in state if name.split(".")[0] in CLASSIFIER]
    state = {name: tensor for name, tensor in state.items() if name not in unused}
    expected = {k: v for k, v in trunk.state_dict().items() if not k.endswith("num_batches_tracked")}
    wrong = [k for k in expected if k not in state or state[k].shape != expected[k].shape]
    foreign = [k for k in state if k not in trunk.state_dict()]
    if wrong or foreign:
        raise UserError(
            f"model.encoder.weights: '{weights}' does not hold torchvision's {family}: "
            f"{len(wrong)} tensors missing or of another shape {wrong[:2]}, {len(foreign)} unknown {foreign[:2]}"
        )
    if unused:
        left_out = f"{', '.join(unused)}: the classifier's, which a trunk has not; left out"
        warnings.warn(f"model.encoder.weights: '{weights}': {left_out}", UserWarning, stacklevel=2)
    trunk.load_state_dict(state, strict=False)
    return trunk


def pyramid(trunk: nn.Module, in_channels: int) -> list[tuple[int, list[str], list[int]]]:
    """Group a trunk's blocks by the size of what they put out: (level, names, channels of each), finest first."""
    names = list(_block_names(trunk, ""))
    training = trunk.training
    trunk.eval()
    levels: list[tuple[int, list[str], list[int]]] = []
    with torch.no_grad():
        h = torch.zeros(1, in_channels, 64, 64)
        for name in names:
            h = trunk.get_submodule(name)(h)
            level = (64 // h.shape[-1]).bit_length() - 1
            if not levels or levels[-1][0] != level:
                levels.append((level, [], []))
            levels[-1][1].append(name)
            levels[-1][2].append(h.shape[1])
    trunk.train(training)
    return levels


def _block_names(module: nn.Module, prefix: str) -> Iterator[str]:
    """Names of the blocks in the order they run: plain Sequentials are opened, everything else is one block."""
    for name, child in module.named_children():
        path = f"{prefix}{name}"
        if type(child) is nn.Sequential:
            yield from _block_names(child, f"{path}.")
        else:
            yield path


def _widen_stem(trunk: nn.Module, in_channels: int, pretrained: bool) -> None:
    """Give the first convolution `in_channels` inputs; of a pretrained one, the first three keep their weights."""
    for module in trunk.modules():
        for name, child in module.named_children():
            if isinstance(child, nn.Conv2d):
                new = nn.Conv2d(
                    in_channels,
                    child.out_channels,
                    child.kernel_size,  # type: ignore[arg-type]
                    child.stride,  # type: ignore[arg-type]
                    child.padding,  # type: ignore[arg-type]
                    bias=child.bias is not None,
                )
                with torch.no_grad():
                    if pretrained:
                        new.weight.zero_()
                        shared = min(3, in_channels)
                        new.weight[:, :shared] = child.weight[:, :shared]
                        if child.bias is not None and new.bias is not None:
                            new.bias.copy_(child.bias)
                setattr(module, name, new)
                return


def build_encoder(
    in_channels: int,
    config: EncoderConfig,
    channels: list[int],
    norm: str,
    residual: ResidualConfig,
    time_dim: int | None,
    attention: AttentionPlan,
) -> ClassicEncoder | TrunkEncoder | ResidualEncoder:
    """The encoder of a family."""
    if config.name == "classic":
        return ClassicEncoder(in_channels, channels, norm, config.padding, time_dim, attention)
    if config.name == "residual":
        return ResidualEncoder(in_channels, channels, residual, time_dim, attention)
    return TrunkEncoder(config.name, in_channels, config.weights, norm, config.statistics, time_dim, attention)
