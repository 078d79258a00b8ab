"""argparse with errors on one line that name the most similar option."""

from __future__ import annotations

import argparse
import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

from unetdiff.errors import UserError, config_error, nearest

REQUIRED = "the following arguments are required: "
"""The start of argparse's message."""
MAX_INTEGER = 2**32 - 1
"""Largest integer of any option: that of a seed."""
COUNT, STEPS, SEED, FRACTION = (1, 1_000_000), (1, 100_000), (0, MAX_INTEGER), (0, 1)
LIMITS: dict[str, tuple[float, float]] = {
    "batch_size": COUNT,
    "batch_sizes": COUNT,
    "frames": (2, 1000),
    "guidance_rescale": FRACTION,
    "guidance_scale": (0, 1000),
    "guidance_scales": (0, 1000),
    "interpolate_to_seed": SEED,
    "num_images": COUNT,
    "num_inference_steps": STEPS,
    "opset": (1, 1000),
    "port": (1, 65_535),
    "rounds": STEPS,
    "seed": SEED,
    "size": (1, 16_384),
    "strength": FRACTION,
    "train_steps": (1, 10**9),
    "warmups": (0, 100_000),
}
"""The range of the options of these names, whatever the command. Other numbers are finite; counts (num_...) are at
most a million."""


def integer(word: str) -> int:
    """An int; the `type` of options with `type=int`."""
    number = int(word) if len(word) < 30 else MAX_INTEGER + 1
    if abs(number) > MAX_INTEGER:
        raise argparse.ArgumentTypeError(f"must be at most {MAX_INTEGER:,} (got {_short(word)})")
    return number


def finite(word: str) -> float:
    """A finite float; the `type` of options with `type=float`."""
    number = float(word)
    if not math.isfinite(number):
        raise argparse.ArgumentTypeError(f"must be a finite number (got {_short(word)})")
    return number


def path(word: str) -> Path:
    """A path with "~" expanded, and not empty; the `type` of options with `type=Path`."""
    if not word.strip() or "\0" in word:
        raise argparse.ArgumentTypeError(f"must be a path (got {word!r})")
    return Path(os.path.expanduser(word))


def _short(word: str) -> str:
    return word if len(word) <= 30 else f"{word[:30]}..."


class HelpFormatter(argparse.ArgumentDefaultsHelpFormatter):
    """Appends the default of an option, unless it is None or its help states it."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        if action.default is None or "default:" in (action.help or ""):
            return action.help
        return super()._get_help_string(action)


class Parser(argparse.ArgumentParser):
    """An ArgumentParser that raises UserError and accepts no abbreviations."""

    def __init__(self, prog: str, description: str, usage: str | None = None) -> None:
        super().__init__(
            prog=prog,
            usage=usage,
            description=description,
            allow_abbrev=False,
            formatter_class=HelpFormatter,
        )
        for type_, checked in ((int, integer), (float, finite), (Path, path)):
            self.register("type", type_, checked)

    def error(self, message: str) -> NoReturn:
        names = message.removeprefix(REQUIRED)
        if names != message:
            message = f"missing {', '.join(map(self._with_meaning, names.split(', ')))}"
        raise UserError(f"{self.prog}: {message}. See {self.prog} --help.")

    def _with_meaning(self, name: str) -> str:
        """ "task (one of segmentation, diffusion, joint)": an argument's choices, or else its help."""
        for action in self._actions:
            if name in (action.metavar, action.dest, "/".join(action.option_strings)):
                choices = "" if action.choices is None else f"one of {', '.join(map(str, action.choices))}"
                meaning = choices or action.help
                return f"{name} ({meaning})" if meaning else name
        return name

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        if action.choices is not None and value not in action.choices:
            name = action.option_strings[0] if action.option_strings else action.dest
            choices = [str(choice) for choice in action.choices]
            remedy = f"Did you mean {nearest(str(value), choices)}?"
            raise config_error(name, value, f"one of {', '.join(choices)}", remedy)

    def parse_strictly(self, argv: Sequence[str]) -> argparse.Namespace:
        """Parse all arguments.

        Raises:
            UserError: an invalid or unknown argument (names the most similar option), or a number out of range.
        """
        known, unknown = self.parse_known_args(argv)
        if unknown:
            raise self.unknown_argument(unknown[0])
        for name, value in vars(known).items():
            _check_limits(name, value)
        return known

    def unknown_argument(self, word: str) -> UserError:
        """The error for an argument that this command does not have."""
        options = [option for action in self._actions for option in action.option_strings]
        near = nearest(word.partition("=")[0], options)
        return UserError(f"{self.prog}: unknown argument {word!r}. Did you mean {near}? See {self.prog} --help.")


def _check_limits(name: str, value: Any) -> None:
    low, high = LIMITS.get(name, (-math.inf, COUNT[1] if name.startswith("num_") else math.inf))
    for number in value if isinstance(value, list | tuple) else [value]:
        if isinstance(number, int | float) and not low <= number <= high:
            constraint = (
                f"in [{low}, {high}]" if high == 1 else f"at least {low}" if number < low else f"at most {high:,}"
            )
            raise config_error(f"--{name}", number, constraint)


def split_overrides(argv: Sequence[str], known: Sequence[str]) -> tuple[list[str], list[str]]:
    """Dotted overrides (`--data.root DIR`) and all other arguments, each in their order.

    An override is `--a.b value`, `--a.b=value`, or a bare `--a.b` before another option.
    `known`: the command's own options, which are never overrides.
    """
    overrides: list[str] = []
    others: list[str] = []
    words = list(argv)
    while words:
        word = words.pop(0)
        name = word.partition("=")[0]
        if word.startswith("--") and name not in known and "." in name:
            overrides.append(word)
            if "=" not in word and words and not words[0].startswith("--"):
                overrides.append(words.pop(0))
        else:
            others.append(word)
    return overrides, others
