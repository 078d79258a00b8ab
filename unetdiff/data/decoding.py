"""Decoding of image files: upright, in 8 bits, with the channels of the dataset."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from einops import rearrange, repeat
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from unetdiff.data.issues import BadFile, row_issue, unreadable_issue
from unetdiff.data.raw_images import RawImage, pillow_values, read_info, read_values
from unetdiff.errors import FileError

warnings.filterwarnings("ignore", "Corrupt EXIF data", module=r"PIL\.")  # only the orientation is read from it

Range = Sequence[float]
"""`data.image_range`: the values that become black and white, two numbers, or two per channel."""
RGB = 3
GRAY_WEIGHTS = (0.299, 0.587, 0.114)
"""Red, green and blue in gray, ITU-R BT.601."""


def decode(source: Path | bytes, name: str = "", image_range: Range | None = None, channels: int = RGB) -> Tensor:
    """An image file upright (by its EXIF tag), as uint8 (channels, H, W); of an animation or a stack, the first image.

    Args:
        source: the file, or its bytes.
        name: where the bytes stand, for errors.
        image_range: see `to_uint8`.
        channels: see `with_channels`.

    Raises:
        BadFile: it is missing, truncated, too large, not an image, or of other channels.
    """
    try:
        pixels = to_channels(read_values(source, name), channels, image_range)
    except FileError as error:
        raise bad_file(source, name, error) from None
    except ValueError as error:
        reason = f"cannot be decoded ({error})"
        raise bad_file(source, name, FileError.of(source if isinstance(source, Path) else name, reason)) from None
    return rearrange(torch.from_numpy(pixels), "h w c -> c h w").contiguous()


def bad_file(source: Path | bytes, name: str, error: FileError) -> BadFile:
    """The issue of a file, or of a row of a table, that raised `error` when it was read."""
    return BadFile.from_issue(unreadable_issue(source, error) if isinstance(source, Path) else row_issue(name, error))


def read_sizes(files: Sequence[Path]) -> list[tuple[int, int]]:
    """(height, width) of image files, upright, from their headers.

    Raises:
        FileError: a file that is missing or not an image.
    """
    return [read_info(file).size for file in files]


def to_channels(raw: RawImage, channels: int, image_range: Range | None = None) -> NDArray[np.uint8]:
    """Stored values as 8-bit values of a dataset's channels, uint8 (H, W, channels).

    Raises:
        ValueError: as of `with_channels` and `to_uint8`.
    """
    values = raw.values
    color, alpha = raw.uncomposited, raw.alpha
    if channels not in (1, RGB) and color is not None and alpha is not None and color.shape[2] + 1 == channels:
        if color.dtype != np.uint8:
            raise ValueError("16-bit images with alpha cannot be read as bands: save them as TIFF")
        return np.concatenate([color, alpha[..., None]], axis=2)  # alpha is a band
    return to_uint8(with_channels(values, channels), image_range)


def with_channels(values: NDArray[Any], channels: int) -> NDArray[Any]:
    """Values (H, W, C) as (H, W, channels): gray is repeated for RGB, RGB becomes gray (BT.601); else C must fit.

    Raises:
        ValueError: another number of channels.
    """
    found = values.shape[2]
    if found == channels:
        return values
    if (found, channels) == (1, RGB):
        return repeat(values, "h w 1 -> h w c", c=RGB)
    if (found, channels) == (RGB, 1):
        gray = values.astype(np.float32) @ np.array(GRAY_WEIGHTS, np.float32)
        return (gray if values.dtype.kind == "f" else np.rint(gray).astype(values.dtype))[..., None]
    raise ValueError(f"it has {found} channels, the dataset {channels}: set data.channels, or save it with {channels}")


def to_uint8(values: NDArray[Any], image_range: Range | None = None) -> NDArray[np.uint8]:
    """Values (H, W, C) in 8 bits: 8-bit values as they are, others scaled by `image_range`.

    Args:
        values: integers or floats; nan is black.
        image_range: [black, white], the values that become 0 and 255, or two numbers per channel; values outside are
            clipped. None: 16-bit values are divided by 256.

    Raises:
        ValueError: 32-bit or float values without an `image_range`, or one of other channels.
    """
    if values.dtype == np.uint8:
        return values
    if values.dtype == np.bool_:
        return values.astype(np.uint8) * 255
    if image_range is not None:
        limits = np.array(image_range, np.float64).reshape(-1, 2)
        if len(limits) not in (1, values.shape[2]):
            raise ValueError(f"data.image_range has {len(limits)} pairs for {values.shape[2]} channels")
        low, high = limits[:, 0], limits[:, 1]
        floats = values.astype(np.float32 if values.dtype.itemsize <= 2 else np.float64)
        scaled = (np.nan_to_num(floats, nan=-np.inf) - low.astype(floats.dtype)) * (255 / (high - low)).astype(
            floats.dtype
        )
        return np.rint(np.clip(scaled, 0, 255)).astype(np.uint8)
    if values.dtype.kind == "f" or values.size and (values.min() < 0 or values.max() > 65535):
        found = f"values {values.min():g} to {values.max():g} of type {values.dtype} have no fixed range"
        raise ValueError(f"{found}: set data.image_range, or save it with 8 or 16 bits")
    return (values >> 8).astype(np.uint8)


def image_pixels(image: Image.Image, image_range: Range | None = None, channels: int = RGB) -> NDArray[np.uint8]:
    """A PIL image in 8 bits, uint8 (H, W, channels); errors as of `to_channels`."""
    return to_channels(pillow_values(image), channels, image_range)
