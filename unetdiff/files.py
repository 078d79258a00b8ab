"""Files that are there whole or not at all, and what tells one from another."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path


def write_whole(path: Path, text: str) -> None:
    """Write a text aside and rename it, so that a kill leaves what was there, or all of the new."""
    aside = path.with_name(f".writing-{path.name}")
    aside.write_text(text)
    os.replace(aside, path)


def sha256_of(path: Path) -> str:
    """The hash of a file's content, in hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
