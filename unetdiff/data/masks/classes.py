"""Names and colors of the classes of mask files, and their encoding, from the keys of the config."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from unetdiff.data.config import DataConfig
from unetdiff.data.masks.color_tables import read_colors
from unetdiff.data.masks.encodings import Binary, ClassIndices, ColorTable, Encoding, ValueMap, value_table
from unetdiff.data.name_lists import distinct_names, read_names
from unetdiff.data.transforms import IGNORE_INDEX
from unetdiff.errors import FileError, UserError, config_error
from unetdiff.files.images import open_image

VOC_CLASSES = [
    "background", "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow",
    "diningtable", "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train",
    "tvmonitor",
]  # fmt: skip
BINARY_CLASSES = ["background", "foreground"]
BLACK, BLUE, ORANGE = (0, 0, 0), (31, 119, 180), (255, 127, 14)
"""Colors of the classes of 0/255 masks. Blue and orange are told apart by all kinds of color vision, and both stand out
from a gray image, as white would not."""
MAX_PALETTE_FILES = 20
"""Masks that are opened to find one with a palette."""


def voc_colormap(count: int = 256) -> NDArray[np.uint8]:
    """VOC's colors of the values 0..count-1, (count, 3), uint8 (VOClabelcolormap of the VOC development kit)."""
    value = np.arange(count)
    colors = np.zeros((count, 3), np.uint8)
    for i in range(8):
        for channel in range(3):
            colors[:, channel] |= (((value >> (3 * i + channel)) & 1) << (7 - i)).astype(np.uint8)
    return colors


def classes_of(
    config: DataConfig, root: Path, masks: Sequence[Path] = ()
) -> tuple[Encoding, list[str], NDArray[np.uint8]]:
    """The encoding of a dataset's mask files, its class names, and their colors, (C, 3).

    Names are `data.class_names`, those of the color table, the lines of `root`/classes.txt, or "class i". Colors are
    those of the color table, of the first of `masks` with a palette that is not gray, or VOC's; of 0/255 masks those of
    `binary_colors`.

    Raises:
        UserError: neither names nor a number of classes, or a number that contradicts the names.
    """
    if config.mask_colors is not None:
        colors, names, palette = read_colors(config.mask_colors, root)
        require_count("data.num_classes", config.num_classes, len(names), "data.mask_colors")
        return ColorTable.of(colors), names, np.array(palette, np.uint8)
    if config.mask_encoding == "binary":
        names = _given(config) or BINARY_CLASSES
        if len(names) != 2:
            raise config_error("data.class_names", names, "two names with data.mask_encoding=binary")
        require_count("data.num_classes", config.num_classes, 2, "data.mask_encoding=binary")
        return Binary(), list(names), binary_colors(names)
    if config.mask_values is not None:
        table = value_table(config.mask_values)
        classes = table[(table >= 0) & (table != IGNORE_INDEX)]
        count = int(classes.max()) + 1 if classes.size else 0
        names = _given(config) or _listed(root) or [f"class {i}" for i in range(max(count, config.num_classes or 0))]
        if count > len(names):
            constraint = f"classes below {len(names)}, the number of class names"
            raise config_error("data.mask_values", config.mask_values, constraint)
        require_count("data.num_classes", config.num_classes, len(names), "data.mask_values and the class names")
        return ValueMap(table), _checked(names, root), voc_colormap(len(names))
    own = first_palette(masks)
    names = _given(config) or class_names(root, config.num_classes, own)
    require_count("data.num_classes", config.num_classes, len(names), "data.class_names")
    return ClassIndices(len(names), config.allow_binary_masks), names, colors_of(own, len(names))


def binary_colors(names: Sequence[str]) -> NDArray[np.uint8]:
    """The colors of two classes, (2, 3): black for a background, which overlays leave bare, else blue; and orange."""
    return np.array([BLACK if names[0] == BINARY_CLASSES[0] else BLUE, ORANGE], np.uint8)


def class_names(root: Path, num_classes: int | None, palette: NDArray[np.uint8] | None) -> list[str]:
    """Names of the mask values: those in `classes.txt`; VOC's own for 21 classes in VOC's colors; else "class i"."""
    path = root / "classes.txt"
    names = _listed(root)
    if names is not None:
        require_count("data.num_classes", num_classes, len(names), path)
    elif num_classes is None:
        raise UserError(f"{path}: not found. Write one class name per line (value 0 first), or set data.num_classes.")
    elif num_classes == 21 and (palette is None or np.array_equal(palette[:21], voc_colormap(21))):
        names = list(VOC_CLASSES)
    else:
        names = [f"class {i}" for i in range(num_classes)]
    return _checked(names, root)


def require_count(key: str, value: int | None, count: int, place: object) -> None:
    """Raise a UserError if a number of classes is given that is not that of the names."""
    if value not in (None, count):
        raise config_error(key, value, f"null or {count}, as in {place}")


def _given(config: DataConfig) -> list[str] | None:
    names = config.class_names
    return None if names is None else distinct_names(names, [f"data.class_names[{i}]" for i in range(len(names))])


def _listed(root: Path) -> list[str] | None:
    path = root / "classes.txt"
    return read_names(path) if os.path.exists(path) else None


def _checked(names: list[str], root: Path) -> list[str]:
    if not 2 <= len(names) <= IGNORE_INDEX:
        path = root / "classes.txt"
        where = path if os.path.exists(path) else root
        raise UserError(f"{where}: must have 2 to {IGNORE_INDEX} classes (got {len(names)}); 255 is the ignore index.")
    return names


def colors_of(palette: NDArray[np.uint8] | None, count: int) -> NDArray[np.uint8]:
    """The colors of `count` classes: the palette's, or VOC's where it has fewer or only grays."""
    own = None if palette is None else palette[:count]
    return voc_colormap(count) if own is None or len(own) < count or _is_gray(own) else own


def first_palette(masks: Sequence[Path]) -> NDArray[np.uint8] | None:
    """Colors of the first mask with a palette; None if there is none, or only one of grays."""
    for path in masks[:MAX_PALETTE_FILES]:
        try:
            with open_image(path) as image:
                colors = image.getpalette() if image.mode == "P" else None
        except FileError:
            continue
        if colors is None:
            return None
        palette = np.array(colors, np.uint8).reshape(-1, 3)
        return None if _is_gray(palette) else palette
    return None


def _is_gray(palette: NDArray[np.uint8]) -> bool:
    """Whether no color has a hue: such a palette was not chosen, and could not be seen over a gray image."""
    return bool((palette == palette[:, :1]).all())
