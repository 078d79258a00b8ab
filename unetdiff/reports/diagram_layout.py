"""The layout of the diagram: one group of slabs per level, descending in the encoder and ascending in the decoder."""

from __future__ import annotations

import math
from dataclasses import dataclass

from unetdiff.reports.network_spec import NetworkSpec

GAP = 3.0  # between the slabs of a block


MAX_BARS = 12
"""Blocks of a level that are drawn."""


@dataclass(frozen=True)
class Slab:
    """One block of the network as a bar: the height stands for its resolution, the width for its channels."""

    x: float
    y: float
    width: float
    height: float
    attention: bool


@dataclass(frozen=True)
class LevelLayout:
    """Position of one level in the encoder or decoder: its slabs, and where the timestep and the tokens enter."""

    x: float
    y: float
    width: float
    height: float
    slabs: tuple[Slab, ...]
    timestep: bool
    tokens: bool

    @property
    def right(self) -> float:
        return self.x + self.width

    @property
    def bottom(self) -> float:
        return self.y + self.height

    @property
    def center(self) -> float:
        return self.x + self.width / 2

    @property
    def timestep_x(self) -> float:
        """x of the timestep's line."""
        return self.center - (5.0 if self.tokens else 0.0)

    @property
    def tokens_x(self) -> float:
        """x of the tokens' line."""
        return self.center + (5.0 if self.timestep else 0.0)


def place_levels(
    spec: NetworkSpec, left: float, right: float, top: float, wide: bool
) -> tuple[dict[int, LevelLayout], dict[int, LevelLayout], LevelLayout]:
    """The positions of the encoder's levels, the decoder's levels, and the mid block."""
    levels = spec.levels
    finest = levels[0].stride
    tall = 104.0 if wide else 78.0
    row_gap = 24.0 if wide else 22.0
    heights = [max(20.0, tall * math.sqrt(finest / level.stride)) for level in levels]
    middle_height = heights[-1] if spec.name == "residual" else max(18.0, heights[-1] * 0.75)
    tops = [top]
    for height in heights:
        tops.append(tops[-1] + height + row_gap)

    known = [c for level in levels for c in (level.encoder_channels, level.decoder_channels) if c]
    base = min(known or [1])

    def widths(channels: int | None, layers: int, attention: bool) -> list[tuple[float, bool]]:
        main = min(3.4, math.sqrt((channels or base) / base))
        bars: list[tuple[float, bool]] = []
        for _ in range(min(layers, MAX_BARS)):
            bars.append((main, False))
            if attention:
                bars.append((0.8, True))
        return bars

    down_bars = [widths(level.encoder_channels, level.encoder_layers, level.attention) for level in levels]
    up_bars = [widths(level.decoder_channels, level.decoder_layers, level.attention) for level in levels]
    middle_bars = widths(spec.mid_block_channels, spec.mid_block_layers, False)
    if spec.mid_block_attention:
        middle_bars.insert(1, (0.8, True))

    # The unit of width for which the levels and the gap in the center fill the available width.
    step = 16.0 if wide else 7.0
    center_gap = 150.0 if wide else 92.0
    bars = [bar for side in (*down_bars, *up_bars) for bar in side]
    fixed = sum(GAP * max(0, len(side) - 1) for side in (*down_bars, *up_bars)) + step * (2 * len(levels) - 2)
    unit = (right - left - fixed - center_gap) / max(1e-6, sum(width for width, _ in bars))
    unit = max(2.0, min(unit, 13.0 if wide else 6.0))

    def place(x: float, y: float, height: float, side: list[tuple[float, bool]], mirrored: bool) -> LevelLayout:
        total = sum(w * unit for w, _ in side) + GAP * max(0, len(side) - 1)
        x = x - total if mirrored else x
        slabs, at = [], x
        for width, attention in side:
            inset = height * 0.14 if attention else 0.0
            slabs.append(Slab(at, y + inset, width * unit, height - 2 * inset, attention))
            at += width * unit + GAP
        tokens = spec.cross_attention_dim is not None and any(attention for _, attention in side)
        return LevelLayout(x, y, total, height, tuple(slabs), spec.timestep, tokens)

    downs: dict[int, LevelLayout] = {}
    ups: dict[int, LevelLayout] = {}
    x_down, x_up = left, right
    for index, (y, height) in enumerate(zip(tops, heights, strict=False)):
        if down_bars[index]:
            downs[index] = place(x_down, y, height, down_bars[index], mirrored=False)
            x_down = downs[index].right + step
        ups[index] = place(x_up, y, height, up_bars[index], mirrored=True)
        x_up = ups[index].x - step
    total = sum(w * unit for w, _ in middle_bars) + GAP * max(0, len(middle_bars) - 1)
    center = (x_down + x_up) / 2
    return downs, ups, place(center - total / 2, tops[-1], middle_height, middle_bars, mirrored=False)
