"""The layouts of published datasets: PASCAL VOC, Cityscapes, ADE20K."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from unetdiff.data.discovery.found import Found, add_encoding
from unetdiff.data.masks.inspect import inspect_masks
from unetdiff.data.masks.splits import STAND_INS
from unetdiff.data.masks.voc_paths import IMAGES, MASKS, SPLITS, VOC_FOLDER
from unetdiff.files.folders import files_in
from unetdiff.files.images import SUFFIXES


def find_known_layout(path: Path) -> Found | None:
    """PASCAL VOC 2012, or any folder in its layout; Cityscapes; ADE20K."""
    if (path / VOC_FOLDER).is_dir():
        return Found("segmentation", "PASCAL VOC 2012", {"name": "voc"})
    if all((path / part).is_dir() for part in (IMAGES, MASKS, SPLITS)):
        keys: dict[str, Any] = {"name": "voc_folder"}
        found = Found("segmentation", "images and masks in VOC's layout", keys)
        found.masks = inspect_masks(files_in(path / MASKS, SUFFIXES, recursive=True))
        add_encoding(found, path)
        _name_lists(found, path)
        return found
    fine = files_in(path / "gtFine", {".png"}, recursive=True) if (path / "gtFine").is_dir() else []
    if (path / "leftImg8bit").is_dir() and any(file.name.endswith("_gtFine_labelIds.png") for file in fine):
        return Found("segmentation", "Cityscapes", {"name": "cityscapes"})
    for root in (path, path / "ADEChallengeData2016"):
        if (root / "images" / "training").is_dir() and (root / "annotations" / "training").is_dir():
            return Found("segmentation", "ADE20K", {"name": "ade20k"}, root=root)
    return None


def _name_lists(found: Found, path: Path) -> None:
    """Lists of other names than train and val."""
    lists = [file.stem for file in files_in(path / SPLITS, {".txt"})]
    for key, split in (("train_split", "train"), ("val_split", "val")):
        if split not in lists:
            near = next((name for name in lists if any(part in name for part in STAND_INS[split])), None)
            if near is not None:
                found.keys[key] = near
                found.reasons[key] = f"lists in {SPLITS.as_posix()}: {', '.join(lists)}"
