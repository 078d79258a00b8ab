"""The exceptions that the command line prints as one line instead of a traceback, and the word for their remedy."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class UserError(ValueError):
    """Something the user gave cannot be used; the message names it, its value and the remedy."""


class TrainingStopped(RuntimeError):
    """A run that ended before its last step; the message says what is saved and how to go on.

    Attributes:
        status: the exit status for the command line (128 + signal, or 1).
    """

    def __init__(self, message: str, status: int = 1) -> None:
        super().__init__(message)
        self.status = status


def nearest(word: str, choices: Iterable[str]) -> str:
    """The choice that was most likely meant by a word that is none of them; for the remedy of a refusal."""
    return difflib.get_close_matches(word, list(choices), n=1, cutoff=0.0)[0]
