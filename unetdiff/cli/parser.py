"""argparse with errors on one line that name the most similar option."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Any, NoReturn

from unetdiff.errors import UserError, config_error, nearest


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

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{self.prog}: {message}. See {self.prog} --help.")

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        if action.choices is not None and value not in action.choices:
            name = action.option_strings[0] if action.option_strings else action.dest
            choices = [str(choice) for choice in action.choices]
            remedy = f"Did you mean {nearest(str(value), choices)}?"
            raise config_error(name, value, f"one of {', '.join(choices)}", remedy)

    def parse_strictly(self, argv: Sequence[str]) -> argparse.Namespace:
        """Parse all arguments.

        Raises:
            UserError: an invalid or unknown argument; names the most similar option.
        """
        known, unknown = self.parse_known_args(argv)
        if unknown:
            raise self.unknown_argument(unknown[0])
        return known

    def unknown_argument(self, word: str) -> UserError:
        """The error for an argument that this command does not have."""
        options = [option for action in self._actions for option in action.option_strings]
        near = nearest(word.partition("=")[0], options)
        return UserError(f"{self.prog}: unknown argument {word!r}. Did you mean {near}? See {self.prog} --help.")


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
