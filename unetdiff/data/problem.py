"""A fault of a set: one thing to tell, whether it is met by the check or in reading."""

from __future__ import annotations

from dataclasses import dataclass

from unetdiff.errors import UserError


@dataclass(frozen=True)
class Problem:
    """One fault of a set."""

    file: str
    """The file that has it."""
    what: str
    """What is wrong."""
    value: str
    """The value found."""
    suggestion: str
    """What to do."""

    def __str__(self) -> str:
        return f"{self.file}: {self.what} ({self.value}); {self.suggestion}"


class BadFile(UserError):
    """A `Problem` met in reading. Its constructor takes one text: so it comes through loader processes."""

    problem: Problem | None = None

    @classmethod
    def of(cls, problem: Problem) -> BadFile:
        error = cls(str(problem))
        error.problem = problem
        return error
