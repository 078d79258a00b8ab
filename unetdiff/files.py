"""Files that are there whole or not at all."""

from __future__ import annotations

import os
from pathlib import Path


def write_whole(path: Path, text: str) -> None:
    """Write a text aside and rename it, so that a kill leaves what was there, or all of the new."""
    aside = path.with_name(f".writing-{path.name}")
    aside.write_text(text)
    os.replace(aside, path)
