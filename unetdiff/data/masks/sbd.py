"""The split `trainaug`: masks of the Semantic Boundaries Dataset (SBD) in addition to VOC's own.

Hariharan et al., "Semantic contours from inverse detectors", ICCV 2011, labeled 11,355 images of VOC 2011, all
of them in VOC 2012. Their lists overlap VOC 2012's val, and their masks have no void border, so
trainaug = (SBD train ∪ SBD val ∪ VOC train) − VOC val, with VOC's own mask where it exists.
"""

from __future__ import annotations

import io
import os
from collections.abc import Collection
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy.io import loadmat
from torchvision.datasets import SBDataset

from unetdiff.console import progress_bar
from unetdiff.data.download import Archive, fetch, unpack
from unetdiff.data.issues import BadFile, Issue, first_values
from unetdiff.data.masks.classes import VOC_CLASSES, voc_colormap
from unetdiff.data.masks.encodings import wrong_values
from unetdiff.data.masks.voc_lists import list_pairs, read_ids
from unetdiff.data.masks.voc_paths import AUGMENTED_MASKS, AUGMENTED_SPLIT, IMAGES, MASKS, SPLITS, VOC_FOLDER
from unetdiff.errors import FileError, UserError
from unetdiff.files.folders import entries
from unetdiff.files.images import save_image
from unetdiff.files.texts import read_bytes
from unetdiff.files.writing import make_folder, sweep, write_text

NUM_TRAINAUG = 10_582  # ids of trainaug in the literature
_COMPLETE = (11_355, 1_464, 1_449)  # ids in SBD, VOC train and VOC val


def download_sbd(root: str | Path, progress: bool = True) -> Path:
    """Build the split `trainaug` of VOC 2012 in `root`; existing files are kept.

    The archive is torchvision's (1.4 GB, kept in `root`). It is unpacked to `root`/sbd; masks that VOC lacks are
    written to `root`/VOCdevkit/VOC2012/SegmentationClassAug as palette PNGs. Every file is written to a temporary name
    and renamed, the list last: after any interruption, a second call resumes.

    Args:
        root: the folder that holds VOCdevkit/VOC2012.
        progress: show a progress bar.

    Returns:
        The list, `root`/VOCdevkit/VOC2012/ImageSets/Segmentation/trainaug.txt.

    Raises:
        UserError: VOC 2012 is not in `root` or incomplete; the archive cannot be fetched or unpacked, or one of its
            masks not read; the list overlaps val or does not have 10,582 ids.
    """
    root = Path(root).expanduser()
    voc, source = root / VOC_FOLDER, root / "sbd"
    target = voc / SPLITS / f"{AUGMENTED_SPLIT}.txt"
    if not os.path.isdir(voc):
        raise UserError(
            f"{voc}: not found, SBD needs its images. Run `unetdiff data download voc --root {root}` first."
        )
    val = _voc_ids(voc, "val")
    if os.path.isfile(target) and all(os.path.isfile(pair.mask) for pair in list_pairs(voc, AUGMENTED_SPLIT)):
        _require_disjoint(target, _voc_ids(voc, AUGMENTED_SPLIT), val)
        return target
    if not os.path.isdir(source):
        archive = Archive(SBDataset.url, SBDataset.filename, SBDataset.md5)
        unpack(fetch(archive, root), Path("benchmark_RELEASE") / "dataset", source)
    names = trainaug(_sbd_ids(source), _voc_ids(voc, "train"), val)
    _require_images(voc, names)
    _require_disjoint(target, names, val)
    try:
        convert_masks(names, source / "cls", voc, progress)
        write_text(target, "".join(f"{name}\n" for name in names))
    except OSError as error:
        raise UserError(f"{voc}: cannot be written to ({error}). Fix that and run this again to resume.") from error
    return target


def trainaug(sbd: Collection[str], voc_train: Collection[str], voc_val: Collection[str]) -> list[str]:
    """(SBD ∪ VOC train) − VOC val, sorted. UserError if the complete lists give other than 10,582 ids."""
    names = sorted((set(sbd) | set(voc_train)) - set(voc_val))
    if (len(set(sbd)), len(set(voc_train)), len(set(voc_val))) == _COMPLETE and len(names) != NUM_TRAINAUG:
        raise UserError(
            f"{AUGMENTED_SPLIT}: must have {NUM_TRAINAUG} ids (got {len(names)}), a list of SBD or VOC was changed. "
            "Download both again."
        )
    return names


def convert_masks(names: Collection[str], source: Path, voc: Path, progress: bool = True) -> None:
    """Convert `source`/ID.mat to `voc`/SegmentationClassAug/ID.png, except for ids that have a mask.

    Raises:
        BadFile: a .mat file that is missing, damaged, or has a value that is not a class.
        OSError: the disk is full or read-only.
    """
    target = voc / AUGMENTED_MASKS
    make_folder(target)
    sweep(target)
    existing = {path.name for folder in (target, voc / MASKS) for path in entries(folder)}
    palette = voc_colormap().tobytes()
    for name in progress_bar([name for name in names if f"{name}.png" not in existing], desc="masks", enabled=progress):
        mask = Image.fromarray(read_mat(source / f"{name}.mat"))
        mask.putpalette(palette)
        save_image(mask, target / f"{name}.png")


def read_mat(path: Path) -> NDArray[np.uint8]:
    """The class of every pixel in a file of SBD's `cls`, (H, W): 0 is background, 1..20 are VOC's classes.

    Raises:
        BadFile: it is missing, damaged, or has a value that is not a class.
    """
    remedy = f"Remove {path.parents[1]} (not the archive) and run this again: the archive is unpacked again."
    try:
        file = io.BytesIO(read_bytes(path))
        values = np.asarray(loadmat(file)["GTcls"]["Segmentation"][0, 0])
        if values.ndim != 2 or values.dtype != np.uint8:
            raise ValueError(f"GTcls.Segmentation is {values.dtype} {values.shape}, not uint8 (height, width)")
    except Exception as error:  # scipy's reader raises many types for a damaged file
        reason = error.reason if isinstance(error, FileError) else str(error) or type(error).__name__
        raise BadFile.from_issue(Issue(str(path), "not an SBD mask", reason, remedy)) from error
    wrong = wrong_values(values, len(VOC_CLASSES))
    if wrong:
        raise BadFile.from_issue(
            Issue(str(path), "mask values outside 0..20 and 255 (ignore)", first_values(wrong), remedy)
        )
    return values


def _sbd_ids(source: Path) -> set[str]:
    """The ids of SBD's train and val."""
    try:
        return {name for split in ("train", "val") for name in read_ids(source / f"{split}.txt")}
    except FileError as error:
        reason = f"not a complete SBD ({error.path}: {error.reason})"
        raise FileError.of(source, reason, "Remove it and run this again.") from None


def _voc_ids(voc: Path, split: str) -> list[str]:
    return [pair.name for pair in list_pairs(voc, split)]


def _require_images(voc: Path, names: Collection[str]) -> None:
    existing = {path.name for path in entries(voc / IMAGES)}
    missing = [name for name in names if f"{name}.jpg" not in existing]
    if missing:
        raise UserError(
            f"{voc / IMAGES / missing[0]}.jpg: not found, {len(missing)} image(s) of {AUGMENTED_SPLIT} are missing. "
            f"Move {voc} away and run `unetdiff data download voc --root {voc.parents[1]}`."
        )


def _require_disjoint(target: Path, names: Collection[str], val: Collection[str]) -> None:
    shared = sorted(set(names) & set(val))
    if shared:
        raise UserError(
            f"{target}: {len(shared)} id(s) also in val (first {shared[0]}). Delete the list and run this again."
        )
