"""A folder of images whose masks are next to it, or of masks whose images are."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from unetdiff.data.discovery.mask_folders import ENDING, MIN_OVERLAP, probe
from unetdiff.data.discovery.stray_folders import dataset_folders
from unetdiff.errors import FileError, printable
from unetdiff.files.folders import files_in
from unetdiff.files.images import SUFFIXES

MAX_FOLDERS = 50


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
        own_masks, other_masks = (probe(some).encoding != "none" for some in (files, theirs))
        if own_masks == other_masks:
            continue
        kind = f"the folder {printable(other.name)} next to it has masks" if other_masks else "these are masks: the "
        kind += "" if other_masks else f"folder {printable(other.name)} next to it has images"
        return f"{kind} of the same {same} names; `unetdiff init {parent}` would train a segmenter"
    return ""


def _names(files: Sequence[Path]) -> set[str]:
    """The stems of files, without an ending such as _mask."""
    return {ENDING.sub("", file.stem) or file.stem for file in files}
