"""Digits, colors and captions of the scenes, and the pairs held out of their training split."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from unetdiff.data.config import ScenesConfig
from unetdiff.errors import config_error, did_you_mean

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

DIGITS = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]
MAX_SCENES = 1_000_000
"""Most scenes of a split."""
COLORS = ["red", "green", "blue", "yellow", "purple", "white"]


@dataclass(frozen=True)
class Prompt:
    """The prompt of a scene with one digit."""

    caption: str
    """The scene's caption: "a blue three"."""
    digit: int
    """0 to 9."""
    color: int
    """Index in `COLORS`."""
    held_out: bool
    """Whether the training split has no such scene."""


def validate_scene_counts(config: ScenesConfig) -> None:
    """Check the numbers of scenes, before memory is taken.

    Raises:
        UserError: less than one, or more than `MAX_SCENES`.
    """
    for name in ("train_images", "val_images"):
        count = getattr(config, name)
        if not 1 <= count <= MAX_SCENES:
            constraint = f"in 1..{MAX_SCENES:,} (all are held in memory, 4 kB each)"
            raise config_error(f"data.scenes.{name}", count, constraint)


def caption_of(digits: Iterable[int], colors: Iterable[int]) -> str:
    """The caption of digits and their colors: "a red seven and a blue two"."""
    return " and ".join(f"a {COLORS[color]} {DIGITS[digit]}" for digit, color in zip(digits, colors, strict=True))


def prompts(config: ScenesConfig) -> list[Prompt]:
    """All pairs of digit d and color c, at index d * config.colors + c.

    Raises:
        UserError: as of `trained_pairs`.
    """
    trained = trained_pairs(config)
    return [
        Prompt(caption_of([digit], [color]), digit, color, not trained[digit, color])
        for digit in range(10)
        for color in range(config.colors)
    ]


def trained_pairs(config: ScenesConfig) -> NDArray[np.bool_]:
    """Which digits the training split has in which colors, (10, config.colors).

    Raises:
        UserError: as of `held_out_pairs`.
    """
    import numpy as np

    trained = np.ones((10, config.colors), bool)
    for digit, color in held_out_pairs(config):
        trained[digit, color] = False
    return trained


def held_out_pairs(config: ScenesConfig) -> set[tuple[int, int]]:
    """(digit, color) of each of `config.held_out_pairs`; free of numpy, as config validation calls it.

    Raises:
        UserError: an entry that is not a color and a digit, or a digit without any color to train in.
    """
    held_out = {_pair(text, config) for text in config.held_out_pairs}
    for number in range(10):
        if sum(digit == number for digit, _ in held_out) == config.colors:
            constraint = f"a list that leaves digit {number} a color to train in"
            raise config_error("data.scenes.held_out_pairs", config.held_out_pairs, constraint)
    return held_out


def _pair(text: str, config: ScenesConfig) -> tuple[int, int]:
    """Digit and color of "blue 3" or "blue three"."""
    key, words, colors = "data.scenes.held_out_pairs", text.lower().split(), COLORS[: config.colors]
    if len(words) != 2:
        raise config_error(key, config.held_out_pairs, "a list of colors and digits", 'Give e.g. ["blue 3"].')
    color, digit = words
    if color not in colors:
        constraint = f"one of the colors {', '.join(colors)}, and a digit"
        raise config_error(key, text, constraint, did_you_mean(color, colors))
    numerals = [str(number) for number in range(10)]
    if digit not in (*numerals, *DIGITS):
        raise config_error(key, text, "a color and a digit, 0 to 9", did_you_mean(digit, DIGITS))
    return (numerals if digit in numerals else DIGITS).index(digit), colors.index(color)
