"""The exceptions that the command line prints as one line instead of a traceback."""

from __future__ import annotations


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
