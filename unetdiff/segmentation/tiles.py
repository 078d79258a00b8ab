"""Tiles and views: an image seen in overlapping pieces, mirrored and at several sizes, and put together again.

Nothing here knows a network: `bands` takes any function from pixels to logits.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import product

import torch
import torch.nn.functional as F
from torch import Tensor

from unetdiff.data.transforms import resize_image
from unetdiff.segmentation.config import InferenceConfig, validate_inference

__all__ = ["Tile", "blend_weights", "resize_logits", "split_into_tiles", "tile_starts", "tiled_logits"]

MAX_WAITING_BATCHES = 4  # batches' worth of pieces that wait for others of their size


def resize_logits(logits: Tensor, size: tuple[int, int]) -> Tensor:
    """Logits (B, C, h, w) -> (B, C, H, W), float32, bilinear. The argmax comes after this, never before."""
    logits = logits.float()
    if logits.shape[-2:] == size:
        return logits
    return F.interpolate(logits, size=size, mode="bilinear", align_corners=False)


def tile_starts(length: int, tile: int, overlap: float) -> list[int]:
    """First pixel of each tile along an axis: evenly spread, the last ends with the image.

    Neighbours have at least the share `overlap` of a tile in common. A tile that is not shorter than the image is
    the only one, and starts at 0.
    """
    if tile >= length:
        return [0]
    stride = max(1, int(tile * (1 - overlap) + 1e-6))
    last = -(-(length - tile) // stride)
    return [round(i * (length - tile) / last) for i in range(last + 1)]


def blend_weights(starts: list[int], tile: int) -> Tensor:
    """Weight of every pixel of every tile along an axis, float32 (tiles, tile); at each pixel they sum to one.

    Where two tiles overlap by o pixels, the outer o/4 of each count nothing, because the network saw least around
    them, and the weight rises over the o/2 between as a raised cosine, sin^2(pi/2 x). So a network that looks no
    further than o/4 gives in tiles exactly what it gives on the whole image. Where more than two overlap, their
    weights are divided by the sum. The image's own border is no seam.
    """
    raw = torch.ones(len(starts), tile, dtype=torch.float64)
    for left, (start, following) in enumerate(zip(starts, starts[1:], strict=False)):
        shared = start + tile - following
        if shared <= 0:
            continue
        target = (torch.arange(shared, dtype=torch.float64) + 0.5) / shared  # 0 to 1 across the overlap
        rise = torch.sin(torch.pi / 2 * ((target - 0.25) * 2).clamp(0, 1)).square()
        raw[left + 1, :shared] *= rise
        raw[left, tile - shared :] *= rise.flip(0)
    total = torch.zeros(starts[-1] + tile, dtype=torch.float64)
    for row, start in zip(raw, starts, strict=True):
        total[start : start + tile] += row
    sums = torch.stack([total[start : start + tile] for start in starts])
    return (raw / sums).float()


@dataclass(frozen=True)
class Tile:
    """A rectangle of an image, in one view."""

    top: int
    left: int
    shape: tuple[int, int]
    """Height and width in the image's pixels; it may reach past the image's lower and right border."""
    input_size: tuple[int, int]
    """Height and width that the network sees it at."""
    flip: bool
    """Seen mirrored left to right."""
    rows: Tensor
    """(height,): weights of its rows, the views' share in them."""
    columns: Tensor
    """(width,): weights of its columns. A pixel's weight is its row's times its column's."""

    def cut(self, image: Tensor) -> Tensor:
        """(3, H, W) -> what the network sees of it, (3, h, w); mirrored at the border where the image ends."""
        for axis, start, length in ((-2, self.top, self.shape[0]), (-1, self.left, self.shape[1])):
            if start + length <= image.shape[axis]:
                image = image.narrow(axis, start, length)
            else:
                index = _mirrored(start + torch.arange(length), image.shape[axis])
                image = image.index_select(axis, index.to(image.device))
        image = resize_image(image, self.input_size)
        return image.flip(-1) if self.flip else image


def _mirrored(index: Tensor, length: int) -> Tensor:
    """Positions past the end as positions within 0..length-1: ... n-2, n-1, n-2, ... and back again from 0."""
    period = max(1, 2 * (length - 1))
    index = index % period
    return torch.minimum(index, period - index)


def split_into_tiles(size: tuple[int, int], config: InferenceConfig) -> list[Tile]:
    """Every piece of an image of `size` (H, W) in every view, from top to bottom.

    At scale s a tile covers 1/s as much of the image and is resized for the network, so that every view has tiles of
    one size and they share batches. Without tiles, the only piece of a view is the image.
    """
    found = []
    for scale, flip in config.views:
        if config.tile is None:
            shape, input_size = size, (max(1, round(size[0] * scale)), max(1, round(size[1] * scale)))
        else:
            input_size = (config.tile[0], config.tile[1])
            shape = (max(1, round(input_size[0] / scale)), max(1, round(input_size[1] / scale)))
        tops, lefts = (tile_starts(size[i], shape[i], config.overlap) for i in (0, 1))
        rows, columns = blend_weights(tops, shape[0]) / len(config.views), blend_weights(lefts, shape[1])
        for (top, row), (left, column) in product(zip(tops, rows, strict=True), zip(lefts, columns, strict=True)):
            found.append(Tile(top, left, shape, input_size, flip, row, column))
    return sorted(found, key=lambda tile: tile.top)


class Canvas:
    """The weighted sum of an image's pieces. Rows that no other piece reaches are handed out and forgotten.

    Args:
        index: the image's number.
        size: its height and width.
        parts: its pieces, from top to bottom.
    """

    def __init__(self, index: int, size: tuple[int, int], parts: list[Tile]) -> None:
        self.index, self.size = index, size
        self.pending = [tile.top for tile in parts]  # ascending
        self.top = 0  # of the rows that are kept
        self.rows: Tensor | None = None  # (C, rows, W)

    def add(self, tile: Tile, values: Tensor) -> Tensor | None:
        """values (C, height, width) of a piece -> the rows that are now complete (C, rows, W), or None."""
        height, width = self.size
        if len(self.pending) == 1 and self.rows is None and tile.shape == self.size:
            self.pending.clear()
            return values  # one view of the whole image
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
        done = (self.pending[0] if self.pending else height) - self.top
        if done <= 0:
            return None
        self.top += done
        finished, self.rows = self.rows[:, :done], self.rows[:, done:]
        return finished


Forward = Callable[[Tensor], Tensor]
Job = tuple[Canvas, Tile, Tensor]


def tiled_logits(forward: Forward, images: Iterable[Tensor], config: InferenceConfig) -> Iterator[tuple[int, Tensor]]:
    """Yield (number of the image, its logits (C, rows, W) float32), band by band from top to bottom.

    Pieces of one size share batches, whatever images and views they are of. What is held is bounded: a few batches
    of pieces, and the rows of an image that are not complete (two tiles' height at most, where there are tiles).
    Several views give log(mean of their softmax probabilities), one view the logits themselves, blended at the seams.

    Args:
        forward: pixels (B, 3, h, w) -> logits (B, C, h, w).
        images: (3, H, W) each, taken one after the other when their turn comes.
        config: tiles, views and batch size. Raises UserError where they cannot be.
    """
    validate_inference(config)
    waiting: dict[tuple[int, int], list[Job]] = {}
    for job in _jobs(images, config):
        shape = job[1].input_size
        waiting.setdefault(shape, []).append(job)
        if len(waiting[shape]) >= config.batch_size:
            yield from _run(forward, waiting.pop(shape), len(config.views))
        elif sum(map(len, waiting.values())) >= MAX_WAITING_BATCHES * config.batch_size:
            yield from _run(forward, waiting.pop(next(iter(waiting))), len(config.views))  # the longest waiting
    while waiting:
        yield from _run(forward, waiting.pop(next(iter(waiting))), len(config.views))


def _jobs(images: Iterable[Tensor], config: InferenceConfig) -> Iterator[Job]:
    for index, image in enumerate(images):
        size = (image.shape[-2], image.shape[-1])
        parts = split_into_tiles(size, config)
        canvas = Canvas(index, size, parts)
        for tile in parts:
            yield canvas, tile, tile.cut(image)


def _run(forward: Forward, jobs: list[Job], views: int) -> Iterator[tuple[int, Tensor]]:
    """One batch through the network and onto the canvases; yields what is complete."""
    logits = forward(torch.stack([pixels for _, _, pixels in jobs]))  # (B, C, h, w)
    for (canvas, tile, _), own in zip(jobs, logits, strict=True):
        input_size = own[None].float()  # one at a time: of a batch, they would be the largest tensor of all
        values = resize_logits(input_size.flip(-1) if tile.flip else input_size, tile.shape)  # (1, C, height, width)
        finished = canvas.add(tile, (values.softmax(dim=1) if views > 1 else values)[0])
        if finished is not None:
            if views > 1:
                finished = finished.clamp_min(torch.finfo(torch.float32).tiny).log()
            yield canvas.index, finished
