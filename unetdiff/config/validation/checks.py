"""Constraints that many keys share."""

from __future__ import annotations

import math
from collections.abc import Sequence

from unetdiff.errors import config_error


def require_at_least(key: str, value: float, minimum: int) -> None:
    if not value >= minimum:
        raise config_error(key, value, f"at least {minimum}")


def require_fraction(key: str, value: float) -> None:
    if not 0 <= value <= 1:
        raise config_error(key, value, "in [0, 1]")


def require_positive(key: str, value: float, remedy: str = "") -> None:
    if not 0 < value < math.inf:
        raise config_error(key, value, "a positive number", remedy)


def require_height_width(key: str, value: Sequence[int] | None) -> None:
    """[height, width], or None."""
    if value is not None and (len(value) != 2 or min(value) < 1):
        raise config_error(key, value, "[height, width], two positive integers", "Give e.g. [256, 256].")
