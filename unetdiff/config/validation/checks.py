"""Constraints that options of several experiments share; those on config keys are in `unetdiff.config.bounds`."""

from __future__ import annotations

from unetdiff.errors import config_error

MAX_COUNT = 1_000_000
"""Largest number of images, steps or seeds, so that a typo does not run for days."""


def require_at_least(key: str, value: float, minimum: int) -> None:
    if not value >= minimum:
        raise config_error(key, value, f"at least {minimum}")
    if value > MAX_COUNT:
        raise config_error(key, value, f"at most {MAX_COUNT:,}")


def require_fraction(key: str, value: float) -> None:
    if not 0 <= value <= 1:
        raise config_error(key, value, "in [0, 1]")
