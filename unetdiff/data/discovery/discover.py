"""The kinds of datasets, in the order in which a folder is searched for them."""

from __future__ import annotations

import os
from pathlib import Path

from unetdiff.data.discovery.annotation_files import find_annotations
from unetdiff.data.discovery.found import Found
from unetdiff.data.discovery.image_folders import find_captions, find_class_folders
from unetdiff.data.discovery.known_layouts import find_known_layout
from unetdiff.data.discovery.mask_folders import find_image_and_mask_folders
from unetdiff.data.discovery.tables import find_tables
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


def discover(path: Path) -> Found:
    """The dataset in a folder.

    Raises:
        UserError: not a folder, or nothing in it that is a dataset.
    """
    if not os.path.exists(path):
        raise FileError.of(path, "does not exist", "Give the folder that holds the dataset.")
    if not path.is_dir():
        raise FileError.of(path, "must be a folder of images", "Give the folder that holds the dataset.")
    for find in KINDS:
        found = find(path)
        if found is not None:
            if found.root == Path():
                found.root = path
            return found
    raise FileError.of(
        path, "no images found", f"Give a folder with images ({', '.join(sorted(SUFFIXES)[:6])}, ...), at any depth."
    )
