"""Download PASCAL VOC 2012: fetched once, verified by md5, unpacked to a temporary folder and renamed."""

from __future__ import annotations

import http.client
import os
import shutil
import tarfile
import zlib
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlparse

from torchvision.datasets import VOCSegmentation
from torchvision.datasets.utils import download_url, extract_archive
from torchvision.datasets.voc import DATASET_YEAR_DICT

from unetdiff.data.voc_paths import VOC_FOLDER
from unetdiff.errors import UserError


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
    if not folder.exists():
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
        root.mkdir(parents=True, exist_ok=True)
        download_url(archive.url, root, archive.name, archive.md5)
    except (OSError, http.client.HTTPException) as error:
        failure = f"{path}: could not be downloaded from {urlparse(archive.url).netloc} ({error})"
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
        shutil.rmtree(aside, ignore_errors=True)  # left by an interrupted call
        aside.mkdir(parents=True)
        extract_archive(archive, aside)
        if not (aside / inner).is_dir():
            raise UserError(f"{archive}: no folder {inner} in it. Delete it and run this again.")
        os.replace(aside / inner, target)
    except (OSError, tarfile.TarError, EOFError, zlib.error) as error:
        raise UserError(f"{archive}: could not be unpacked to {target} ({error}). Run this again.") from error
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def _first_missing(root: Path) -> Path | None:
    """The first missing file of VOC's own lists; None if all exist."""
    for split in ("train", "val"):
        try:
            source = VOCSegmentation(root, year="2012", image_set=split)
        except OSError as error:  # the list itself
            return Path(error.filename or root / VOC_FOLDER)
        for path in [*source.images, *source.masks]:
            if not os.path.isfile(path):
                return Path(path)
    return None
