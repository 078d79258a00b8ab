"""The kinds of datasets, in the order in which a folder is searched for them."""

from __future__ import annotations

import os
from pathlib import Path

from unetdiff.data.discovery.annotation_files import find_annotations
from unetdiff.data.discovery.found import Found
from unetdiff.data.discovery.image_folders import find_captions, find_class_folders
from unetdiff.data.discovery.known_layouts import find_known_layout
from unetdiff.data.discovery.mask_folders import find_image_and_mask_folders
from unetdiff.data.discovery.neighbors import neighbor_hint
from unetdiff.data.discovery.stray_folders import common_folder, stray_folders
from unetdiff.data.discovery.tables import find_tables
from unetdiff.data.masks.globs import is_glob
from unetdiff.errors import FileError
from unetdiff.files.images import SUFFIXES

KINDS = (
    find_known_layout,
    find_annotations,
    find_tables,
    find_captions,
    find_image_and_mask_folders,
    find_class_folders,
)
"""A folder -> the dataset of this kind in it, or None."""
MAX_NAMED = 3


def search(path: Path) -> Found | None:
    """The dataset of the first kind that finds one in a folder."""
    for find in KINDS:
        found = find(path)
        if found is not None:
            if found.root == Path():
                found.root = path
            return found
    return None


def reads_all_of(found: Found) -> bool:
    """Whether training would read stray folders as well: all of the root, or globs that begin with a wildcard."""
    if found.keys["name"] != "folders":
        return found.keys["name"] in ("image_folder", "parquet")
    return any("/" in found.keys[key] and is_glob(found.keys[key].split("/")[0]) for key in ("images", "masks"))


def _apart(path: Path, stray: list[Path]) -> Found | None:
    """The dataset in the sub-folder that holds all images but those of stray folders.

    Raises:
        FileError: the images are next to stray folders, or are in several folders.
    """
    folder = common_folder(path)
    if any(one.is_relative_to(folder) for one in stray):
        names = ", ".join(one.relative_to(path).as_posix() for one in stray[:MAX_NAMED])
        reason = f"holds images next to other folders with images ({names}), which training would read, too"
        raise FileError.of(path, reason, "Give a folder that holds the dataset alone.")
    return search(folder)


def discover(path: Path) -> Found:
    """The dataset in a folder.

    Raises:
        UserError: not a folder, or nothing in it that is a dataset.
    """
    if not os.path.exists(path):
        raise FileError.of(path, "does not exist", "Give the folder that holds the dataset.")
    if not path.is_dir():
        raise FileError.of(path, "must be a folder of images", "Give the folder that holds the dataset.")
    stray, found = stray_folders(path), search(path)
    if stray and found is not None and reads_all_of(found):
        found = _apart(path, stray)
    if found is not None:
        found.left_out = stray
        if found.task == "diffusion" and found.condition == "none":
            found.hint = neighbor_hint(found.root)
        return found
    raise FileError.of(
        path, "no images found", f"Give a folder with images ({', '.join(sorted(SUFFIXES)[:6])}, ...), at any depth."
    )
