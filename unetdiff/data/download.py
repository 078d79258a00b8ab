"""PASCAL VOC 2012 onto the disk: fetched once, checked by md5, unpacked aside and renamed."""

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
    """A file of the net, as torchvision knows it."""

    url: str
    """Where it is."""
    name: str
    """What it is called on the disk."""
    md5: str
    """Of its bytes."""


def download_voc(root: str | Path) -> Path:
    """VOC 2012's images, masks and lists in `root`/VOCdevkit/VOC2012; what is there already is left as it is.

    The archive is torchvision's (2 GB, kept in `root`). It is unpacked aside and renamed when it is whole: whatever
    interrupts this, a second call completes it.

    Returns:
        The folder `root`/VOCdevkit/VOC2012.

    Raises:
        UserError: the archive cannot be fetched or unpacked, or a folder that is there lacks a file of its lists.
    """
    root = Path(root).expanduser()
    folder = root / VOC_FOLDER
    if not folder.exists():
        known = DATASET_YEAR_DICT["2012"]
        archive = fetch(Archive(known["url"], known["filename"], known["md5"]), root)
        unpack(archive, VOC_FOLDER, folder)
    missing = _first_missing(root)
    if missing is not None:
        raise UserError(f"{missing}: missing, so {folder} is incomplete; move that folder away and run this again")
    return folder


def fetch(archive: Archive, root: Path) -> Path:
    """The archive as a file in `root`: downloaded by torchvision unless it lies there with the right md5.

    Raises:
        UserError: it cannot be fetched or arrives damaged; the line says what to download by hand, and to where.
    """
    path = root / archive.name
    by_hand = f"or download {archive.url} by hand to {path}, then run this again"
    try:
        root.mkdir(parents=True, exist_ok=True)
        download_url(archive.url, root, archive.name, archive.md5)
    except (OSError, http.client.HTTPException) as error:
        why = f"{path} could not be fetched from {urlparse(archive.url).netloc} ({error})"
        raise UserError(f"{why}; look after the network and the disk, {by_hand}") from error
    except RuntimeError as error:  # torchvision's answer to a wrong md5, or to too many redirections
        raise UserError(
            f"{path} is damaged, its md5 is not {archive.md5} ({error}); run this again, {by_hand}"
        ) from error
    return path


def unpack(archive: Path, inner: Path, target: Path) -> None:
    """The folder `inner` of an archive as `target`, which is there whole or not at all.

    Raises:
        UserError: the archive cannot be read, has no such folder, or the disk is full.
    """
    aside = target.parent / f".{target.name}.unpacking"
    try:
        shutil.rmtree(aside, ignore_errors=True)  # of a call that was killed
        aside.mkdir(parents=True)
        extract_archive(archive, aside)
        if not (aside / inner).is_dir():
            raise UserError(f"{archive}: there is no folder {inner} in it; delete it and run this again")
        os.replace(aside / inner, target)
    except (OSError, tarfile.TarError, EOFError, zlib.error) as error:
        raise UserError(f"{archive} could not be unpacked to {target} ({error}); run this again") from error
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def _first_missing(root: Path) -> Path | None:
    """The first file that VOC's own lists name and that is not there; None for a whole set."""
    for split in ("train", "val"):
        try:
            source = VOCSegmentation(root, year="2012", image_set=split)
        except OSError as error:  # the list itself
            return Path(error.filename or root / VOC_FOLDER)
        for path in [*source.images, *source.masks]:
            if not os.path.isfile(path):
                return Path(path)
    return None
