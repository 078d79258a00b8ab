"""How often a run validates and writes checkpoints: every so many steps, or epochs, or by itself."""

from __future__ import annotations

import re
from dataclasses import dataclass
from fractions import Fraction

from unetdiff.errors import config_error

EPOCHS = re.compile(r"(\d+(?:\.\d+)?) epochs?")
MAX_STEPS, MIN_TIMES = 500, 5
"""By itself: at most this many steps apart, at least so many times in a run."""
SHORT = 10
"""Steps of a run that is too short to be interrupted: by itself, once at its end."""


@dataclass(frozen=True)
class Interval:
    """A length in steps, which need not be whole: its multiples fall due at the first step that reaches them."""

    steps: Fraction

    def is_due(self, step: int) -> bool:
        """Whether a multiple of the length is reached by this step (from 1), and was not by the one before."""
        return step // self.steps > (step - 1) // self.steps


def make_interval(value: int | str | None, steps: int, epoch_steps: Fraction) -> Interval:
    """The interval of a key's value in a run of `steps` steps, whose epochs have `epoch_steps`."""
    if isinstance(value, int):
        return Interval(Fraction(value))
    if value is None:
        times = 1 if steps < SHORT else max(MIN_TIMES, -(-steps // MAX_STEPS))
        return Interval(Fraction(steps, times))
    return Interval(epochs_of(value) * epoch_steps)


def validate_interval(key: str, value: int | str | None) -> None:
    """Raises UserError for a text that is not a number of epochs."""
    if isinstance(value, str) and (EPOCHS.fullmatch(value) is None or not epochs_of(value)):
        constraint = 'a number of steps, or of epochs as in "2 epochs", or null'
        raise config_error(key, value, constraint, "Give e.g. 500, or 1 epoch.")


def epochs_of(text: str) -> Fraction:
    """ "1.5 epochs" -> 3/2."""
    return Fraction(text.split()[0])
