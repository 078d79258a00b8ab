"""A reader of mask files: an image and a mask per name, and an encoding of the masks' values."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from unetdiff.data.issues import BadFile, Issue, ambiguous_issue, issue_of, row_issue, unreadable_issue
from unetdiff.data.masks.encodings import Encoding
from unetdiff.data.masks.reader import Indices, MaskReader
from unetdiff.data.stacks import page_file
from unetdiff.errors import FileError
from unetdiff.files.images import open_image

ONE_CHANNEL = ("P", "L", "1", "I;16", "I;16B", "I")
"""Pillow's modes of masks that hold one number per pixel."""


@dataclass(frozen=True)
class ImageMaskPair:
    """Paths of the image and the mask of one name of a split, whether or not they exist."""

    name: str
    image: Path
    mask: Path
    ambiguous: tuple[Path, ...] = ()
    """Several images, or several masks, of this name; reading it is refused."""
    page: int | None = None
    """Which page of both files, if they are stacks."""


class PairReader(MaskReader):
    """Images and mask files.

    Args:
        pairs: the files of each name.
        encoding: what the values of the masks mean; None: masks are not read.
        classes, palette: names and colors of the classes.
        place: where the split is listed, for messages.
        listing: issues of the listing.
    """

    def __init__(
        self,
        pairs: Sequence[ImageMaskPair],
        encoding: Encoding | None,
        classes: list[str],
        palette: NDArray[np.uint8],
        place: str,
        listing: Sequence[Issue] = (),
    ) -> None:
        self.pairs, self.encoding, self.listing = list(pairs), encoding, list(listing)
        self.names = [pair.name for pair in pairs]
        self.classes, self.palette, self.place = classes, palette, place
        self.keeps = encoding is not None and encoding.of_colors

    def image(self, index: int) -> tuple[Path | bytes, str]:
        pair = self._pair(index)
        return _file(pair.image, pair.page)

    def mask_place(self, index: int) -> Path:
        return self.pairs[index].mask

    def mask(self, index: int) -> Indices:
        assert self.encoding is not None
        values, place = self._values(index)
        return self.encoding.decode(values, place)

    def issues(self) -> list[Issue]:
        return self.listing

    def mask_issues(self, index: int, image_size: tuple[int, int] | None) -> list[Issue]:
        assert self.encoding is not None
        try:
            values, place = self._values(index)
        except BadFile as error:
            return [issue_of(error)]
        issue = self.encoding.issue(values, place)
        return ([] if issue is None else [issue]) + self.size_issues(index, image_size, values.shape[:2])

    def _values(self, index: int) -> tuple[NDArray[np.generic], str]:
        """The stored values of a mask, and where they stand."""
        assert self.encoding is not None
        pair = self._pair(index)
        source, name = _file(pair.mask, pair.page)
        return read_values(source, self.encoding.of_colors, name), name or str(source)

    def _pair(self, index: int) -> ImageMaskPair:
        pair = self.pairs[index]
        if pair.ambiguous:
            raise BadFile.from_issue(ambiguous_issue(pair.ambiguous))
        return pair


def _file(path: Path, page: int | None) -> tuple[Path | bytes, str]:
    """A file, or the bytes of a page of a stack and where they stand."""
    if page is None:
        return path, ""
    name = f"{path}, page {page}"
    try:
        return page_file(path, page), name
    except FileError as error:
        raise BadFile.from_issue(row_issue(name, error)) from None


def read_values(source: Path | bytes, colors: bool, name: str = "") -> NDArray[np.generic]:
    """The stored values of a mask: (H, W) of a one-channel file (palette, gray or one bit), (H, W, 3) of colors.

    Args:
        source: the file, or its bytes.
        colors: the colors of any image; else the values of a one-channel image, and the colors of others.
        name: where the bytes stand, for errors.

    Raises:
        BadFile: missing, truncated or not an image.
    """
    try:
        with open_image(source, name) as image:
            return values_of(image, colors)
    except FileError as error:
        issue = unreadable_issue(source, error) if isinstance(source, Path) else row_issue(name, error)
        raise BadFile.from_issue(issue) from None


def values_of(image: Image.Image, colors: bool) -> NDArray[np.generic]:
    """`read_values` of an opened image."""
    if colors or image.mode not in ONE_CHANNEL:
        image.info.pop("transparency", None)  # Pillow warns of palettes with it
        return np.array(image.convert("RGB"))
    values = np.array(image)
    return values.astype(np.uint8) if values.dtype == bool else values
