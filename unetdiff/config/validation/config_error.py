"""How a config is refused: the key, its value, why not, and what would be right."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from unetdiff.errors import UserError


def config_error(key: str, value: Any, why: str, right: str) -> UserError:
    """One line: the key, its value, why not, and what would be right."""
    return UserError(f"{key}: {value!r} {why}; {right}")


def at_least(key: str, value: float, least: int) -> None:
    if not value >= least:
        raise config_error(key, value, "is too small", f"use {least} or more")


def share(key: str, value: float) -> None:
    if not 0 <= value <= 1:
        raise config_error(key, value, "is no share", "use 0 to 1")


def pair(key: str, value: Sequence[int] | None) -> None:
    if value is not None and (len(value) != 2 or min(value) < 1):
        raise config_error(key, value, "is not [height, width]", "give two positive integers, e.g. [256, 256]")
