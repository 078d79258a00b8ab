"""The Semantic Boundaries Dataset's masks beside VOC's own: the split `trainaug`.

Hariharan et al., "Semantic contours from inverse detectors", ICCV 2011, labelled 11,355 images of VOC 2011, all of
which VOC 2012 has too. Their lists overlap VOC 2012's val, and their masks have no void border; so
trainaug = (SBD train ∪ SBD val ∪ VOC train) − VOC val, with VOC's own mask wherever there is one.
"""

from __future__ import annotations

import os
from collections.abc import Collection
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy.io import loadmat
from torchvision.datasets import SBDataset
from tqdm import tqdm

from unetdiff.data.download import Archive, fetch, unpack
from unetdiff.data.issues import BadFile, Issue, listed
from unetdiff.data.voc import VOC_CLASSES, list_pairs, voc_colormap, wrong_values
from unetdiff.data.voc_paths import AUGMENTED_MASKS, AUGMENTED_SPLIT, IMAGES, MASKS, SPLITS, VOC_FOLDER
from unetdiff.errors import UserError

TRAINAUG = 10_582  # ids that everyone's trainaug has
_WHOLE = (11_355, 1_464, 1_449)  # ids of SBD's two lists, of VOC's train and of its val


def download_sbd(root: str | Path, progress: bool = True) -> Path:
    """The split `trainaug` of the VOC 2012 in `root`; what is there already is left as it is.

    The archive is torchvision's (1.4 GB, kept in `root`). It is unpacked to `root`/sbd, and the masks that VOC has not
    are written to `root`/VOCdevkit/VOC2012/SegmentationClassAug as palette PNGs. Each file is written aside and
    renamed, and the list last: whatever interrupts this, a second call goes on where it was.

    Args:
        root: the folder that holds VOCdevkit/VOC2012.
        progress: show a bar.

    Returns:
        The list, `root`/VOCdevkit/VOC2012/ImageSets/Segmentation/trainaug.txt.

    Raises:
        UserError: VOC 2012 is not in `root` or lacks an image; the archive cannot be fetched or unpacked; a mask of it
            cannot be read; the list overlaps val, or has not the 10,582 ids that the whole sets give.
    """
    root = Path(root).expanduser()
    voc, source = root / VOC_FOLDER, root / "sbd"
    target = voc / SPLITS / f"{AUGMENTED_SPLIT}.txt"
    if not voc.is_dir():
        raise UserError(
            f"{voc}: not there, and SBD labels its images; first `unetdiff data download voc --root {root}`"
        )
    val = _voc_ids(voc, "val")
    if target.is_file() and all(pair.mask.is_file() for pair in list_pairs(voc, AUGMENTED_SPLIT)):
        _require_apart(target, _voc_ids(voc, AUGMENTED_SPLIT), val)
        return target
    if not source.is_dir():
        archive = Archive(SBDataset.url, SBDataset.filename, SBDataset.md5)
        unpack(fetch(archive, root), Path("benchmark_RELEASE") / "dataset", source)
    names = trainaug(_sbd_ids(source), _voc_ids(voc, "train"), val)
    _require_images(voc, names)
    _require_apart(target, names, val)
    try:
        convert_masks(names, source / "cls", voc, progress)
        aside = target.with_name(f".{target.name}.part")
        aside.write_text("".join(f"{name}\n" for name in names), encoding="utf-8")
        os.replace(aside, target)
    except OSError as error:
        raise UserError(f"{voc}: cannot be written to ({error}); mend that and run this again: it goes on") from error
    return target


def trainaug(sbd: Collection[str], voc_train: Collection[str], voc_val: Collection[str]) -> list[str]:
    """(SBD ∪ VOC train) − VOC val, sorted. UserError when whole lists give other than 10,582 ids."""
    names = sorted((set(sbd) | set(voc_train)) - set(voc_val))
    if (len(set(sbd)), len(set(voc_train)), len(set(voc_val))) == _WHOLE and len(names) != TRAINAUG:
        raise UserError(
            f"{AUGMENTED_SPLIT}: {len(names)} ids, not {TRAINAUG}: a list of SBD or VOC was changed; fetch both again"
        )
    return names


def convert_masks(names: Collection[str], source: Path, voc: Path, progress: bool = True) -> None:
    """`source`/ID.mat as `voc`/SegmentationClassAug/ID.png for the ids whose mask is neither there nor VOC's own.

    Raises:
        BadFile: a .mat file that is missing, damaged, or holds a value that is no class.
        OSError: the disk is full or read-only.
    """
    target = voc / AUGMENTED_MASKS
    target.mkdir(exist_ok=True)
    there = set(os.listdir(target)) | set(os.listdir(voc / MASKS))
    palette = voc_colormap().tobytes()
    for name in tqdm([name for name in names if f"{name}.png" not in there], desc="masks", disable=not progress):
        mask = Image.fromarray(read_mat(source / f"{name}.mat"))
        mask.putpalette(palette)
        aside = target / f".{name}.part"
        mask.save(aside, format="PNG")
        os.replace(aside, target / f"{name}.png")


def read_mat(path: Path) -> NDArray[np.uint8]:
    """The class of every pixel in a file of SBD's `cls`, (H, W): 0 is background, 1..20 are VOC's classes.

    Raises:
        BadFile: it is missing, damaged, or holds a value that is no class.
    """
    again = f"remove {path.parents[1]} (not the archive) and run this again: it is unpacked anew"
    try:
        with open(path, "rb") as file:
            values = np.asarray(loadmat(file)["GTcls"]["Segmentation"][0, 0])
        if values.ndim != 2 or values.dtype != np.uint8:
            raise ValueError(f"GTcls.Segmentation is {values.dtype} {values.shape}, not uint8 (height, width)")
    except Exception as error:  # damaged, scipy's reader answers with nearly any of them
        raise BadFile.from_issue(
            Issue(str(path), "no mask of SBD", str(error) or type(error).__name__, again)
        ) from error
    wrong = wrong_values(values, len(VOC_CLASSES))
    if wrong:
        raise BadFile.from_issue(Issue(str(path), "mask values outside 0..20 and 255 (void)", listed(wrong), again))
    return values


def _sbd_ids(source: Path) -> set[str]:
    """The ids of SBD's train and val."""
    try:
        lists = [SBDataset(source, image_set=split, mode="segmentation").masks for split in ("train", "val")]
    except OSError as error:
        raise UserError(f"{source}: no SBD there ({error}); remove it and run this again") from error
    return {Path(mask).stem for masks in lists for mask in masks}


def _voc_ids(voc: Path, split: str) -> list[str]:
    return [pair.name for pair in list_pairs(voc, split)]


def _require_images(voc: Path, names: Collection[str]) -> None:
    there = set(os.listdir(voc / IMAGES))
    missing = [name for name in names if f"{name}.jpg" not in there]
    if missing:
        raise UserError(
            f"{voc / IMAGES / missing[0]}.jpg: {len(missing)} image(s) of {AUGMENTED_SPLIT} are missing: VOC is "
            f"incomplete; move {voc} away and run `unetdiff data download voc --root {voc.parents[1]}`"
        )


def _require_apart(target: Path, names: Collection[str], val: Collection[str]) -> None:
    shared = sorted(set(names) & set(val))
    if shared:
        raise UserError(
            f"{target}: {len(shared)} id(s) are in val too (first {shared[0]}); delete the list and run this again"
        )
