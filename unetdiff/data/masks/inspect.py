"""What the values of mask files look like, and the config keys that fit them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from unetdiff.data.issues import BadFile
from unetdiff.data.masks.encodings import pack
from unetdiff.data.masks.pairs import read_values
from unetdiff.data.stacks import page_count, page_file
from unetdiff.data.threads import map_in_threads
from unetdiff.data.transforms import IGNORE_INDEX
from unetdiff.errors import FileError

MAX_FILES = 2000
"""Masks that are read; of more, as many at equal distances."""
MAX_CLASSES = 64
"""More values or colors than this are those of an image, or of an antialiased mask."""
MIN_GAPS = 20
"""Values with gaps whose largest is above this are not class indices but stored as they looked good."""

Color = tuple[int, int, int]


@dataclass
class MaskValues:
    """Counts of the values, and of the colors of those masks that have colors, over all masks that were read."""

    files: int = 0
    values: dict[int, int] = field(default_factory=dict)
    """Pixels of each stored value, ascending; of one-channel masks, and of gray ones in RGB."""
    colors: dict[Color, int] = field(default_factory=dict)
    """Pixels of each color, the most frequent first."""
    unreadable: int = 0
    in_rgb: bool = False
    """Whether gray masks are stored in three equal channels."""

    @property
    def encoding(self) -> str:
        """index, binary, values, colors, antialiased (0 and 255 with shades) or none (photographs)."""
        if self.colors:
            return "colors" if len(self.colors) <= MAX_CLASSES else "none"
        present = set(self.values)
        if not present:
            return "none"
        if present <= {0, 255} and 255 in present:
            return "binary"
        classes = sorted(present - {IGNORE_INDEX})
        if len(present) > MAX_CLASSES:
            ends = self.values.get(0, 0) + self.values.get(255, 0)
            is_binary = ends > 0.8 * sum(self.values.values())
            return "antialiased" if is_binary else "none" if max(present) > MAX_CLASSES * 3 else "index"
        is_sparse = classes[-1] >= MIN_GAPS and len(classes) < 0.5 * (classes[-1] + 1)
        return "values" if is_sparse or max(present) > IGNORE_INDEX else "index"

    def keys(self) -> dict[str, Any]:
        """The keys of `data:` that fit, without names of classes; {} for images."""
        encoding = self.encoding
        if encoding == "binary":
            return {"mask_encoding": "binary"}
        if encoding == "antialiased":
            return {"mask_values": {"0-127": 0, "128-255": 1}}
        if encoding == "values":
            return {"mask_values": {value: i for i, value in enumerate(self.values)}}
        if encoding == "index" and self.in_rgb:
            return {"mask_values": {value: "ignore" if value == IGNORE_INDEX else value for value in self.values}}
        if encoding == "index":
            return {"num_classes": max(2, max(value for value in self.values if value != IGNORE_INDEX) + 1)}
        if encoding == "colors":
            return {"mask_colors": {f"class {i}": list(color) for i, color in enumerate(sorted(self.colors))}}
        return {}

    def describe(self) -> str:
        """The values in words."""
        total = max(1, sum(self.values.values()) + sum(self.colors.values()))
        if self.colors:
            return f"{len(self.colors)} color{'' if len(self.colors) == 1 else 's'} in RGB"
        values = list(self.values)
        if self.encoding in ("binary", "antialiased"):
            white = sum(count for value, count in self.values.items() if value > 127) / total
            shades = "" if self.encoding == "binary" else f", and {len(values) - 2} shades in between"
            return f"0 and 255{shades}: {white:.0%} is 255"
        shown = (
            f"{values[0]} to {values[-1]}"
            if values == list(range(values[0], values[-1] + 1))
            else ", ".join([str(value) for value in values[:8]] + (["..."] if len(values) > 8 else []))
        )
        ignored = self.values.get(IGNORE_INDEX, 0) / total
        if ignored and self.encoding == "index":
            classes = [value for value in values if value != IGNORE_INDEX]
            return f"{classes[0]} to {classes[-1]}, and 255 ({ignored:.1%}, ignored)"
        return shown


def inspect_masks(files: Sequence[Path | bytes], max_files: int = MAX_FILES) -> MaskValues:
    """The values of mask files (of every page of a stack), or of their bytes; unreadable ones are counted."""
    pages = [(file, page) for file in files[:: max(1, len(files) // max_files)] for page in _pages(file)]
    found = MaskValues()
    for counts in map_in_threads(_counts, pages[:: max(1, len(pages) // max_files)], "masks", False):
        if counts is None:
            found.unreadable += 1
            continue
        found.files += 1
        is_gray, pixels, channels = counts
        found.in_rgb |= channels == 3
        target: dict[Any, int] = found.values if is_gray else found.colors
        for value, number in pixels.items():
            target[value] = target.get(value, 0) + number
    found.values = dict(sorted(found.values.items()))
    found.colors = dict(sorted(found.colors.items(), key=lambda item: -item[1]))
    if found.colors and found.values:  # gray masks among colored ones
        for value, number in found.values.items():
            color = (min(value, 255),) * 3
            found.colors[color] = found.colors.get(color, 0) + number
        found.values = {}
    return found


def _pages(file: Path | bytes) -> Sequence[int | None]:
    """The pages of a stack; [None] for any other file."""
    try:
        count = page_count(file)
    except FileError:
        return [None]
    return range(count) if count > 1 else [None]


def _counts(source: tuple[Path | bytes, int | None]) -> tuple[bool, dict[Any, int], int] | None:
    """Whether a mask, a file or a page of one, is gray, the pixels of each of its values or colors, and its channels;
    None if it cannot be read."""
    file, page = source
    try:
        values = read_values(file if page is None else page_file(file, page), colors=False)
    except (BadFile, FileError):
        return None
    channels = 1 if values.ndim == 2 else 3
    if values.ndim == 3 and (values == values[..., :1]).all():
        values = values[..., 0]
    if values.ndim == 2:
        distinct, counts = np.unique(values, return_counts=True)
        return True, dict(zip(distinct.tolist(), counts.tolist(), strict=True)), channels
    distinct, counts = np.unique(pack(values), return_counts=True)
    colors = [(key >> 16, key >> 8 & 255, key & 255) for key in distinct.tolist()]
    return False, dict(zip(colors, counts.tolist(), strict=True)), channels


def proposal(found: MaskValues) -> list[str]:
    """What was found, and the keys that fit, as lines: a row per color where there are few."""
    keys = found.keys()
    if not keys:
        return []
    lines = [f"The {found.files} masks hold {found.describe()}."]
    if found.colors:
        total = sum(found.colors.values())
        lines += [
            f"  {str(list(color)):<17}{count:>14,} pixels {count / total:>8.2%}"
            for color, count in found.colors.items()
        ]
        lines += ["Name them (`void` for what is ignored):", "data:", "  mask_colors:"]
        lines += [f"    class {i}: {list(color)}" for i, color in enumerate(sorted(found.colors))]
        return lines
    return [*lines, "Set:", "data:", *(f"  {key}: {_text(value)}" for key, value in keys.items())]


def _text(value: Any) -> str:
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{name}: {item}" for name, item in value.items()) + "}"
    return str(value)
