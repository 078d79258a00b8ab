"""Previews of a segmentation model: rows of image | ground truth | prediction | errors, and a legend."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import matplotlib
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from unetdiff.data.transforms import IGNORE_INDEX, ignore_mask
from unetdiff.errors import UserError
from unetdiff.segmentation.palette import (
    ERROR_COLOR,
    IGNORE_COLOR,
    ImageInput,
    Mask,
    Palette,
    as_mask,
    as_palette,
    as_rgb_array,
    colorize,
    error_map,
)

__all__ = ["preview"]

HEADERS = ("image", "ground truth", "prediction", "errors")
MIN_SIDE, MAX_SIDE = (
    160,
    320,
)  # pixels: smaller images are enlarged to about the first, larger ones shrunk to the second
MARGIN, GAP, LINE = 16, 8, 20
PAPER, INK, MUTED, EDGE = (255, 255, 255), (32, 36, 40), (110, 116, 124), (200, 204, 208)


def preview(
    images: Sequence[ImageInput],
    targets: Sequence[Mask],
    predictions: Sequence[Mask],
    palette: Palette,
    class_names: Sequence[str],
    ignore_index: int = 255,
    names: Sequence[str] | None = None,
) -> Image.Image:
    """Draw each image next to its target, its prediction and their difference.

    Args:
        images: uint8 (3, H, W) tensors, PIL images or arrays (H, W, 3); resized to the masks.
        targets, predictions: (H', W') class indices, of the same size within a pair.
        palette: (classes, 3).
        class_names: for the legend of the classes that occur.
        ignore_index: ignored in the targets, in addition to 255.
        names: written below the images.

    Raises:
        UserError: lengths or sizes differ.
    """
    if not len(images) == len(targets) == len(predictions) > 0:
        raise UserError(
            "preview: must have the same number of images, targets and predictions, at least one "
            f"(got {len(images)}, {len(targets)} and {len(predictions)})."
        )
    colors = as_palette(palette, len(class_names))
    rows, captions, occurring = [], [], set()
    for number, (image, target_mask, prediction) in enumerate(zip(images, targets, predictions, strict=True)):
        target, pred = as_mask(target_mask), as_mask(prediction)
        if target.shape != pred.shape:
            raise UserError(f"prediction {number}: size must be its target's (got {pred.shape} and {target.shape}).")
        photo = _resized(Image.fromarray(as_rgb_array(image)), target.shape)
        tiles = [
            np.asarray(photo),
            colorize(target, colors, ignore_index),
            colorize(pred, colors, ignore_index),
            error_map(pred, target, ignore_index, photo),
        ]
        rows.append([_display_size(tile, smooth=column == 0) for column, tile in enumerate(tiles)])
        valid = ~ignore_mask(target, ignore_index)
        accuracy = f"{(pred == target)[valid].mean():.1%} of pixels correct" if valid.any() else "all ignored"
        captions.append((names[number] if names is not None else "", accuracy))
        occurring |= set(np.unique(target).tolist()) | set(np.unique(pred).tolist())

    legend = [(name, tuple(colors[c].tolist())) for c, name in enumerate(class_names) if c in occurring]
    if occurring & {ignore_index, IGNORE_INDEX}:
        legend.append(("ignore", IGNORE_COLOR))
    legend.append(("wrong", ERROR_COLOR))
    return _page(rows, captions, legend)


def _resized(image: Image.Image, size: tuple[int, int]) -> Image.Image:
    height, width = size
    return image if image.size == (width, height) else image.resize((width, height), Image.Resampling.BICUBIC)


def _display_size(tile: np.ndarray, smooth: bool) -> Image.Image:
    """Small tiles are enlarged by an integer factor with nearest neighbor, large ones shrunk."""
    image = Image.fromarray(tile)
    longest = max(image.size)
    if longest <= MIN_SIDE:
        factor = max(1, round(MIN_SIDE / longest))
        return image.resize((image.width * factor, image.height * factor), Image.Resampling.NEAREST)
    if longest <= MAX_SIDE:
        return image
    size = (max(1, round(image.width * MAX_SIDE / longest)), max(1, round(image.height * MAX_SIDE / longest)))
    return image.resize(size, Image.Resampling.LANCZOS if smooth else Image.Resampling.BOX)


def _font(size: int, bold: bool = False) -> ImageFont.FreeTypeFont:
    """DejaVu Sans, bundled with matplotlib, so that previews look the same everywhere."""
    name = "DejaVuSans-Bold.ttf" if bold else "DejaVuSans.ttf"
    return ImageFont.truetype(str(Path(matplotlib.get_data_path()) / "fonts" / "ttf" / name), size)


def _page(
    rows: list[list[Image.Image]], captions: list[tuple[str, str]], legend: list[tuple[str, tuple[int, ...]]]
) -> Image.Image:
    header_font, font, small = _font(13, bold=True), _font(12), _font(11)
    column = max(tile.width for row in rows for tile in row)
    heights = [max(tile.height for tile in row) for row in rows]
    width = 2 * MARGIN + len(HEADERS) * column + (len(HEADERS) - 1) * GAP
    lines = _wrapped(legend, font, width - 2 * MARGIN)
    height = MARGIN + LINE + sum(heights) + len(rows) * (LINE + GAP) + len(lines) * LINE + MARGIN
    page = Image.new("RGB", (width, height), PAPER)
    draw = ImageDraw.Draw(page)
    lefts = [MARGIN + number * (column + GAP) for number in range(len(HEADERS))]

    top = MARGIN
    for left, header in zip(lefts, HEADERS, strict=True):
        draw.text((left, top), header, fill=INK, font=header_font)
    top += LINE
    for row, (name, accuracy), row_height in zip(rows, captions, heights, strict=True):
        for left, tile in zip(lefts, row, strict=True):
            page.paste(tile, (left, top))
            draw.rectangle((left - 1, top - 1, left + tile.width, top + tile.height), outline=EDGE)
        top += row_height
        draw.text((lefts[0], top + 3), _cut(name, small, column), fill=MUTED, font=small)
        draw.text((lefts[3], top + 3), _cut(accuracy, small, column), fill=MUTED, font=small)
        top += LINE + GAP
    for line in lines:
        left = MARGIN
        for label, color, step in line:
            draw.rectangle((left, top + 2, left + 12, top + 14), fill=color, outline=MUTED)
            draw.text((left + 18, top + 1), label, fill=INK, font=font)
            left += step
        top += LINE
    return page


def _wrapped(
    legend: list[tuple[str, tuple[int, ...]]], font: ImageFont.FreeTypeFont, width: int
) -> list[list[tuple[str, tuple[int, ...], int]]]:
    """The legend's entries wrapped to the width of the page: (label, color, pixels to the next entry)."""
    lines: list[list[tuple[str, tuple[int, ...], int]]] = [[]]
    used = 0
    for label, color in legend:
        step = 18 + round(font.getlength(label)) + 18
        if lines[-1] and used + step > width:
            lines.append([])
            used = 0
        lines[-1].append((label, color, step))
        used += step
    return lines


def _cut(text: str, font: ImageFont.FreeTypeFont, width: int) -> str:
    """Text truncated to a width with an ellipsis."""
    if font.getlength(text) <= width:
        return text
    while text and font.getlength(text + "…") > width:
        text = text[:-1]
    return text + "…"
