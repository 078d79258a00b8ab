"""The exceptions that the command line prints as one line instead of a traceback, and the form of their messages."""

from __future__ import annotations

import difflib
import errno
import os
import unicodedata
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Self

MAX_VALUE_CHARS = 200
"""Longest value that is repeated in a message."""
MIN_SIMILARITY, MIN_PART = 0.6, 3
"""Of words that "Did you mean" proposes: fraction of the characters that agree, and length of a word within another."""


OS_REMEDIES = {
    errno.EACCES: "Give a path with the permissions for it.",
    errno.EPERM: "Give a path with the permissions for it.",
    errno.EROFS: "Give a path on a file system that can be written.",
    errno.ENOSPC: "Free space on the disk and run the command again.",
    errno.EDQUOT: "Free space within your quota and run the command again.",
    errno.EFBIG: "Raise the limit on file sizes (ulimit -f) and run the command again.",
    errno.EMFILE: "Raise the limit on open files (ulimit -n) and run the command again.",
    errno.ENFILE: "Close other programs and run the command again.",
    errno.EIO: "Check the disk and run the command again.",
    errno.ENAMETOOLONG: "Give a shorter name.",
    errno.ENOTDIR: "Give a path whose folders are folders.",
    errno.EISDIR: "Give a file.",
}
"""What to do about a failed operation of the system."""


class UserError(ValueError):
    """Invalid input; the message names the key, its value, the constraint and the remedy, on one line."""

    def __init__(self, message: object = "") -> None:
        super().__init__(_own_line(str(message)))


class FileError(UserError):
    """A file or folder that is missing, damaged, of another kind, or cannot be written.

    Constructed from its text alone, so that workers of a data loader can pass it on.

    Attributes:
        path: the file, or where in it ("list.txt, line 3").
        reason: what is wrong, without path and remedy.
        remedy: what to do; empty where the caller knows better.
    """

    path: str = ""
    reason: str = ""
    remedy: str = ""

    @classmethod
    def of(cls, path: str | Path, reason: str, remedy: str = "") -> Self:
        """`path: reason. remedy`; escape codes and line breaks in the path are shown, not sent to the terminal."""
        where, reason = printable(str(path)), printable(reason)
        error = cls(f"{where}: {reason}." + (f" {remedy}" if remedy else ""))
        error.path, error.reason, error.remedy = where, reason, remedy
        return error

    @classmethod
    def from_os_error(cls, path: str | Path, error: Exception, remedy: str = "") -> Self:
        """A failed operation of the system on a path, in its words: "no such file or directory"."""
        reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
        number = getattr(error, "errno", None)
        return cls.of(path, reason[:1].lower() + reason[1:], remedy or OS_REMEDIES.get(number or 0, "Check the path."))


class TrainingStopped(RuntimeError):
    """A run that ended before its last step; the message says what was saved and how to resume.

    Attributes:
        status: the exit status for the command line (128 + signal, or 1).
    """

    def __init__(self, message: str, status: int = 1) -> None:
        super().__init__(message)
        self.status = status


class AnotherProcessFailed(RuntimeError):
    """Another process of this run failed and reported why; this one ends without a message."""


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an exception is torch's or Python's word for too little memory."""
    text = str(error)
    return isinstance(error, MemoryError) or "out of memory" in text or "can't allocate memory" in text


def in_one_line(error: Exception) -> UserError | TrainingStopped | None:
    """An exception as one with a message of one line: of the system, of too little memory, or itself; None: a bug."""
    if isinstance(error, UserError | TrainingStopped):
        return error
    if isinstance(error, OSError):  # the last resort: commands name their files themselves
        return FileError.from_os_error(error.filename or "a file", error)
    if isinstance(error, MemoryError | RuntimeError) and is_out_of_memory(error):
        return UserError("out of memory. Use smaller images, a smaller batch size, or tiles (predict --tile).")
    return None


def _own_line(message: str) -> str:
    """A message without the traceback that torch puts before that of an error in a worker of a data loader."""
    if not (message.startswith("Caught ") and "\nOriginal Traceback" in message):
        return message
    return message.rstrip().rpartition("\n")[2].partition(": ")[2]


def config_error(key: str, value: Any, constraint: str, remedy: str = "") -> UserError:
    """`key=value: must be <constraint>. <remedy>`, the one form of every message about a key or an option.

    Args:
        key: a dotted key (training.batch_size) or an option (--tile).
        value: its value, written as YAML: null, true, [256, 256], {dice: 1.0}.
        constraint: completes "must be", e.g. "at least 1".
        remedy: a sentence that says what to do, e.g. "Give [height, width]."
    """
    text = shortened(printable(as_yaml(value)))
    return UserError(f"{printable(key)}={text}: must be {printable(constraint)}." + (f" {remedy}" if remedy else ""))


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
    try:
        text = str(value)
    except ValueError:  # an integer of more than 4,300 digits
        text = "a very large number"
    return f"'{text}'" if not text or " " in text else text


def similarity(a: str, b: str) -> float:
    """Fraction of the characters of two words that agree, 0 to 1, without case and leading dashes."""
    return difflib.SequenceMatcher(None, a.lower().lstrip("-"), b.lower().lstrip("-")).ratio()


def nearest(word: str, choices: Iterable[str]) -> str | None:
    """The choice that a word was most likely meant to be; None where none is alike.

    Alike are words of which `MIN_SIMILARITY` of the characters agree, and a choice that has the word as a part.
    """
    word, choices = word[:MAX_VALUE_CHARS], list(choices)
    shared = {choice: len(os.path.commonprefix([word, choice])) for choice in choices}  # decides between equals
    best = max(choices, key=lambda choice: (similarity(word, choice), shared[choice]), default=None)
    if best is not None and similarity(word, best) >= MIN_SIMILARITY:
        return best
    part = word.lower().lstrip("-")
    holders = [choice for choice in choices if part in choice.lower()] if len(part) >= MIN_PART else []
    return min(holders, key=len, default=None)


def did_you_mean(word: str, choices: Iterable[str], form: str = "{}", otherwise: str = "") -> str:
    """ "Did you mean X?" for a word that is not among the choices.

    Args:
        word: what was given.
        choices: what it may be.
        form: of the choice in the message, e.g. "encoder.{}".
        otherwise: the sentence where no choice is alike.
    """
    near = nearest(word, choices)
    return otherwise if near is None else f"Did you mean {form.format(near)}?"


def shortened(text: str, length: int = MAX_VALUE_CHARS) -> str:
    """A text without its middle, if it is longer than `length` characters."""
    return text if len(text) <= length else f"{text[: length // 2]}...{text[-length // 2 :]}"


def printable(text: str) -> str:
    """A text on one line without control characters (escape codes, line breaks) or undecodable bytes, which are shown
    as `\\x1b`."""
    return "".join(
        character
        if character.isprintable() or unicodedata.category(character) == "Zs"
        else character.encode("unicode_escape", "backslashreplace").decode()
        for character in text
    )
