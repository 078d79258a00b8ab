"""TIFF stacks: several images in one file, as microscopes write the slices of a volume or the frames of a film."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tifffile

from unetdiff.data.raw_images import RawImage, bands_are_pages, opened_tiff, pillow_suffices, read_values
from unetdiff.files.images import open_image

GRAY_OR_COLOR = (1, 3, 4)
"""Samples of a page that a network of gray or RGB images reads."""


def page_count(source: Path | bytes) -> int:
    """The pages of a TIFF that have the shape and type of its first; 1 for every other file.

    Raises:
        FileError: a file that is missing or cannot be read.
    """
    with opened_tiff(source, lambda tiff: len(_pages(tiff)) > 1) as tiff:
        return 1 if tiff is None else len(_pages(tiff))


def stack_size(source: Path | bytes, channels: int) -> int:
    """How many images of `channels` a TIFF stack holds; 1 for every other file.

    Pages of one band each are the bands of one image if there are as many as the network has `channels`, else a stack.

    Raises:
        FileError: a file that is missing or cannot be read.
    """

    def is_stack(tiff: tifffile.TiffFile) -> bool:
        pages = _pages(tiff)
        samples = int(pages[0].samplesperpixel)
        if len(pages) < 2 or (bands_are_pages(tiff) and len(pages) == channels):
            return False
        return samples == channels or (channels in (1, 3) and samples in GRAY_OR_COLOR)

    with opened_tiff(source, is_stack) as tiff:
        return 1 if tiff is None else len(_pages(tiff))


def page_file(source: Path | bytes, index: int) -> bytes:
    """One page of a stack as a TIFF of its own, with the same values, colors and palette.

    Raises:
        FileError: a file that cannot be read.
    """
    file = io.BytesIO()
    with opened_tiff(source, lambda tiff: not pillow_suffices(tiff.pages[0])) as tiff:
        if tiff is not None:
            page = _pages(tiff)[index]
            values = page.asarray()
            if values.dtype == np.bool_:
                values = values.astype(np.uint8) * 255
            extra = {"planarconfig": page.planarconfig} if page.samplesperpixel > 1 else {}
            tifffile.imwrite(file, values, photometric=page.photometric, metadata=None, **extra)
            return file.getvalue()
    with open_image(source) as image:
        image.seek(index)
        image.save(file, format="TIFF", compression="raw")
        return file.getvalue()


def read_page(source: Path | bytes, index: int) -> RawImage:
    """The stored values of one image of a stack; errors as of `page_file`."""
    return read_values(page_file(source, index))


def _pages(tiff: tifffile.TiffFile) -> Sequence[Any]:
    """The pages of a TIFF, from its first, of the same shape and type; only the first if others differ."""
    if len(tiff.series) == 1:
        return tiff.series[0].pages
    same = {(series.shape, series.dtype) for series in tiff.series}
    return tiff.pages if len(same) == 1 and len(tiff.series) == len(tiff.pages) else tiff.pages[:1]
