"""A map of stored mask values to classes, as the config writes it. Free of torch and numpy."""

from __future__ import annotations

import re
from collections.abc import Mapping

from unetdiff.errors import config_error

ELSE, IGNORE, IGNORE_INDEX = "else", "ignore", 255
MAX_VALUE = 1 << 16
"""Stored values are below this."""
KEY = "data.mask_values"
REMEDY = "Give e.g. {7: 0, 8: 1, else: ignore}."


def value_ranges(mapping: Mapping[int | str, int | str]) -> list[tuple[int, int, int]]:
    """(lowest value, highest value, class or 255) of each entry; later ones take precedence, `else` is the first.

    Args:
        mapping: {7: 0, "10-20": 1, "else": "ignore"}: a value, a range of values, or `else`, to a class index or
            `ignore`.

    Raises:
        UserError: an entry of another form, or without a class.
    """
    ranges = []
    for value, target in sorted(mapping.items(), key=lambda entry: entry[0] != ELSE):
        is_index = isinstance(target, int) and not isinstance(target, bool) and 0 <= target <= IGNORE_INDEX
        if target != IGNORE and not is_index:
            raise config_error(f"{KEY}.{value}", target, "a class index from 0 to 254, or ignore", REMEDY)
        match = re.fullmatch(r"(\d{1,5})(?:-(\d{1,5}))?", str(value))
        low, high = (int(match[1]), int(match[2] or match[1])) if match else (0, -1)
        if value == ELSE:
            low, high = 0, MAX_VALUE - 1
        if not low <= high < MAX_VALUE:
            constraint = f"for a stored value from 0 to {MAX_VALUE - 1}, a range such as 10-20, or else"
            raise config_error(f"{KEY}.{value}", target, constraint, REMEDY)
        ranges.append((low, high, IGNORE_INDEX if target == IGNORE else int(target)))
    if all(target == IGNORE_INDEX for *_, target in ranges):
        raise config_error(KEY, dict(mapping), "a map to at least one class", REMEDY)
    return ranges
