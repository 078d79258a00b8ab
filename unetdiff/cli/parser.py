"""argparse whose refusals are one line with the nearest right option, as everywhere in the project."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import NoReturn

from unetdiff.errors import UserError, nearest


class Parser(argparse.ArgumentParser):
    """An ArgumentParser that raises UserError and never guesses an abbreviated option."""

    def __init__(self, prog: str, description: str, usage: str | None = None) -> None:
        super().__init__(
            prog=prog,
            usage=usage,
            description=description,
            allow_abbrev=False,
            formatter_class=argparse.ArgumentDefaultsHelpFormatter,
        )

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{self.prog}: {message} (see {self.prog} --help)")

    def parse_strictly(self, argv: Sequence[str]) -> argparse.Namespace:
        """Parse; UserError names the first unknown option and the nearest right one."""
        known, unknown = self.parse_known_args(argv)
        if unknown:
            raise self.unknown(unknown[0])
        return known

    def unknown(self, word: str) -> UserError:
        """The refusal of a word that is no option of this command."""
        options = [option for action in self._actions for option in action.option_strings]
        near = nearest(word.partition("=")[0], options)
        return UserError(f"{self.prog}: unknown {word!r}; nearest: {near} (see {self.prog} --help)")


def split_overrides(argv: Sequence[str], known: Sequence[str]) -> tuple[list[str], list[str]]:
    """Apart the words of dotted overrides (`--data.root DIR`) and all others, each in their order.

    An override is `--a.b` or `--a.b=value`; the word after the first form is its value unless it starts with `--`.
    `known`: the command's own options, which never are overrides.
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
