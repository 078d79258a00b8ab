"""A segmentation head on the maps of all decoder levels, for backbones at a fraction of the image's size."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from unetdiff.models.attention import AttentionRecorder
from unetdiff.models.blocks import init_xavier_, make_norm, norm_groups, upsample_nearest


class PyramidHead(nn.Module):
    """Semantic FPN (Kirillov et al. 2019, figures 1 and 3) on the last map of every decoder level.

    A feature pyramid first (Lin et al. 2017): a normalized map of each level, projected to `channels`, added to the
    coarser level's upsampled map, and smoothed. Each level then goes through stages of convolution, norm, ReLU and
    bilinear upsampling up to the finest level, where all are added and classified.

    Args:
        maps: channels of each level's map by its name in `UNet.features`, finest first.
        channels: of the pyramid.
        num_classes: number of logits.
        groups: of the norm of each level's map.
        eps: its epsilon.
        tokens: channels of cross-attention maps by the map's name; levels without have none.
    """

    def __init__(
        self,
        maps: Mapping[str, int],
        channels: int,
        num_classes: int,
        groups: int,
        eps: float,
        tokens: Mapping[str, int] | None = None,
    ) -> None:
        super().__init__()
        self.map_names, self.tokens = tuple(maps), dict(tokens or {})
        self.norms = nn.ModuleList([nn.GroupNorm(norm_groups(width, groups), width, eps) for width in maps.values()])
        self.laterals = nn.ModuleList(
            [init_xavier_(nn.Conv2d(width + self.tokens.get(name, 0), channels, 1)) for name, width in maps.items()]
        )
        self.smooth = nn.ModuleList([init_xavier_(nn.Conv2d(channels, channels, 3, padding=1)) for _ in maps])
        self.stages = nn.ModuleList(
            [nn.ModuleList([_stage(channels) for _ in range(max(1, level))]) for level in range(len(maps))]
        )
        self.conv = nn.Conv2d(channels, num_classes, 1)

    def forward(self, h: Tensor, maps: Mapping[str, Tensor], attention: AttentionRecorder | None = None) -> Tensor:
        """Logits (B, num_classes, h, w) at the size of the finest level.

        Args:
            h: the decoder's last map; unused, as it is the finest level's.
            maps: (B, C, h, w) by name.
            attention: the recorded cross-attention, if the head has `tokens`.

        Raises:
            UserError: another number of tokens than the head has.
        """
        levels = [self._lateral(index, maps[name], attention) for index, name in enumerate(self.map_names)]
        for finer in range(len(levels) - 2, -1, -1):
            coarser = upsample_nearest(levels[finer + 1], _size(levels[finer]))
            levels[finer] = levels[finer] + coarser
        sizes, total = [_size(level) for level in levels], torch.zeros((), device=h.device, dtype=h.dtype)
        for index, level in enumerate(levels):
            level = self.smooth[index](level)
            stages: Any = self.stages[index]
            for step, stage in enumerate(stages):
                level = stage(level)
                if index:
                    level = F.interpolate(level, size=sizes[index - 1 - step], mode="bilinear", align_corners=False)
            total = total + level
        return self.conv(total)  # type: ignore[no-any-return]

    def _lateral(self, index: int, h: Tensor, attention: AttentionRecorder | None) -> Tensor:
        """A level's map (B, C, h, w), with its attention maps, projected to the pyramid's channels."""
        x, tokens = self.norms[index](h), self.tokens.get(self.map_names[index])
        if tokens:
            assert attention is not None
            # a softmax over M tokens is 1/M on average
            x = torch.cat([x, (attention.maps(_size(h)) * tokens).to(x.dtype)], dim=1)
        return self.laterals[index](x)  # type: ignore[no-any-return]


def _stage(channels: int) -> nn.Sequential:
    """3x3 convolution, GroupNorm, ReLU (Kirillov et al. 2019, section 3)."""
    conv = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
    nn.init.kaiming_normal_(conv.weight, nonlinearity="relu")
    return nn.Sequential(conv, make_norm("group", channels), nn.ReLU(inplace=True))


def _size(h: Tensor) -> tuple[int, int]:
    return h.shape[-2], h.shape[-1]
