"""Bit depths of a dataset's images: whether the values of 16-bit images use their range.

A camera of 12 bits writes values up to 4095 to 16-bit files. Divided by 256, they are at most 16 gray values. A range
by image would change the relative brightness of images, so there is one for the dataset: `data.image_range`.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from unetdiff.data.decoding import is_deep, rgb, upright_size
from unetdiff.data.issues import BadFile, Issue, row_issue, unreadable_issue
from unetdiff.errors import FileError
from unetdiff.files.images import open_image

MAX_UNUSED = 1 << 15
"""16-bit images whose values are all below this use fewer than 16 bits."""


class BitDepths:
    """Reads the images of a dataset and collects the range of those with more than 8 bits. Used by several threads.

    Args:
        image_range: `data.image_range`.
        full: decode every image; else read the header and end of a JPEG only, and decode it if these look wrong.
    """

    def __init__(self, image_range: Sequence[float] | None, full: bool) -> None:
        self.image_range = image_range
        self.full = full
        self._gray: list[tuple[float, float, str]] = []  # least and largest value, name
        self._color: list[tuple[int, str]] = []  # largest of the upper bytes, name

    def image_size(self, source: Path | bytes, name: str = "") -> tuple[int, int]:
        """(height, width) of an image as `decode` returns it.

        Raises:
            BadFile: as of `decode`.
        """
        try:
            with open_image(source, name) as image:
                has_deep_color = _has_deep_color(image)  # before it is decoded
                size = upright_size(image)  # before its file is closed
                if self.full or not _is_whole_jpeg(image, source):
                    self._decode(image, has_deep_color, name or str(source))
                return size
        except FileError as error:
            issue = unreadable_issue(source, error) if isinstance(source, Path) else row_issue(name, error)
            raise BadFile.from_issue(issue) from None

    def _decode(self, image: Image.Image, has_deep_color: bool, name: str) -> None:
        pixels = rgb(image, self.image_range)
        if is_deep(image):
            values = np.nan_to_num(np.asarray(image))
            self._gray.append((float(values.min()), float(values.max()), name))
        if has_deep_color:
            self._color.append((max(high for _, high in pixels.getextrema()), name))  # type: ignore[misc, union-attr]

    def issues(self) -> list[Issue]:
        """What the ranges of all images say: at most one issue of gray images and one of color images."""
        return [issue for issue in (self._gray_issue(), self._color_issue()) if issue is not None]

    def _gray_issue(self) -> Issue | None:
        if not self._gray:
            return None
        low, high = min(low for low, *_ in self._gray), max(high for _, high, _ in self._gray)
        name = min(name for *_, name in self._gray)
        found = f"{len(self._gray)} image(s) with values {low:g} to {high:g}"
        if self.image_range is None and high < MAX_UNUSED:
            bits = max(1, int(high).bit_length())
            levels = (int(high) >> 8) - (int(low) >> 8) + 1
            message = f"16-bit images of {bits} bits would keep {levels} gray value(s)"
            remedy = f"Set data.image_range=[0, {2**bits - 1}] to scale all alike; [0, 65535] to keep them dark."
            return Issue(name, message, found, remedy)
        if self.image_range is not None and (low >= self.image_range[1] or high <= self.image_range[0]):
            limits = ", ".join(f"{limit:g}" for limit in self.image_range)
            return Issue(name, f"all values are outside of data.image_range=[{limits}]", found, "Correct it.")
        return None

    def _color_issue(self) -> Issue | None:
        if not self._color:
            return None
        high, name = max(self._color)
        if high >= MAX_UNUSED >> 8:
            return None
        message = "16-bit color images are read by their upper 8 bits, of which few are used"
        found = f"{len(self._color)} image(s) with values below {(high + 1) << 8}"
        return Issue(name, message, found, "Save them with 8 bits, scaled to 0..255.")


def _has_deep_color(image: Image.Image) -> bool:
    """Whether an opened image has colors of 16 bits, which Pillow reads by their upper 8 bits."""
    tiles = getattr(image, "tile", [])  # how Pillow will decode the file, e.g. "RGB;16B"
    return not is_deep(image) and any(";16" in str(tile) for tile in tiles)


def _is_whole_jpeg(image: Image.Image, source: Path | bytes) -> bool:
    """Whether an opened image is a JPEG file that ends with the end-of-image marker."""
    file = getattr(image, "fp", None)
    if image.format != "JPEG" or not isinstance(source, Path) or file is None:
        return False
    place = file.tell()
    file.seek(-2, os.SEEK_END)
    end = file.read(2)
    file.seek(place)
    return end == b"\xff\xd9"
