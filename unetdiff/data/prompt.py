"""The words of the scenes: digits, colours, captions, and the pairings that their training split never shows."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from unetdiff.data.config import ScenesConfig
from unetdiff.errors import UserError, nearest

DIGITS = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]
COLORS = ["red", "green", "blue", "yellow", "purple", "white"]


@dataclass(frozen=True)
class Prompt:
    """What a scene with one digit can be asked for with."""

    caption: str
    """As the scenes' own: "a blue three"."""
    digit: int
    """0 to 9."""
    color: int
    """Index in `COLORS`."""
    held_out: bool
    """Whether no scene of the training split has this digit in this colour."""


def caption_of(digits: Iterable[int], colors: Iterable[int]) -> str:
    """Digits and their colours in words: "a red seven and a blue two"."""
    return " and ".join(f"a {COLORS[color]} {DIGITS[digit]}" for digit, color in zip(digits, colors, strict=True))


def prompts(config: ScenesConfig) -> list[Prompt]:
    """Every digit in every colour: that of digit d in colour c stands at d * config.colors + c.

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
    """Which digit the training split has in which colour, (10, config.colors).

    Raises:
        UserError: one of `held_out_pairs` is no colour and digit, or a digit is left without a colour.
    """
    trained = np.ones((10, config.colors), bool)
    for text in config.held_out_pairs:
        digit, color = _pair(text, COLORS[: config.colors])
        trained[digit, color] = False
    left_out = np.flatnonzero(~trained.any(axis=1))
    if len(left_out):
        raise UserError(
            f"data.scenes.held_out_pairs: {config.held_out_pairs!r} leave the digit {left_out[0]} without a colour to "
            f"train in; take one of its {config.colors} out"
        )
    return trained


def _pair(text: str, colors: list[str]) -> tuple[int, int]:
    """Digit and colour of "blue 3" or "blue three"."""
    key, words = f"data.scenes.held_out_pairs: {text!r}", text.lower().split()
    if len(words) != 2:
        raise UserError(f'{key} is no colour and digit; e.g. "blue 3"')
    color, digit = words
    if color not in colors:
        raise UserError(f"{key}: '{color}' is none of the {len(colors)} colours; nearest: {nearest(color, colors)}")
    numerals = [str(number) for number in range(10)]
    if digit not in (*numerals, *DIGITS):
        raise UserError(f"{key}: '{digit}' is no digit; nearest: {nearest(digit, DIGITS)}")
    return (numerals if digit in numerals else DIGITS).index(digit), colors.index(color)
