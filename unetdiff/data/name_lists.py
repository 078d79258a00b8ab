"""Names of classes: read from a file, and checked to be distinct."""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from pathlib import Path

from unetdiff.errors import FileError
from unetdiff.files.texts import read_lines


def read_names(path: Path) -> list[str]:
    """The names in a list with one per line; empty lines are skipped.

    Raises:
        FileError: missing, not UTF-8, or a name that is repeated or has control characters (with its line).
    """
    numbered = [(number, name) for number, name in enumerate(read_lines(path), start=1) if name]
    return distinct_names([name for _, name in numbered], [f"{path}, line {number}" for number, _ in numbered])


def distinct_names(names: Sequence[str], places: Sequence[str]) -> list[str]:
    """Class names, checked: metrics, tables and files are kept by name.

    Args:
        names: the names.
        places: where each of them stands, for the message.

    Raises:
        FileError: a name that is repeated or has control characters.
    """
    first: dict[str, str] = {}
    for name, place in zip(names, places, strict=True):
        if any(unicodedata.category(character) in ("Cc", "Cs", "Zl", "Zp") for character in name):
            raise FileError.of(place, f"class name {name!r} has control characters", "Use printable names.")
        if name in first:
            reason = f"class {name!r} repeats that of {first[name]}"
            raise FileError.of(place, reason, "Give every class a name of its own.")
        first[name] = place
    return list(names)
