"""Download PASCAL VOC 2012: fetched once, verified by md5, unpacked to a temporary folder and renamed."""

from __future__ import annotations

import http.client
import os
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlparse

from torchvision.datasets.utils import download_url
from torchvision.datasets.voc import DATASET_YEAR_DICT

from unetdiff.data.masks.voc_lists import list_pairs
from unetdiff.data.masks.voc_paths import SPLITS, VOC_FOLDER
from unetdiff.errors import FileError, UserError
from unetdiff.files.archives import extract_archive
from unetdiff.files.writing import make_folder, move, remove_tree


@dataclass(frozen=True)
class Archive:
    """A remote archive."""

    url: str
    """Its address."""
    name: str
    """Its file name on disk."""
    md5: str
    """Its checksum."""


def download_voc(root: str | Path) -> Path:
    """Download VOC 2012's images, masks and lists to `root`/VOCdevkit/VOC2012; an existing folder is kept.

    The archive is torchvision's (2 GB, kept in `root`). It is unpacked to a temporary folder and renamed: after any
    interruption, a second call completes it.

    Returns:
        The folder `root`/VOCdevkit/VOC2012.

    Raises:
        UserError: the archive cannot be fetched or unpacked, or an existing folder lacks a file of its lists.
    """
    root = Path(root).expanduser()
    folder = root / VOC_FOLDER
    if not os.path.exists(folder):
        source = DATASET_YEAR_DICT["2012"]
        archive = fetch(Archive(source["url"], source["filename"], source["md5"]), root)
        unpack(archive, VOC_FOLDER, folder)
    missing = _first_missing(root)
    if missing is not None:
        raise UserError(f"{missing}: not found, {folder} is incomplete. Move that folder away and run this again.")
    return folder


def fetch(archive: Archive, root: Path) -> Path:
    """Download an archive to `root` with torchvision, unless it exists with the right md5.

    Raises:
        UserError: it cannot be fetched or is damaged; the message has the address for a manual download.
    """
    path = root / archive.name
    manually = f"or download {archive.url} to {path} yourself and run this again."
    try:
        make_folder(root)
        download_url(archive.url, root, archive.name, archive.md5)
    except (OSError, http.client.HTTPException) as error:
        failure = (
            f"{path}: could not be downloaded from {urlparse(archive.url).netloc} ({' '.join(str(error).split())})"
        )
        raise UserError(f"{failure}. Check your connection and disk space, {manually}") from error
    except RuntimeError as error:  # torchvision's error for a wrong md5 or too many redirects
        raise UserError(f"{path}: md5 differs from {archive.md5} ({error}). Run this again, {manually}") from error
    return path


def unpack(archive: Path, inner: Path, target: Path) -> None:
    """Extract the folder `inner` of an archive to `target`, atomically.

    Raises:
        UserError: the archive cannot be read or has no such folder, or the disk is full.
    """
    aside = target.parent / f".{target.name}.unpacking"
    try:
        remove_tree(aside)  # left by an interrupted call
        make_folder(aside)
        extract_archive(archive, aside)
        if not (aside / inner).is_dir():
            raise UserError(f"{archive}: no folder {inner} in it. Delete it and run this again.")
        move(aside / inner, target)
    except (OSError, FileError) as error:
        reason = error.reason if isinstance(error, FileError) else error
        raise UserError(f"{archive}: could not be unpacked to {target} ({reason}). Run this again.") from error
    finally:
        with suppress(OSError):
            remove_tree(aside)


def _first_missing(root: Path) -> Path | None:
    """The first missing file of VOC's own lists; None if all exist."""
    folder = root / VOC_FOLDER
    for split in ("train", "val"):
        path = folder / SPLITS / f"{split}.txt"
        if not os.path.isfile(path):
            return path
        for pair in list_pairs(folder, split):
            for file in (pair.image, pair.mask):
                if not os.path.isfile(file):
                    return file
    return None
