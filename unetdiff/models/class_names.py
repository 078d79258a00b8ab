"""Class names and colors as model directories hold them, checked."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from unetdiff.errors import FileError

MAX_CLASSES = 255
"""Masks are uint8, and 255 is ignored."""


def require_class_names(path: Path, key: str, names: Any) -> list[str]:
    """A list of different texts.

    Raises:
        FileError: naming the file and the key.
    """
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise FileError.of(path, f"{key} must be a list of names (got {names!r:.80})")
    if not 1 <= len(names) <= MAX_CLASSES:
        raise FileError.of(path, f"{key} must be 1 to {MAX_CLASSES} names (got {len(names)})")
    twice = next((name for index, name in enumerate(names) if name in names[:index]), None)
    if twice is not None:
        raise FileError.of(path, f"{key} must be different names (got {twice!r} twice)")
    return names


def require_colors(path: Path, key: str, colors: Any, count: int) -> None:
    """As many [red, green, blue] in 0..255 as classes.

    Raises:
        FileError: naming the file and the key.
    """
    if not isinstance(colors, list) or not all(_is_color(color) for color in colors):
        raise FileError.of(path, f"{key} must be a list of [red, green, blue] in 0..255")
    if len(colors) != count:
        raise FileError.of(path, f"{key} must be one color per class (got {len(colors)} for {count} classes)")


def _is_color(color: Any) -> bool:
    return isinstance(color, list) and len(color) == 3 and all(type(x) is int and 0 <= x <= 255 for x in color)
