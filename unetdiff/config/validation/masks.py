"""Constraints on the keys of `data:` that say where masks are and what their values mean."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from unetdiff.data.capabilities import CUSTOM, WITH_ENCODINGS, WITH_PATTERNS, WITH_SHAPES, WITH_VAL_FRACTION
from unetdiff.data.config import DataConfig
from unetdiff.data.masks.color_tables import read_colors
from unetdiff.data.masks.value_ranges import value_ranges
from unetdiff.data.name_lists import distinct_names
from unetdiff.errors import as_yaml, config_error

ONLY_FOR: dict[str, Sequence[str]] = {
    "images": (*WITH_PATTERNS, *WITH_SHAPES),
    "masks": WITH_PATTERNS,
    "annotations": WITH_SHAPES,
    "mask_column": ("huggingface",),
    "val_fraction": WITH_VAL_FRACTION,
    "split_seed": WITH_VAL_FRACTION,
    "group_pattern": WITH_VAL_FRACTION,
    "mask_encoding": WITH_ENCODINGS,
    "mask_values": WITH_ENCODINGS,
    "mask_colors": WITH_ENCODINGS,
    "class_names": (*WITH_ENCODINGS, *WITH_SHAPES, CUSTOM),
    "num_classes": (*WITH_ENCODINGS, CUSTOM),
}
"""Keys of `data:` -> the datasets (`data.name`) that read them."""


def validate_masks(data: DataConfig) -> None:
    """Check that the dataset reads its keys, and that an encoding of masks is given once."""
    for key, names in ONLY_FOR.items():
        value, default = getattr(data, key), getattr(DataConfig, key)
        if value != default and data.name not in names:
            constraint = f"{as_yaml(default)} with data.name={data.name}"
            raise config_error(f"data.{key}", value, constraint, f"Only {', '.join(names)} support it.")
    given = [key for key in ("mask_values", "mask_colors") if getattr(data, key) is not None]
    if given and data.mask_encoding != "index":
        constraint = f"left out with data.{given[0]}, which says what the masks' values mean"
        raise config_error("data.mask_encoding", data.mask_encoding, constraint)
    if len(given) == 2:
        raise config_error("data.mask_values", data.mask_values, "null with data.mask_colors", "Set one of the two.")
    if data.mask_values is not None:
        value_ranges(data.mask_values)
    if isinstance(data.mask_colors, dict):
        read_colors(data.mask_colors, Path())
    if data.mask_colors is not None and data.class_names is not None:
        raise config_error("data.class_names", data.class_names, "null with data.mask_colors, which has the names")
    if data.class_names is not None:
        distinct_names(data.class_names, [f"data.class_names[{i}]" for i in range(len(data.class_names))])
    if data.mask_encoding == "binary" and data.num_classes not in (None, 2):
        raise config_error("data.num_classes", data.num_classes, "null or 2 with data.mask_encoding=binary")
    try:
        re.compile(data.group_pattern or "")
    except re.error as error:
        remedy = "Give e.g. '^[^_]+' for names such as scene1_0001."
        raise config_error(
            "data.group_pattern", data.group_pattern, f"a regular expression ({error})", remedy
        ) from None
