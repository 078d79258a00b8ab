"""Images at the size that the page shows them, and files to download."""

from __future__ import annotations

import math
import uuid
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from einops import rearrange
from gradio.utils import get_upload_folder
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from unetdiff.files.images import save_image
from unetdiff.files.writing import file_errors, make_folder
from unetdiff.segmentation.palette import as_rgb_array

SMALLEST, LARGEST = 512, 1280
"""Longer side in pixels: smaller images are enlarged by a whole number to at least the first, larger ones shrunk."""

Array = NDArray[np.uint8]


def shown_size(height: int, width: int) -> tuple[int, int]:
    """Height and width that an image is shown at."""
    longest = max(height, width)
    if longest < SMALLEST:
        factor = -(-SMALLEST // longest)
        return height * factor, width * factor
    scale = min(1.0, LARGEST / longest)
    return max(1, round(height * scale)), max(1, round(width * scale))


def shown_image(image: Array | Image.Image | Tensor) -> Image.Image:
    """An image (H, W, 3), or uint8 (C, H, W), at the size it is shown at; enlarged pixels stay sharp."""
    rgb = Image.fromarray(as_rgb_array(image))
    return _resized(rgb, Image.Resampling.LANCZOS)


def shown_mask(mask: Array) -> Array:
    """A mask (H, W) at the size it is shown at, by nearest neighbor."""
    return np.asarray(_resized(Image.fromarray(mask), Image.Resampling.NEAREST))


def _resized(image: Image.Image, shrinking: Image.Resampling) -> Image.Image:
    height, width = shown_size(image.height, image.width)
    enlarged = height > image.height
    return image.resize((width, height), Image.Resampling.NEAREST if enlarged else shrinking)


def montage(images: Sequence[Array], enlarged: bool = True) -> Image.Image:
    """Images of one size next to each other, about as many rows as columns, with transparent gaps.

    enlarged: as `shown_image`, the size of the whole; otherwise pixels stay pixels.
    """
    columns = math.ceil(len(images) ** 0.5)
    rows = -(-len(images) // columns)
    height, width = images[0].shape[:2]
    factor = max(1, -(-SMALLEST // (max(height, width) * columns))) if enlarged else 1
    gap = 8 if enlarged else 2
    cells = [Image.fromarray(as_rgb_array(image)) for image in images]
    cells = [cell.resize((width * factor, height * factor), Image.Resampling.NEAREST) for cell in cells]
    size = (columns * (width * factor + gap) - gap, rows * (height * factor + gap) - gap)
    canvas = Image.new("RGBA" if len(images) > 1 else "RGB", size)
    for number, cell in enumerate(cells):
        row, column = divmod(number, columns)
        canvas.paste(cell, (column * (width * factor + gap), row * (height * factor + gap)))
    if not enlarged or max(canvas.size) <= 2 * LARGEST:
        return canvas
    canvas.thumbnail((2 * LARGEST, 2 * LARGEST))
    return canvas


def as_pixels(images: Tensor) -> list[Array]:
    """Images (B, 3, H, W) in [0, 1] as uint8 (H, W, 3)."""
    values = rearrange((images * 255).round().clamp(0, 255), "b c h w -> b h w c")
    return list(values.numpy().astype(np.uint8))


def download(image: Image.Image, name: str) -> str:
    """Write a PNG to the page's temporary folder, which is deleted when the page ends; returns its path.

    Raises:
        UserError: it cannot be written, e.g. a full disk.
    """
    path = Path(get_upload_folder()) / uuid.uuid4().hex / f"{name}.png"
    with file_errors(path):
        make_folder(path.parent)
        save_image(image, path)
    return str(path)
