"""Decoding of image files: upright and RGB."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from einops import rearrange
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from unetdiff.data.issues import BadFile, row_issue, unreadable_issue
from unetdiff.errors import FileError
from unetdiff.files.images import open_image

warnings.filterwarnings("ignore", "Corrupt EXIF data", module=r"PIL\.")  # only the orientation is read from it

ORIENTATION = 0x0112  # EXIF 2.3, 4.6.4 A
ON_ITS_SIDE = range(5, 9)
TRANSPOSE = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""What makes an image of an EXIF orientation upright."""

Range = Sequence[float]
"""`data.image_range`: the values that become black and white."""


def decode(source: Path | bytes, name: str = "", image_range: Range | None = None) -> Tensor:
    """An image file upright (by its EXIF tag) and RGB, as uint8 (3, H, W); of an animation, the first frame.

    Args:
        source: the file, or its bytes.
        name: where the bytes stand, for errors.
        image_range: see `rgb`.

    Raises:
        BadFile: it is missing, truncated, too large, or not an image.
    """
    try:
        with open_image(source, name) as image:
            pixels = np.array(rgb(upright(image), image_range))
    except FileError as error:
        issue = unreadable_issue(source, error) if isinstance(source, Path) else row_issue(name, error)
        raise BadFile.from_issue(issue) from None
    return rearrange(torch.from_numpy(pixels), "h w c -> c h w").contiguous()


def orientation(image: Image.Image) -> int:
    """The EXIF orientation of an opened image, 1 to 8; 1 (upright) if it has none or it cannot be read."""
    try:
        value = image.getexif().get(ORIENTATION)
    except Exception:  # Pillow raises many types for a damaged block; the pixels do not depend on it
        return 1
    return value if isinstance(value, int) and value in TRANSPOSE else 1


def upright(image: Image.Image) -> Image.Image:
    """An image rotated by its EXIF tag; unchanged if that cannot be read."""
    turn = orientation(image)
    return image if turn == 1 else image.transpose(TRANSPOSE[turn])


def upright_size(image: Image.Image) -> tuple[int, int]:
    """(height, width) of `decode`'s result for an opened image, without decoding it."""
    size = (image.height, image.width)
    return size[::-1] if orientation(image) in ON_ITS_SIDE else size


def read_sizes(files: Sequence[Path]) -> list[tuple[int, int]]:
    """(height, width) of image files, upright, from their headers.

    Raises:
        FileError: a file that is missing or not an image.
    """
    return [read_size(file) for file in files]


def read_size(source: Path | bytes, name: str = "") -> tuple[int, int]:
    """(height, width) of an image file or its bytes, upright, from its header. Arguments and errors as of `decode`."""
    try:
        with open_image(source, name) as image:
            return upright_size(image)
    except FileError as error:
        if isinstance(source, Path):
            raise
        raise BadFile.from_issue(row_issue(name, error)) from None


def is_deep(image: Image.Image) -> bool:
    """Whether an opened image has a gray channel of more than 8 bits (16 or 32 bits, or float)."""
    return image.mode[0] in "IF"


def rgb(image: Image.Image, image_range: Range | None = None) -> Image.Image:
    """An image in 8-bit RGB.

    Gray values of 16 bits are divided by 256, so that two images keep their relative brightness.

    Args:
        image: of any of Pillow's modes; transparency is dropped.
        image_range: [black, white], the values of images of more than 8 bits that become 0 and 255; values outside are
            clipped. For cameras of 10, 12 or 14 bits, and for float values.

    Raises:
        ValueError: 32-bit or float values without an `image_range`.
    """
    if is_deep(image):
        image = Image.fromarray(_as_bytes(np.asarray(image), image.mode, image_range))
    if "transparency" in image.info:
        image.info.pop("transparency")  # Pillow warns of palettes with it
    return image.convert("RGB")


def _as_bytes(values: NDArray[np.generic], mode: str, image_range: Range | None) -> NDArray[np.uint8]:
    if image_range is not None:
        low, high = image_range
        scaled = (np.nan_to_num(values.astype(np.float32), nan=low) - low) * (255 / (high - low))
        return np.clip(np.rint(scaled), 0, 255).astype(np.uint8)
    if mode == "F" or values.min() < 0 or values.max() > 65535:  # type: ignore[operator]
        found = f"values {values.min():g} to {values.max():g} of mode {mode} have no fixed range"
        raise ValueError(f"{found}: set data.image_range, or save it with 8 or 16 bits")
    return (values >> 8).astype(np.uint8)  # type: ignore[operator]
