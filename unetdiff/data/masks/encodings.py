"""What the stored values of a mask mean: class indices, 0 and 255, a map of values, or a table of colors."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
from einops import rearrange
from numpy.typing import NDArray

from unetdiff.data.issues import BadFile, Issue, first_values, value_issue
from unetdiff.data.masks.value_ranges import MAX_VALUE, value_ranges
from unetdiff.data.transforms import IGNORE_INDEX

Values = NDArray[np.generic]
"""Stored values, (H, W), or colors, (H, W, 3)."""
MAX_COLORS = 50
"""More colors than this are not a palette: the mask is a photograph, or was saved lossy."""


class Encoding(ABC):
    """From stored values to class indices."""

    of_colors = False
    """Whether it decodes colors."""

    @abstractmethod
    def issue(self, values: Values, place: str) -> Issue | None:
        """What is wrong with the values of a mask, whose file is `place`."""

    @abstractmethod
    def indices(self, values: Values) -> NDArray[np.uint8]:
        """Class indices (H, W) of values without issue."""

    def decode(self, values: Values, place: str) -> NDArray[np.uint8]:
        """Class indices of a mask, (H, W); BadFile for a value that does not mean anything."""
        issue = self.issue(values, place)
        if issue is not None:
            raise BadFile.from_issue(issue)
        return self.indices(values)


@dataclass(frozen=True)
class ClassIndices(Encoding):
    """A class index per pixel, 255 = ignore."""

    num_classes: int
    allow_binary: bool = False
    """Accept masks of 0 and 255 alone, whose 255 is usually meant as foreground."""

    def issue(self, values: Values, place: str) -> Issue | None:
        if values.ndim == 3:
            return _color_issue(values, place)
        present = distinct(values)
        wrong = wrong_values(values, self.num_classes)
        if IGNORE_INDEX in present and set(present) <= {0, IGNORE_INDEX} and not self.allow_binary:
            return Issue(
                place,
                f"a 0/{IGNORE_INDEX} mask, but {IGNORE_INDEX} is ignored in training",
                f"{(values == IGNORE_INDEX).mean():.0%} of it is {IGNORE_INDEX}",
                f"Set data.mask_encoding=binary if {IGNORE_INDEX} is the foreground, or data.allow_binary_masks=true "
                "to ignore it.",
            )
        return value_issue(place, wrong, self.num_classes) if wrong else None

    def decode(self, values: Values, place: str) -> NDArray[np.uint8]:
        lenient = ClassIndices(self.num_classes, allow_binary=True)  # a mask with one class and a border is valid
        issue = lenient.issue(values, place)
        if issue is not None:
            raise BadFile.from_issue(issue)
        return self.indices(values)

    def indices(self, values: Values) -> NDArray[np.uint8]:
        return values.astype(np.uint8)


@dataclass(frozen=True)
class Binary(Encoding):
    """0 is background, 255 (or 1) is foreground."""

    def issue(self, values: Values, place: str) -> Issue | None:
        gray = _gray(values)
        if gray is None:
            return _color_issue(values, place)
        present = distinct(gray)
        if set(present) <= {0, 1} or set(present) <= {0, 255}:
            return None
        wrong = [value for value in present if value not in (0, 255)]
        if len(present) == 2:
            remedy = f"Set data.mask_values={{{present[0]}: 0, {present[1]}: 1}} instead of data.mask_encoding."
        elif len(wrong) <= MAX_COLORS // 5:
            remedy = "These look like classes: set data.mask_encoding=index, or data.mask_values."
        else:
            remedy = (
                "An antialiased or lossy mask: set data.mask_values={0-127: 0, 128-255: 1} instead of "
                "data.mask_encoding."
            )
        return Issue(place, "values other than 0 and 255", first_values(wrong), remedy)

    def indices(self, values: Values) -> NDArray[np.uint8]:
        gray = _gray(values)
        assert gray is not None
        return np.not_equal(gray, 0).astype(np.uint8)


@dataclass(frozen=True)
class ValueMap(Encoding):
    """Stored values to classes, by a table as of `value_table`."""

    table: NDArray[np.int16] = field(repr=False)
    """Class of each value, (65536,), -1 for values that are not in the map."""

    def issue(self, values: Values, place: str) -> Issue | None:
        gray = _gray(values)
        if gray is None:
            return _color_issue(values, place)
        wrong = [value for value in distinct(gray) if not 0 <= value < MAX_VALUE or self.table[value] < 0]
        remedy = "Add them, as a class or as ignore, or `else: ignore`."
        return Issue(place, "values that are not in data.mask_values", first_values(wrong), remedy) if wrong else None

    def indices(self, values: Values) -> NDArray[np.uint8]:
        gray = _gray(values)
        assert gray is not None
        return self.table[gray.astype(np.int64)].astype(np.uint8)


@dataclass(frozen=True)
class ColorTable(Encoding):
    """Colors to classes."""

    keys: NDArray[np.int64]
    """Colors as r * 65536 + g * 256 + b, ascending, (N,)."""
    targets: NDArray[np.uint8]
    """Class of each color, (N,); 255 = ignore."""
    of_colors = True

    @classmethod
    def of(cls, colors: Mapping[tuple[int, int, int], int]) -> ColorTable:
        """From {(r, g, b): class index}."""
        keys = pack(np.array(list(colors), np.uint8))
        order = np.argsort(keys)
        return cls(keys[order], np.array(list(colors.values()), np.uint8)[order])

    def issue(self, values: Values, place: str) -> Issue | None:
        packed = pack(values)
        unknown = packed[~self._known(packed)[1]]
        if not unknown.size:
            return None
        keys, counts = np.unique(unknown, return_counts=True)
        first = [_rgb(int(keys[i])) for i in np.argsort(-counts)[:3]]
        shown = ", ".join(str(color) for color in first) + (f" and {len(keys) - 3} more" if len(keys) > 3 else "")
        if len(keys) > MAX_COLORS:
            remedy = "This looks like a lossy (JPEG) or antialiased mask: export it again as PNG."
        else:
            remedy = "Add them to data.mask_colors, as a class or as ignore."
        return Issue(
            place, f"{unknown.size / packed.size:.1%} of it has colors outside data.mask_colors", shown, remedy
        )

    def indices(self, values: Values) -> NDArray[np.uint8]:
        return self.targets[self._known(pack(values))[0]]

    def _known(self, packed: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
        """The nearest entry of each color, and whether it is this color."""
        place = np.minimum(np.searchsorted(self.keys, packed), len(self.keys) - 1)
        return place, self.keys[place] == packed


def value_table(mapping: Mapping[int | str, int | str]) -> NDArray[np.int16]:
    """The class of every stored value, (65536,), 255 = ignore, -1 where there is none; errors as of `value_ranges`."""
    table = np.full(MAX_VALUE, -1, np.int16)
    for low, high, target in value_ranges(mapping):
        table[low : high + 1] = target
    return table


def wrong_values(values: Values, num_classes: int) -> list[int]:
    """The values of a mask of class indices that are neither a class nor ignored, ascending."""
    return [value for value in distinct(values) if num_classes <= value != IGNORE_INDEX]


def distinct(values: Values) -> list[int]:
    """The values of a mask (H, W), ascending."""
    if values.dtype == np.uint8:
        return np.flatnonzero(np.bincount(values.reshape(-1), minlength=256)).tolist()
    return np.unique(values).tolist()


def pack(colors: Values) -> NDArray[np.int64]:
    """Colors (..., 3) as one number each, (...)."""
    red, green, blue = rearrange(colors.astype(np.int64), "... c -> c ...")
    return (red << 16) | (green << 8) | blue


def _rgb(packed: int) -> list[int]:
    return [packed >> 16, packed >> 8 & 255, packed & 255]


def _gray(values: Values) -> Values | None:
    """Values (H, W); those of a gray image with three equal channels too; None for colors."""
    if values.ndim == 2:
        return values
    first = values[..., 0]
    return first if np.array_equal(first, values[..., 1]) and np.array_equal(first, values[..., 2]) else None


def _color_issue(values: Values, place: str) -> Issue:
    """An RGB mask where one number per pixel is expected."""
    keys = np.unique(pack(values))
    gray = bool((np.isin(keys, [0, 255 * 65793])).all())
    if gray:
        remedy = "Set data.mask_encoding=binary if white is the foreground."
    elif len(keys) <= MAX_COLORS:
        remedy = "Name the colors in data.mask_colors; `unetdiff data stats` counts them and proposes a table."
    else:
        remedy = "Map its colors to class indices and save it as an indexed (palette) or 8-bit gray PNG."
    count = f"{len(keys)} color{'' if len(keys) == 1 else 's'}"
    return Issue(place, "mask is not a one-channel PNG", f"mode RGB, {count}", remedy)
