"""The exceptions that the command line prints as one line instead of a traceback, and the form of their messages."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from typing import Any


class UserError(ValueError):
    """Invalid input; the message names the key, its value, the constraint and the remedy, on one line."""


class TrainingStopped(RuntimeError):
    """A run that ended before its last step; the message says what was saved and how to resume.

    Attributes:
        status: the exit status for the command line (128 + signal, or 1).
    """

    def __init__(self, message: str, status: int = 1) -> None:
        super().__init__(message)
        self.status = status


def config_error(key: str, value: Any, constraint: str, remedy: str = "") -> UserError:
    """`key=value: must be <constraint>. <remedy>`, the one form of every message about a key or an option.

    Args:
        key: a dotted key (training.batch_size) or an option (--tile).
        value: its value, written as YAML: null, true, [256, 256], {dice: 1.0}.
        constraint: completes "must be", e.g. "at least 1".
        remedy: a sentence that says what to do, e.g. "Give [height, width]."
    """
    return UserError(f"{key}={as_yaml(value)}: must be {constraint}." + (f" {remedy}" if remedy else ""))


def as_yaml(value: Any) -> str:
    """A value as YAML writes it on one line, with plain strings unquoted."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{name}: {as_yaml(item)}" for name, item in value.items()) + "}"
    if isinstance(value, (list, tuple)):
        return "[" + ", ".join(as_yaml(item) for item in value) + "]"
    text = str(value)
    return f"'{text}'" if not text or " " in text else text


def nearest(word: str, choices: Iterable[str]) -> str:
    """The choice most similar to a word that is not among them, for "Did you mean ...?"."""
    return difflib.get_close_matches(word, list(choices), n=1, cutoff=0.0)[0]
