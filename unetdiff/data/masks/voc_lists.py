"""The lists of a folder in VOC's layout: the ids of a split, and the image and mask of each."""

from __future__ import annotations

import os
import posixpath
from collections.abc import Collection
from pathlib import Path

from unetdiff.data.masks.pairs import ImageMaskPair
from unetdiff.data.masks.voc_paths import AUGMENTED_MASKS, AUGMENTED_SPLIT, IMAGES, MASKS, SPLITS
from unetdiff.errors import FileError, config_error
from unetdiff.files.folders import entries, files_in, inside
from unetdiff.files.images import SUFFIXES
from unetdiff.files.texts import read_lines

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png")


def list_pairs(root: Path, split: str) -> list[ImageMaskPair]:
    """Image and mask of each id of a split, in the list's order; missing and ambiguous files are reported on access.

    Masks are in `SegmentationClass`, else in `SegmentationClassAug` if that exists.

    Raises:
        UserError: a missing folder or list, or a list without ids, or with one that leads out of the folder.
    """
    for folder in (IMAGES, MASKS, SPLITS):
        if not os.path.isdir(root / folder):
            raise config_error("data.root", root, f"a folder with {IMAGES}, {MASKS} and {SPLITS} (no {folder} found)")
    ids = read_ids(split_file(root, split))
    image_folder, own_folder, augmented_folder = root / IMAGES, root / MASKS, root / AUGMENTED_MASKS
    images = _files_by_id(image_folder, ids, IMAGE_SUFFIXES)
    own = _files_by_id(own_folder, ids, SUFFIXES)
    augmented = _files_by_id(augmented_folder, ids, SUFFIXES)

    def pair(name: str) -> ImageMaskPair:
        image = images.get(name) or [image_folder / f"{name}.jpg"]
        use_augmented = name not in own and (name in augmented or split == AUGMENTED_SPLIT)
        masks = (augmented if use_augmented else own).get(name, [])
        mask = (augmented_folder if use_augmented else own_folder) / f"{name}.png"
        ambiguous = image if len(image) > 1 else masks if len(masks) > 1 else []
        return ImageMaskPair(name, image[0], mask, tuple(ambiguous))

    return [pair(name) for name in ids]


def read_ids(path: Path) -> list[str]:
    """The ids in a list with one per line; they may have folders ("street/0001").

    Raises:
        FileError: missing, not UTF-8, without ids, or with one that leads out of the folder.
    """
    ids = []
    for number, line in enumerate(read_lines(path), start=1):
        if "/" in line or "\0" in line or line in (".", ".."):
            try:
                inside(path.parent, line, links=True)
            except FileError as error:
                raise FileError.of(f"{path}, line {number}", error.reason, "Use ids inside the folder.") from None
            line = posixpath.normpath(line)
        if line:
            ids.append(line)
    if not ids:
        raise FileError.of(path, "no ids found", "Write one id per line.")
    return ids


def split_file(root: Path, split: str) -> Path:
    """The file with the ids of a split; FileError if it does not exist."""
    path = root / SPLITS / f"{split}.txt"
    if not os.path.isfile(path):
        splits = [file.stem for file in files_in(root / SPLITS, {".txt"})]
        raise FileError.of(path, f"not found. Available splits: {', '.join(splits) or 'none'}")
    return path


def _files_by_id(folder: Path, ids: Collection[str], suffixes: Collection[str]) -> dict[str, list[Path]]:
    """The files of some suffixes by id: their path in the folder, without suffix.

    One listing of a folder is faster than one check per file.
    """
    by_id: dict[str, list[Path]] = {}
    for parent in {name.rpartition("/")[0] for name in ids}:
        if not os.path.isdir(folder / parent):
            continue
        for path in entries(folder / parent):
            stem, dot, suffix = path.name.rpartition(".")
            if dot + suffix.lower() in suffixes:
                by_id.setdefault(f"{parent}/{stem}" if parent else stem, []).append(path)
    return by_id
