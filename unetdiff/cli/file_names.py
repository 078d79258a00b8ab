"""Class names and prompts as file names: readable, safe on every system, and never the same twice."""

from __future__ import annotations

import re
from collections.abc import Sequence

MAX_CHARS, MAX_BYTES = 80, 180
"""Longest name, so that a number and a suffix fit in the 255 bytes of a file name."""
RESERVED = re.compile(r"(con|prn|aux|nul|com\d|lpt\d)(\..*)?", re.IGNORECASE)
"""Names of devices on Windows."""


def file_name(label: str) -> str:
    """A label as a part of a file name ("T-shirt/top" -> "T-shirt_top"); "_" if nothing of it is left."""
    name = re.sub(r"[^\w.+-]+", "_", label).strip(".")[:MAX_CHARS]
    name = name.encode(errors="ignore")[:MAX_BYTES].decode(errors="ignore")
    return f"{name}_" if not name or RESERVED.fullmatch(name) else name


def file_names(labels: Sequence[str]) -> list[str]:
    """One file name for each label; clashes are numbered: "a b", "a_b" -> "a_b", "a_b-2".

    Upper and lower case count as the same, as on the file systems of Windows and macOS.
    """
    taken: set[str] = set()
    names = []
    for label in labels:
        name, number = file_name(label), 1
        while (unique := name if number == 1 else f"{name}-{number}").casefold() in taken:
            number += 1
        taken.add(unique.casefold())
        names.append(unique)
    return names
