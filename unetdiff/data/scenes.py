"""The embedded set: real handwritten digits on textured backgrounds, 32x32 RGB, made by seed.

The digits are the 1,797 of scikit-learn's `load_digits` (UCI, 8x8, real handwriting), a fixed fifth of each
class kept for validation, so that no digit image is in both splits. A scene has an image, a pixel mask
(digit + 1), a class, a colour and a caption, and is a pure function of (seed, split, index): a larger set
begins with the smaller one. Of the training split it is one of the pairings held out as well.
"""

from __future__ import annotations

from functools import cache
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as tF
from einops import rearrange, repeat
from numpy.typing import NDArray
from torch import Tensor

from unetdiff.data.base import ImageDataset
from unetdiff.data.config import AugmentConfig, ScenesConfig
from unetdiff.data.hashing import hash_words, uniform
from unetdiff.data.prompt import COLORS, DIGITS, Prompt, caption_of, prompts, trained_pairs
from unetdiff.data.sampling import SampleKey
from unetdiff.data.transforms import Transform
from unetdiff.errors import UserError

SIZE = 32
"""Height and width of a scene in pixels."""
PALETTE = np.array(
    [
        (0, 0, 0), (31, 119, 180), (255, 127, 14), (44, 160, 44), (214, 39, 40), (148, 103, 189),
        (140, 86, 75), (227, 119, 194), (160, 160, 160), (188, 189, 34), (23, 190, 207),
    ],
    np.uint8,
)  # fmt: skip
"""Colours of the mask: black, then the ten of matplotlib's tab10."""

_ON_DARK = np.array(
    [(230, 45, 40), (45, 185, 75), (60, 120, 250), (250, 215, 50), (175, 75, 220), (248, 248, 245)],
    np.float32,
)
_ON_LIGHT = np.array(
    [(205, 25, 30), (15, 130, 50), (30, 70, 215), (245, 205, 20), (130, 40, 170), (250, 250, 250)], np.float32
)
_NEEDS_DARK = np.array([False, False, False, True, False, True])
_INK = 0.45  # share of full ink above which a pixel belongs to the digit
# Smallest and largest height of a digit in pixels, and cells a side of the grid that keeps digits apart.
_LAYOUT = {1: (18.0, 28.0, 1), 2: (13.0, 18.0, 2), 3: (13.0, 17.0, 2), 4: (12.0, 16.0, 2)}
_LAYOUT_MANY = (9.0, 11.5, 3)
_CHUNK = 1000
_ATTEMPTS = 50  # draws of distinct colours for the digits of a scene, before they are drawn apart
_SPLITS = {"train": 0, "val": 1}


class Scenes(ImageDataset):
    """The scenes of a split, all made at construction and held as uint8.

    Args:
        split, config, size, augment: see `build_dataset`.
        segmentation: give masks.
        layout: give masks, resized with the image (see `Transform`).

    Raises:
        UserError: a number of digits, a clutter or pairings that cannot be, or an empty split.
    """

    def __init__(
        self,
        split: Literal["train", "val"],
        config: ScenesConfig,
        size: list[int] | None = None,
        augment: AugmentConfig | None = None,
        segmentation: bool = True,
        layout: bool = False,
    ) -> None:
        count = config.train_images if split == "train" else config.val_images
        if count < 1:
            raise UserError(f"data.scenes.{split}_images={count}: give 1 or more")
        if not 1 <= config.digits <= 9:
            raise UserError(f"data.scenes.digits={config.digits}: give 1 to 9")
        if not 0 <= config.clutter <= 1:
            raise UserError(f"data.scenes.clutter={config.clutter}: give 0 (plain) to 1")
        if not 0 <= config.spread <= 1:
            raise UserError(f"data.scenes.spread={config.spread}: give 0 (all alike) to 1 (anywhere, at any size)")
        if not 1 <= config.colors <= len(COLORS):
            raise UserError(f"data.scenes.colors={config.colors}: give 1 to {len(COLORS)} ({', '.join(COLORS)})")
        trained_pairs(config)
        self.split = split
        self.masked = segmentation or layout
        self.classes = ["background", *DIGITS] if self.masked else []
        self.palette = PALETTE if self.masked else PALETTE[:0]
        self.labels = list(DIGITS)
        self.config = config
        self.transform = Transform(size, augment, layout=layout)
        chunks = [
            _make(split, config, np.arange(first, min(first + _CHUNK, count))) for first in range(0, count, _CHUNK)
        ]
        self.images = torch.cat([chunk[0] for chunk in chunks])  # (N, 3, H, W)
        self.masks = torch.cat([chunk[1] for chunk in chunks])  # (N, H, W)
        self.digits = np.concatenate([chunk[2] for chunk in chunks])  # (N, D)
        self.colors = np.concatenate([chunk[3] for chunk in chunks])  # (N, D)

    def __len__(self) -> int:
        return len(self.images)

    def sample_name(self, index: int) -> str:
        return f"scenes/{self.split}/{index:06d}"

    def caption(self, index: int) -> str:
        """E.g. "a red seven and a blue two"; the largest digit first."""
        return caption_of(self.digits[index], self.colors[index])

    def prompts(self) -> list[Prompt]:
        """Every digit in every colour that these scenes have, and whether that pairing is held out of training."""
        return prompts(self.config)

    def mask(self, index: int) -> Tensor:
        return self.masks[self.sample_index(index)]

    def __getitem__(self, key: int | SampleKey) -> dict[str, Any]:
        """The item of `ImageDataset`, with "label" the largest digit and "color" its index in `COLORS`.

        "labels" are all its digits, whatever of them a crop leaves.
        """
        index = self.sample_index(key)
        image, mask = self.transform(self.images[index], self.masks[index] if self.masked else None, key)
        item: dict[str, Any] = {"image": image, "name": self.sample_name(index)}
        if mask is not None:
            item["mask"] = mask
        item["label"] = int(self.digits[index, 0])
        item["labels"] = tuple(sorted(set(self.digits[index].tolist())))
        item["color"] = int(self.colors[index, 0])
        item["caption"] = self.caption(index)
        return item


@cache
def _source() -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    from sklearn.datasets import load_digits  # slow to import; needed only here

    bunch = load_digits()
    return (bunch.images / 16.0).astype(np.float32), bunch.target.astype(np.int64)  # (1797, 8, 8) in [0, 1]


@cache
def _columns() -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """First column with ink, and the one after the last, of each of the 1,797 images."""
    inked = _source()[0].max(axis=1) > _INK  # (1797, 8)
    return inked.argmax(axis=1), 8 - inked[:, ::-1].argmax(axis=1)


def split_digits(split: Literal["train", "val"]) -> list[NDArray[np.int64]]:
    """For each class 0..9 the numbers of its images in `load_digits` that `split` has; a fifth is val's."""
    _, target = _source()
    rows = []
    for digit in range(10):
        of_class = np.flatnonzero(target == digit)
        order = np.argsort(uniform(hash_words(digit), of_class, 1)[:, 0])
        held_out = len(of_class) // 5
        rows.append(np.sort(of_class[order[:held_out] if split == "val" else order[held_out:]]))
    return rows


def _make(
    split: Literal["train", "val"], config: ScenesConfig, indices: NDArray[np.int64]
) -> tuple[Tensor, Tensor, NDArray[np.int64], NDArray[np.int64]]:
    """Scenes of some indices: images (N,3,H,W) and masks (N,H,W) uint8, digit classes and colour indices (N,
    D).
    """
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
        colors = _with_trained(digits, colors, trained_pairs(config), stream, indices)
    heights = -np.sort(-(low + (high - low) * draw[3]), axis=1)  # the first digit is the largest
    first, last = _columns()
    widths = heights / 8 * (last - first)[sources]
    angles = np.deg2rad(12.0) * (2 * draw[7] - 1)
    lean = 0.6 * np.abs(np.sin(angles))  # strokes seldom reach the corners of their box: less than sin
    extent = np.stack([widths + lean * heights + 1, np.minimum(heights + lean * widths, SIZE)], axis=-1)
    centres = _centres(draw[4], draw[5], draw[6], extent, cells, config.spread)

    dark = (uniform(hash_words(stream, 2), indices, 1)[:, 0] < 0.55) | _NEEDS_DARK[colors].any(axis=1)
    pixels = _backgrounds(stream, indices, config.clutter, dark)  # (N, 3, H, W) in [0, 255]
    masks = torch.zeros(len(indices), SIZE, SIZE, dtype=torch.uint8)
    for d in reversed(range(config.digits)):  # the largest is painted last: nothing hides it
        ink = _ink(sources[:, d], centres[:, d], heights[:, d], angles[:, d])  # (N, H, W)
        # Ink climbs from 0 to 1 over about one cell of the 8x8 source; times a cell's pixels, the edge would be
        # one pixel wide. A little sharper still leaves nothing see-through where the ink is pale.
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


def _distinct(draw: NDArray[np.float64], kinds: int) -> NDArray[np.int64]:
    """(N, D) draws to values 0..kinds-1 that differ within a row, as long as there are enough."""
    count, digits = draw.shape
    values = np.zeros((count, digits), np.int64)
    for first in range(0, digits, kinds):
        left = np.tile(np.arange(kinds), (count, 1))
        for d in range(first, min(first + kinds, digits)):
            pick = (draw[:, d] * left.shape[1]).astype(np.int64)
            values[:, d] = left[np.arange(count), pick]
            keep = np.arange(left.shape[1])[None] != pick[:, None]
            left = rearrange(left[keep], "(n k) -> n k", n=count)
    return values


def _with_trained(
    digits: NDArray[np.int64],
    colors: NDArray[np.int64],
    trained: NDArray[np.bool_],
    stream: int,
    indices: NDArray[np.int64],
) -> NDArray[np.int64]:
    """The colours (N, D), drawn anew in rows where a digit has one that is held out of training for it.

    `trained` is (10, colours). Where no draw of distinct colours fits, a digit's is drawn apart from the others'.
    """
    kinds, colors = trained.shape[1], colors.copy()
    for attempt in range(_ATTEMPTS):
        wrong = ~trained[digits, colors].all(axis=1)
        if not wrong.any():
            return colors
        draw = uniform(hash_words(stream, 6, attempt), indices[wrong], digits.shape[1])
        colors[wrong] = _distinct(draw, kinds)
    wrong = ~trained[digits, colors].all(axis=1)
    draw = uniform(hash_words(stream, 7), indices[wrong], digits.shape[1])  # (M, D)
    there = trained[digits[wrong]]  # (M, D, colours)
    nth = (draw * there.sum(axis=-1)).astype(np.int64)
    colors[wrong] = (there.cumsum(axis=-1) > nth[:, :, None]).argmax(axis=-1)
    return colors


def _centres(
    order: NDArray[np.float64],
    across: NDArray[np.float64],
    down: NDArray[np.float64],
    extent: NDArray[np.float64],
    cells: int,
    spread: float,
) -> NDArray[np.float64]:
    """Centres (N, D, 2) as (x, y) in pixels: each digit in a grid cell of its own, and within the scene.

    `extent` (N, D, 2) is each digit's width and height in pixels.
    """
    cell = _distinct(order, cells * cells)  # (N, D)
    corner = np.stack([cell % cells, cell // cells], axis=-1) * (SIZE / cells)
    inside = corner + np.stack([across, down], axis=-1) * (SIZE / cells)
    middle = corner + SIZE / cells / 2
    centre = middle + (inside - middle) * spread * (1.0 if cells == 1 else 0.35)
    return np.clip(centre, extent / 2, SIZE - extent / 2)


def _ink(
    sources: NDArray[np.int64],
    centres: NDArray[np.float64],
    heights: NDArray[np.float64],
    angles: NDArray[np.float64],
) -> Tensor:
    """Digits enlarged (bicubic), turned and moved to their places: share of ink, (N, H, W)."""
    images, _ = _source()
    digit = rearrange(torch.from_numpy(images[sources]), "n h w -> n 1 h w")
    digit = tF.pad(digit, (2, 2, 2, 2))  # the kernel of bicubic sees paper beyond the border: 12x12
    # Columns of ink are not centred in every image: move each digit's own middle to its place.
    first, last = _columns()
    middle = torch.from_numpy((first + last)[sources] / 8 - 1).to(torch.float32) * (8 / 12)
    zoom = torch.from_numpy(SIZE / heights * 8 / 12).to(torch.float32)
    place = torch.from_numpy(2 * centres / SIZE - 1).to(torch.float32)  # (N, 2) in [-1, 1]
    angle = torch.from_numpy(angles).to(torch.float32)
    turn = torch.stack([angle.cos(), -angle.sin(), angle.sin(), angle.cos()], dim=-1)
    matrix = zoom[:, None, None] * rearrange(turn, "n (i j) -> n i j", i=2)
    shift = -torch.einsum("nij,nj->ni", matrix, place)
    shift[:, 0] += middle
    grid = tF.affine_grid(torch.cat([matrix, shift[:, :, None]], dim=2), [len(sources), 1, SIZE, SIZE], False)
    ink = tF.grid_sample(digit, grid, mode="bicubic", padding_mode="zeros", align_corners=False)
    return rearrange(ink, "n 1 h w -> n h w")


def _backgrounds(stream: int, indices: NDArray[np.int64], clutter: float, dark: NDArray[np.bool_]) -> Tensor:
    """Muted textures (N, 3, H, W) in [0, 255]: a colour field, stripes, checkers or cloudy noise."""
    u = torch.from_numpy(uniform(hash_words(stream, 4), indices, 12).astype(np.float32))  # (N, 12)
    fine = torch.from_numpy(uniform(hash_words(stream, 5), indices, 3 * 16 + 14 * 14).astype(np.float32))

    # Rotated coordinates in pixels.
    angle = u[:, 0, None, None] * torch.pi
    line = torch.arange(SIZE, dtype=torch.float32) - (SIZE - 1) / 2
    y, x = line[:, None], line[None, :]
    along = x * angle.cos() + y * angle.sin()  # (N, H, W)
    beside = y * angle.cos() - x * angle.sin()
    wave = 2 * torch.pi / (5 + 9 * u[:, 1, None, None])  # a period of 5 to 14 pixels
    stripes = torch.tanh(2.5 * torch.sin(wave * along + 6.28 * u[:, 2, None, None]))
    checkers = torch.tanh(3 * torch.sin(wave * along + 6.28 * u[:, 2, None, None])) * torch.tanh(
        3 * torch.sin(wave * beside + 6.28 * u[:, 3, None, None])
    )
    speckle = 2 * rearrange(fine[:, 48:], "n (h w) -> n h w", h=14) - 1
    noise = 1.4 * _enlarge(speckle, align_corners=False)
    kind = (u[:, 4, None, None] * 4).to(torch.int64)  # 0: the slow field alone
    pattern = stripes * (kind == 1) + checkers * (kind == 2) + noise * (kind == 3)  # (N, H, W) about [-1, 1]

    # Every scene has a slow field of colour; where it is the only texture it is stronger. Half of it is grey.
    field = 2 * rearrange(fine[:, :48], "n (c h w) -> n c h w", c=3, h=4) - 1
    field = _enlarge(0.5 * field + 0.5 * field.mean(dim=1, keepdim=True), align_corners=True)
    strength = torch.where(kind == 0, 64.0, 24.0)[:, None]

    level = torch.where(torch.from_numpy(dark), 38 + 46 * u[:, 5], 178 + 46 * u[:, 5])  # brightness
    base = level[:, None] + 40 * (u[:, 6:9] - 0.5)
    direction = 1.0 + 0.9 * (u[:, 9:12] - 0.5)  # light and dark of a texture differ a little in hue
    pixels = (clutter * 45.0 * pattern)[:, None] * direction[:, :, None, None]
    pixels += (clutter * strength) * field
    pixels += base[:, :, None, None]
    return pixels.clamp_(8, 247)


def _enlarge(grid: Tensor, align_corners: bool) -> Tensor:
    """(..., n, n) to (..., SIZE, SIZE), bicubic; as two matrix products, many times quicker than on small
    maps.
    """
    n = grid.shape[-1]
    unit = torch.eye(n)[None, None]
    rows = tF.interpolate(unit, size=(SIZE, n), mode="bicubic", align_corners=align_corners)[0, 0]  # (SIZE, n)
    return rows @ grid @ rows.T
