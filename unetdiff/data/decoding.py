"""Decoding of image files: upright and RGB."""

from __future__ import annotations

import io
import struct
from pathlib import Path
from typing import Any

import numpy as np
import torch
from einops import rearrange
from PIL import Image, ImageOps
from torch import Tensor

from unetdiff.data.issues import BadFile, Issue, unreadable_issue
from unetdiff.errors import UserError

ORIENTATION = 0x0112  # EXIF 2.3, 4.6.4 A
ON_ITS_SIDE = range(5, 9)
BROKEN_EXIF = (SyntaxError, struct.error)  # what Pillow raises for an invalid block


def decode(source: Path | dict[str, Any], name: str = "") -> Tensor:
    """An image file, or a Hugging Face {"bytes", "path"}, upright (by its EXIF tag) and RGB, as uint8 (3, H, W).

    Args:
        source: the file or record.
        name: of a record, in errors.

    Raises:
        BadFile: it is missing, truncated or not an image.
    """
    try:
        if isinstance(source, Path):
            opened = Image.open(source)
        elif source is not None and source["bytes"] is not None:
            opened = Image.open(io.BytesIO(source["bytes"]))
        elif source is not None and source["path"] is not None:
            opened = Image.open(source["path"])
        else:
            raise BadFile.from_issue(Issue(name, "no image in the row", "empty", "Remove the row."))
        with opened as image:
            pixels = np.array(rgb(upright(image)))
    except UserError:
        raise
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        if isinstance(source, Path):
            raise BadFile.from_issue(unreadable_issue(source, error)) from error
        raise BadFile.from_issue(Issue(name, "image cannot be read", str(error), "Remove the row.")) from error
    return rearrange(torch.from_numpy(pixels), "h w c -> c h w").contiguous()


def upright(image: Image.Image) -> Image.Image:
    """An image rotated by its EXIF tag; unchanged if that cannot be read."""
    try:
        return ImageOps.exif_transpose(image)
    except BROKEN_EXIF:
        return image


def rgb(image: Image.Image) -> Image.Image:
    """An image in 8-bit RGB; 16-bit gray is divided by 256 (Pillow clips it at 255).

    Raises:
        ValueError: 32-bit or float values, whose range is unknown.
    """
    if image.mode[0] in "IF":
        values = np.asarray(image)
        if image.mode == "F" or values.min() < 0 or values.max() > 65535:  # Pillow opens some of 16 bits as "I"
            raise ValueError(f"mode {image.mode} has no fixed range: save it with 8 or 16 bits")
        image = Image.fromarray((values >> 8).astype(np.uint8))
    return image.convert("RGB")


def upright_size(image: Image.Image) -> tuple[int, int]:
    """(height, width) of `decode`'s result for an opened image, without decoding it."""
    try:
        orientation = image.getexif().get(ORIENTATION)
    except BROKEN_EXIF:
        orientation = None
    height, width = image.height, image.width
    return (width, height) if orientation in ON_ITS_SIDE else (height, width)
