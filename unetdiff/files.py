"""Atomic writes, content hashes, and the check that an output's parent directory exists."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

from unetdiff.errors import config_error


def write_whole(path: Path, text: str) -> None:
    """Write a text atomically: an interruption leaves the old file or the whole new one."""
    aside = path.with_name(f".writing-{path.name}")
    aside.write_text(text, encoding="utf-8")
    os.replace(aside, path)


def sha256_of(path: Path) -> str:
    """The hash of a file's content, in hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def require_folder(path: Path) -> None:
    """Check that a file or directory can be written to a path: its parent directory exists.

    Raises:
        UserError: it does not.
    """
    if not path.parent.is_dir():
        raise config_error("output", path, "in an existing directory", f"Create '{path.parent}' first.")
