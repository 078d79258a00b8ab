"""Sliding-window and multi-view inference: images are split into overlapping tiles, and their logits blended."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import product

import torch
import torch.nn.functional as F
from torch import Tensor

from unetdiff.data.geometry import reflected
from unetdiff.data.transforms import resize_image
from unetdiff.segmentation.config import InferenceConfig, validate_inference

__all__ = ["Tile", "blend_weights", "resize_logits", "split_into_tiles", "tile_starts", "tiled_logits"]

MAX_WAITING_BATCHES = 4  # tiles in these many batches may wait for others of their input size


def resize_logits(logits: Tensor, size: tuple[int, int]) -> Tensor:
    """Logits (B, C, h, w) -> (B, C, H, W), float32, bilinear. The argmax comes after this, never before."""
    logits = logits.float()
    if logits.shape[-2:] == size:
        return logits
    return F.interpolate(logits, size=size, mode="bilinear", align_corners=False)


def tile_starts(length: int, tile: int, overlap: float) -> list[int]:
    """First pixel of each tile along an axis: evenly spaced, the last tile ends with the image.

    Neighbors overlap by at least the fraction `overlap` of a tile. If the tile covers the image, there is one, at 0.
    """
    if tile >= length:
        return [0]
    stride = max(1, int(tile * (1 - overlap) + 1e-6))
    last = -(-(length - tile) // stride)
    return [round(i * (length - tile) / last) for i in range(last + 1)]


def blend_weights(starts: list[int], tile: int) -> Tensor:
    """Blending weights of the pixels of each tile along an axis, float32 (tiles, tile); they sum to 1 at each pixel.

    In an overlap of o pixels, the outer o/4 of each tile have weight 0 (their context is truncated) and the weights
    rise over the o/2 between as a raised cosine, sin^2(pi/2 x). A network with a receptive field of at most o/4 to each
    side gives exactly the logits of the whole image. Weights of more than two overlapping tiles are normalized. The
    image border is not blended.
    """
    raw = torch.ones(len(starts), tile, dtype=torch.float64)
    for left, (start, following) in enumerate(zip(starts, starts[1:], strict=False)):
        shared = start + tile - following
        if shared <= 0:
            continue
        position = (torch.arange(shared, dtype=torch.float64) + 0.5) / shared  # 0 to 1 across the overlap
        rise = torch.sin(torch.pi / 2 * ((position - 0.25) * 2).clamp(0, 1)).square()
        raw[left + 1, :shared] *= rise
        raw[left, tile - shared :] *= rise.flip(0)
    total = torch.zeros(starts[-1] + tile, dtype=torch.float64)
    for row, start in zip(raw, starts, strict=True):
        total[start : start + tile] += row
    sums = torch.stack([total[start : start + tile] for start in starts])
    return (raw / sums).float()


Margins = Callable[[int], tuple[int, int]]
"""Length of a network's input along an axis -> the pixels before and after it that the network sees in addition."""


@dataclass(frozen=True)
class Tile:
    """A rectangle of an image in one view."""

    top: int
    left: int
    shape: tuple[int, int]
    """Height and width in image pixels; may extend beyond the lower and right border."""
    input_size: tuple[int, int]
    """Height and width of the network's input."""
    flip: bool
    """Flipped horizontally."""
    rows: Tensor
    """(height,): weights of its rows, divided by the number of views."""
    columns: Tensor
    """(width,): weights of its columns. A pixel's weight is its row's times its column's."""

    def cut(self, image: Tensor, margins: Margins) -> Tensor:
        """Image (C, H, W) -> network input (C, h, w) with its margins; mirrored beyond the image border."""
        size = []
        for axis, start, length, side in zip((-2, -1), (self.top, self.left), self.shape, self.input_size, strict=True):
            before, after = margins(side)
            size.append(before + side + after)
            start, stop = start - round(before * length / side), start + length + round(after * length / side)
            if start >= 0 and stop <= image.shape[axis]:
                image = image.narrow(axis, start, stop - start)
            else:
                index = reflected(torch.arange(start, stop), image.shape[axis])
                image = image.index_select(axis, index.to(image.device))
        image = resize_image(image, (size[0], size[1]))
        return image.flip(-1) if self.flip else image

    def crop(self, logits: Tensor, margins: Margins) -> Tensor:
        """Logits (B, C, h, w) of what `cut` returns, or of its center, at `input_size`."""
        for axis, side in zip((-2, -1), self.input_size, strict=True):
            before, after = margins(side)
            lost = before + side + after - logits.shape[axis]  # by unpadded convolutions
            logits = logits.narrow(axis, before - lost // 2, side)
        return logits


def split_into_tiles(size: tuple[int, int], config: InferenceConfig) -> list[Tile]:
    """All tiles of an image of `size` (H, W) in all views, from top to bottom.

    At scale s a tile covers 1/s of its height and width in the image and is resized for the network, so that tiles of
    all views have one input size and share batches. Without `config.tile`, each view is one tile, the whole image.
    """
    tiles = []
    for scale, flip in config.views:
        if config.tile is None:
            shape, input_size = size, (max(1, round(size[0] * scale)), max(1, round(size[1] * scale)))
        else:
            input_size = (config.tile[0], config.tile[1])
            shape = (max(1, round(input_size[0] / scale)), max(1, round(input_size[1] / scale)))
        tops, lefts = (tile_starts(size[i], shape[i], config.overlap) for i in (0, 1))
        rows, columns = blend_weights(tops, shape[0]) / len(config.views), blend_weights(lefts, shape[1])
        for (top, row), (left, column) in product(zip(tops, rows, strict=True), zip(lefts, columns, strict=True)):
            tiles.append(Tile(top, left, shape, input_size, flip, row, column))
    return sorted(tiles, key=lambda tile: tile.top)


class Canvas:
    """Weighted sum of an image's tiles. Rows that no pending tile reaches are returned and freed.

    Args:
        index: of the image.
        size: its height and width.
        tiles: its tiles, from top to bottom.
    """

    def __init__(self, index: int, size: tuple[int, int], tiles: list[Tile]) -> None:
        self.index, self.size = index, size
        self.pending = [tile.top for tile in tiles]  # ascending
        self.top = 0  # first row in `rows`
        self.rows: Tensor | None = None  # (C, rows, W)

    def add(self, tile: Tile, values: Tensor) -> Tensor | None:
        """Add values (C, height, width) of a tile; returns the rows that are now complete (C, rows, W), or None."""
        height, width = self.size
        if len(self.pending) == 1 and self.rows is None and tile.shape == self.size:
            self.pending.clear()
            return values  # a single view of the whole image
        bottom, right = min(tile.top + tile.shape[0], height), min(tile.left + tile.shape[1], width)
        if self.rows is None:
            self.rows = values.new_zeros(values.shape[0], 0, width)
        missing = bottom - self.top - self.rows.shape[1]
        if missing > 0:
            self.rows = torch.cat([self.rows, self.rows.new_zeros(self.rows.shape[0], missing, width)], dim=1)
        rows, columns = tile.rows[: bottom - tile.top], tile.columns[: right - tile.left]
        weights = (rows[:, None] * columns).to(values.device)  # (height, width)
        target = self.rows[:, tile.top - self.top : bottom - self.top, tile.left : right]
        target.addcmul_(values[:, : len(rows), : len(columns)], weights)
        self.pending.remove(tile.top)
        complete = (self.pending[0] if self.pending else height) - self.top
        if complete <= 0:
            return None
        self.top += complete
        finished, self.rows = self.rows[:, :complete], self.rows[:, complete:]
        return finished


Forward = Callable[[Tensor], Tensor]
Job = tuple[Canvas, Tile, Tensor]


def tiled_logits(
    forward: Forward, images: Iterable[Tensor], config: InferenceConfig, margins: Margins | None = None
) -> Iterator[tuple[int, Tensor]]:
    """Yield (index of the image, logits (C, rows, W) float32), strip by strip from top to bottom.

    Tiles of one input size share batches across images and views. Memory is bounded: a few batches of tiles, and the
    incomplete rows of an image (at most two tiles high). Several views give log(mean softmax probability), a single
    view the logits, blended where tiles overlap.

    Args:
        forward: pixels (B, C, h, w) -> logits (B, classes, h, w), or those of the input's center.
        images: (C, H, W) each, read lazily.
        config: tiles, views and batch size.
        margins: of the network's input; None: `config.margin` on each side.

    Raises:
        UserError: an option out of range.
    """
    validate_inference(config)
    around = margins or (lambda _: (config.margin, config.margin))
    waiting: dict[tuple[int, int], list[Job]] = {}
    for job in _jobs(images, config, around):
        shape = job[1].input_size
        waiting.setdefault(shape, []).append(job)
        if len(waiting[shape]) >= config.batch_size:
            yield from _run(forward, waiting.pop(shape), len(config.views), around)
        elif sum(map(len, waiting.values())) >= MAX_WAITING_BATCHES * config.batch_size:
            yield from _run(
                forward, waiting.pop(next(iter(waiting))), len(config.views), around
            )  # the one that waits longest
    while waiting:
        yield from _run(forward, waiting.pop(next(iter(waiting))), len(config.views), around)


def _jobs(images: Iterable[Tensor], config: InferenceConfig, margins: Margins) -> Iterator[Job]:
    for index, image in enumerate(images):
        size = (image.shape[-2], image.shape[-1])
        tiles = split_into_tiles(size, config)
        canvas = Canvas(index, size, tiles)
        for tile in tiles:
            yield canvas, tile, tile.cut(image, margins)


def _run(forward: Forward, jobs: list[Job], views: int, margins: Margins) -> Iterator[tuple[int, Tensor]]:
    """Run one batch through the network and add it to the canvases; yields complete strips."""
    logits = forward(torch.stack([pixels for _, _, pixels in jobs]))  # (B, C, h, w)
    for (canvas, tile, _), tile_logits in zip(jobs, logits, strict=True):
        values = tile_logits[None].float()  # one at a time: resized, a batch would be the largest tensor of all
        values = tile.crop(values.flip(-1) if tile.flip else values, margins)
        values = resize_logits(values, tile.shape)  # (1, C, height, width)
        finished = canvas.add(tile, (values.softmax(dim=1) if views > 1 else values)[0])
        if finished is not None:
            if views > 1:
                finished = finished.clamp_min(torch.finfo(torch.float32).tiny).log()
            yield canvas.index, finished
