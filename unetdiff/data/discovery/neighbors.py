"""A folder of images whose masks are next to it, or of masks whose images are."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from unetdiff.data.discovery.stray_folders import dataset_folders
from unetdiff.data.masks.inspect import inspect_masks
from unetdiff.errors import FileError, printable
from unetdiff.files.folders import files_in
from unetdiff.files.images import SUFFIXES

MIN_OVERLAP = 0.5
"""Fraction of the names that both folders must have."""
MAX_FOLDERS = 50
MAX_PROBED = 5
"""Files that are decoded to see whether they are masks."""
ENDING = re.compile(r"(?:[_-][A-Za-z][A-Za-z0-9]*)+$")
"""Of a name: "_mask"."""


def neighbor_hint(path: Path) -> str:
    """A sentence on the folder next to this one that has the same names, if one of the two holds masks; else ""."""
    folder = path.absolute()
    try:
        files = files_in(folder, SUFFIXES)
        names = _names(files)
        neighbors = [one for one in dataset_folders(folder.parent) if one != folder][:MAX_FOLDERS] if names else []
    except FileError:
        return ""
    parent = printable(str(path.parent if path.name and path.name != ".." else folder.parent))
    for other in neighbors:
        try:
            theirs = files_in(other, SUFFIXES)
        except FileError:
            continue
        same = len(names & _names(theirs))
        if same < MIN_OVERLAP * len(names):
            continue
        own_masks, other_masks = _are_masks(files), _are_masks(theirs)
        if own_masks == other_masks:
            continue
        kind = f"the folder {printable(other.name)} next to it has masks" if other_masks else "these are masks: the "
        kind += "" if other_masks else f"folder {printable(other.name)} next to it has images"
        return f"{kind} of the same {same} names; `unetdiff init {parent}` would train a segmenter"
    return ""


def _names(files: Sequence[Path]) -> set[str]:
    """The stems of files, without an ending such as _mask."""
    return {ENDING.sub("", file.stem) or file.stem for file in files}


def _are_masks(files: Sequence[Path]) -> bool:
    return inspect_masks(files[:: max(1, len(files) // MAX_PROBED)][:MAX_PROBED]).encoding != "none"
