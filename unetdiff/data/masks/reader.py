"""The interface of a reader: images with masks, whatever the masks are stored as."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from unetdiff.data.issues import BadFile, Issue, issue_of, size_issue

Indices = NDArray[np.uint8]
"""Class indices of a mask, (H, W); 255 = ignore."""


class MaskReader(ABC):
    """The images of a split and their masks; files are read on access.

    Attributes:
        names: a name per image.
        classes: names of the mask values 0..C-1; [] where masks are not read.
        palette: colors of the classes, uint8 (C, 3).
        place: where the names of the split are listed: a file or a folder, for messages.
        keeps: whether decoding a mask costs so much that the dataset keeps it.
    """

    names: Sequence[str]
    classes: list[str]
    palette: NDArray[np.uint8]
    place: str
    keeps = False

    @abstractmethod
    def image(self, index: int) -> tuple[Path | bytes, str]:
        """An image file, or its bytes and where they stand; BadFile where that is unclear."""

    @abstractmethod
    def mask(self, index: int) -> Indices:
        """The class indices of a mask, (H, W).

        Raises:
            BadFile: it is missing, unreadable, or has a value that is not a class.
        """

    @abstractmethod
    def mask_place(self, index: int) -> Path:
        """The file of a mask, for messages."""

    def issues(self) -> list[Issue]:
        """Issues of the whole listing, e.g. masks without images."""
        return []

    def mask_issues(self, index: int, image_size: tuple[int, int] | None) -> list[Issue]:
        """Everything wrong with a mask, whose image has `image_size` (height, width), or is unreadable (None)."""
        try:
            values = self.mask(index)
        except BadFile as error:
            return [issue_of(error)]
        return self.size_issues(index, image_size, values.shape)

    def size_issues(self, index: int, image_size: tuple[int, ...] | None, mask_size: tuple[int, ...]) -> list[Issue]:
        """The issue of a mask whose size differs from its image's; [] where they agree."""
        if image_size is None or tuple(image_size) == tuple(mask_size):
            return []
        source, name = self.image(index)
        image = source if isinstance(source, Path) else Path(name)
        return [size_issue(image, self.mask_place(index), tuple(image_size), tuple(mask_size))]
