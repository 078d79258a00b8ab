"""Rendering of scenes: digits, colors, positions and backgrounds drawn by seed, blended and noised."""

from __future__ import annotations

from functools import cache
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as tF
from einops import rearrange, repeat
from numpy.typing import NDArray
from torch import Tensor

from unetdiff.data.config import ScenesConfig
from unetdiff.data.hashing import hash_words, uniform
from unetdiff.data.prompt import trained_pairs

SIZE = 32
"""Height and width of a scene in pixels."""

_ON_DARK = np.array(
    [(230, 45, 40), (45, 185, 75), (60, 120, 250), (250, 215, 50), (175, 75, 220), (248, 248, 245)],
    np.float32,
)
_ON_LIGHT = np.array(
    [(205, 25, 30), (15, 130, 50), (30, 70, 215), (245, 205, 20), (130, 40, 170), (250, 250, 250)], np.float32
)
_NEEDS_DARK = np.array([False, False, False, True, False, True])
_INK = 0.45  # ink above which a pixel belongs to the digit
# By number of digits: smallest and largest height of a digit in pixels, and cells per side of the grid of positions.
_LAYOUT = {1: (18.0, 28.0, 1), 2: (13.0, 18.0, 2), 3: (13.0, 17.0, 2), 4: (12.0, 16.0, 2)}
_LAYOUT_MANY = (9.0, 11.5, 3)
_ATTEMPTS = 50  # draws of distinct colors for a scene, before colors may repeat
_SPLITS = {"train": 0, "val": 1}


@cache
def _source() -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    from sklearn.datasets import load_digits  # slow to import; needed only here

    bunch = load_digits()
    return (bunch.images / 16.0).astype(np.float32), bunch.target.astype(np.int64)  # (1797, 8, 8) in [0, 1]


@cache
def _columns() -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """First column with ink and the one after the last, of each of the 1,797 images."""
    inked = _source()[0].max(axis=1) > _INK  # (1797, 8)
    return inked.argmax(axis=1), 8 - inked[:, ::-1].argmax(axis=1)


def split_digits(split: Literal["train", "val"]) -> list[NDArray[np.int64]]:
    """For each class 0..9, the indices of its images in `load_digits` that are in `split`; a fifth are in val."""
    _, target = _source()
    rows = []
    for digit in range(10):
        of_class = np.flatnonzero(target == digit)
        order = np.argsort(uniform(hash_words(digit), of_class, 1)[:, 0])
        num_val = len(of_class) // 5
        rows.append(np.sort(of_class[order[:num_val] if split == "val" else order[num_val:]]))
    return rows


def render_scenes(
    split: Literal["train", "val"], config: ScenesConfig, indices: NDArray[np.int64]
) -> tuple[Tensor, Tensor, NDArray[np.int64], NDArray[np.int64]]:
    """Scenes of some indices: images (N, 3, H, W) and masks (N, H, W), uint8; digits and color indices, (N, D)."""
    stream = hash_words(config.seed, _SPLITS[split])
    low, high, cells = _LAYOUT.get(config.digits, _LAYOUT_MANY)
    low = high - config.spread * (high - low)
    draw = rearrange(uniform(hash_words(stream, 1), indices, 10 * config.digits), "n (d k) -> k n d", k=10)

    pools = split_digits(split)
    digits = (draw[0] * 10).astype(np.int64)  # (N, D)
    lengths = np.array([len(pool) for pool in pools])
    table = np.stack([np.resize(pool, lengths.max()) for pool in pools])  # (10, longest)
    sources = table[digits, (draw[1] * lengths[digits]).astype(np.int64)]
    colors = _distinct(draw[2], config.colors)
    if split == "train":
        colors = _redraw_held_out(digits, colors, trained_pairs(config), stream, indices)
    heights = -np.sort(-(low + (high - low) * draw[3]), axis=1)  # the first digit is the largest
    first, last = _columns()
    widths = heights / 8 * (last - first)[sources]
    angles = np.deg2rad(12.0) * (2 * draw[7] - 1)
    lean = 0.6 * np.abs(np.sin(angles))  # less than sin: strokes rarely reach the corners of their box
    extent = np.stack([widths + lean * heights + 1, np.minimum(heights + lean * widths, SIZE)], axis=-1)
    centers = _centers(draw[4], draw[5], draw[6], extent, cells, config.spread)

    dark = (uniform(hash_words(stream, 2), indices, 1)[:, 0] < 0.55) | _NEEDS_DARK[colors].any(axis=1)
    pixels = _backgrounds(stream, indices, config.clutter, dark)  # (N, 3, H, W) in [0, 255]
    masks = torch.zeros(len(indices), SIZE, SIZE, dtype=torch.uint8)
    for d in reversed(range(config.digits)):  # the largest is painted last, on top
        ink = _ink(sources[:, d], centers[:, d], heights[:, d], angles[:, d])  # (N, H, W)
        # Ink rises from 0 to 1 over about one cell of the 8x8 source, heights / 8 pixels; this makes edges slightly
        # sharper than one pixel, so that pale strokes are opaque.
        sharpness = torch.from_numpy(1.6 * heights[:, d] / 8).to(torch.float32)[:, None, None]
        alpha = rearrange(((ink - _INK) * sharpness + 0.5).clamp(0, 1), "n h w -> n 1 h w")
        paint = np.where(dark[:, None], _ON_DARK[colors[:, d]], _ON_LIGHT[colors[:, d]])
        paint = paint * (0.94 + 0.08 * draw[8][:, d, None])
        color = rearrange(torch.from_numpy(paint.astype(np.float32)), "n c -> n c 1 1")
        pixels = pixels + alpha * (color - pixels)
        inside = ink > _INK
        masks[inside] = repeat(torch.from_numpy(digits[:, d] + 1), "n -> n h w", h=SIZE, w=SIZE)[inside].to(torch.uint8)
    grain = uniform(hash_words(stream, 3), indices, SIZE * SIZE).astype(np.float32)
    pixels = pixels + 6.0 * (rearrange(torch.from_numpy(grain), "n (h w) -> n 1 h w", h=SIZE) - 0.5)
    return pixels.round().clamp(0, 255).to(torch.uint8), masks, digits, colors


def _distinct(draw: NDArray[np.float64], num_values: int) -> NDArray[np.int64]:
    """(N, D) uniform draws to values 0..num_values-1, without repetition within a row while there are enough."""
    count, digits = draw.shape
    values = np.zeros((count, digits), np.int64)
    for first in range(0, digits, num_values):
        left = np.tile(np.arange(num_values), (count, 1))
        for d in range(first, min(first + num_values, digits)):
            pick = (draw[:, d] * left.shape[1]).astype(np.int64)
            values[:, d] = left[np.arange(count), pick]
            keep = np.arange(left.shape[1])[None] != pick[:, None]
            left = rearrange(left[keep], "(n k) -> n k", n=count)
    return values


def _redraw_held_out(
    digits: NDArray[np.int64],
    colors: NDArray[np.int64],
    trained: NDArray[np.bool_],
    stream: int,
    indices: NDArray[np.int64],
) -> NDArray[np.int64]:
    """Colors (N, D), redrawn for scenes with a pair of digit and color that is held out of training.

    `trained` is (10, colors), False for held-out pairs. If no draw of distinct colors fits, each digit's color is drawn
    independently.
    """
    num_colors, colors = trained.shape[1], colors.copy()
    for attempt in range(_ATTEMPTS):
        wrong = ~trained[digits, colors].all(axis=1)
        if not wrong.any():
            return colors
        draw = uniform(hash_words(stream, 6, attempt), indices[wrong], digits.shape[1])
        colors[wrong] = _distinct(draw, num_colors)
    wrong = ~trained[digits, colors].all(axis=1)
    draw = uniform(hash_words(stream, 7), indices[wrong], digits.shape[1])  # (M, D)
    allowed = trained[digits[wrong]]  # (M, D, colors)
    nth = (draw * allowed.sum(axis=-1)).astype(np.int64)
    colors[wrong] = (allowed.cumsum(axis=-1) > nth[:, :, None]).argmax(axis=-1)
    return colors


def _centers(
    order: NDArray[np.float64],
    across: NDArray[np.float64],
    down: NDArray[np.float64],
    extent: NDArray[np.float64],
    cells: int,
    spread: float,
) -> NDArray[np.float64]:
    """Centers (N, D, 2) as (x, y) in pixels: each digit in a separate grid cell, and inside the scene.

    `extent` (N, D, 2) is each digit's width and height in pixels.
    """
    cell = _distinct(order, cells * cells)  # (N, D)
    corner = np.stack([cell % cells, cell // cells], axis=-1) * (SIZE / cells)
    inside = corner + np.stack([across, down], axis=-1) * (SIZE / cells)
    middle = corner + SIZE / cells / 2
    center = middle + (inside - middle) * spread * (1.0 if cells == 1 else 0.35)
    return np.clip(center, extent / 2, SIZE - extent / 2)


def _ink(
    sources: NDArray[np.int64],
    centers: NDArray[np.float64],
    heights: NDArray[np.float64],
    angles: NDArray[np.float64],
) -> Tensor:
    """Digits enlarged (bicubic), rotated and moved to their positions: ink, (N, H, W)."""
    images, _ = _source()
    digit = rearrange(torch.from_numpy(images[sources]), "n h w -> n 1 h w")
    digit = tF.pad(digit, (2, 2, 2, 2))  # 12x12, so that the bicubic kernel is defined at the border
    # The ink is not centered in every image: move the middle of its columns to the position.
    first, last = _columns()
    middle = torch.from_numpy((first + last)[sources] / 8 - 1).to(torch.float32) * (8 / 12)
    zoom = torch.from_numpy(SIZE / heights * 8 / 12).to(torch.float32)
    place = torch.from_numpy(2 * centers / SIZE - 1).to(torch.float32)  # (N, 2) in [-1, 1]
    angle = torch.from_numpy(angles).to(torch.float32)
    turn = torch.stack([angle.cos(), -angle.sin(), angle.sin(), angle.cos()], dim=-1)
    matrix = zoom[:, None, None] * rearrange(turn, "n (i j) -> n i j", i=2)
    shift = -torch.einsum("nij,nj->ni", matrix, place)
    shift[:, 0] += middle
    grid = tF.affine_grid(torch.cat([matrix, shift[:, :, None]], dim=2), [len(sources), 1, SIZE, SIZE], False)
    ink = tF.grid_sample(digit, grid, mode="bicubic", padding_mode="zeros", align_corners=False)
    return rearrange(ink, "n 1 h w -> n h w")


def _backgrounds(stream: int, indices: NDArray[np.int64], clutter: float, dark: NDArray[np.bool_]) -> Tensor:
    """Muted textures (N, 3, H, W) in [0, 255]: a color field, stripes, checkers or cloudy noise."""
    u = torch.from_numpy(uniform(hash_words(stream, 4), indices, 12).astype(np.float32))  # (N, 12)
    fine = torch.from_numpy(uniform(hash_words(stream, 5), indices, 3 * 16 + 14 * 14).astype(np.float32))

    # Rotated coordinates in pixels.
    angle = u[:, 0, None, None] * torch.pi
    line = torch.arange(SIZE, dtype=torch.float32) - (SIZE - 1) / 2
    y, x = line[:, None], line[None, :]
    along = x * angle.cos() + y * angle.sin()  # (N, H, W)
    across_angle = y * angle.cos() - x * angle.sin()
    wave = 2 * torch.pi / (5 + 9 * u[:, 1, None, None])  # a period of 5 to 14 pixels
    stripes = torch.tanh(2.5 * torch.sin(wave * along + 6.28 * u[:, 2, None, None]))
    checkers = torch.tanh(3 * torch.sin(wave * along + 6.28 * u[:, 2, None, None])) * torch.tanh(
        3 * torch.sin(wave * across_angle + 6.28 * u[:, 3, None, None])
    )
    speckle = 2 * rearrange(fine[:, 48:], "n (h w) -> n h w", h=14) - 1
    noise = 1.4 * _enlarge(speckle, align_corners=False)
    kind = (u[:, 4, None, None] * 4).to(torch.int64)  # 0: the color field only
    pattern = stripes * (kind == 1) + checkers * (kind == 2) + noise * (kind == 3)  # (N, H, W) about [-1, 1]

    # Every scene has a slow color field, half of it gray; it is stronger where it is the only texture.
    field = 2 * rearrange(fine[:, :48], "n (c h w) -> n c h w", c=3, h=4) - 1
    field = _enlarge(0.5 * field + 0.5 * field.mean(dim=1, keepdim=True), align_corners=True)
    strength = torch.where(kind == 0, 64.0, 24.0)[:, None]

    level = torch.where(torch.from_numpy(dark), 38 + 46 * u[:, 5], 178 + 46 * u[:, 5])  # brightness
    base = level[:, None] + 40 * (u[:, 6:9] - 0.5)
    direction = 1.0 + 0.9 * (u[:, 9:12] - 0.5)  # light and dark differ slightly in hue
    pixels = (clutter * 45.0 * pattern)[:, None] * direction[:, :, None, None]
    pixels += (clutter * strength) * field
    pixels += base[:, :, None, None]
    return pixels.clamp_(8, 247)


def _enlarge(grid: Tensor, align_corners: bool) -> Tensor:
    """(..., n, n) to (..., SIZE, SIZE), bicubic, as two matrix products (faster than interpolate on small maps)."""
    n = grid.shape[-1]
    unit = torch.eye(n)[None, None]
    rows = tF.interpolate(unit, size=(SIZE, n), mode="bicubic", align_corners=align_corners)[0, 0]  # (SIZE, n)
    return rows @ grid @ rows.T
