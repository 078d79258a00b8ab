"""Images without masks: with captions, in a folder for each class, or alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from unetdiff.data.captions import METADATA
from unetdiff.data.discovery.found import Found
from unetdiff.data.discovery.stray_folders import dataset_files, dataset_folders
from unetdiff.data.masks.splits import STAND_INS
from unetdiff.files.folders import entries
from unetdiff.files.images import SUFFIXES

SPLIT_NAMES = (*STAND_INS["train"], *STAND_INS["val"], "test", "testing")


def find_captions(path: Path) -> Found | None:
    """Images with a file of captions, in the folder or in those of its splits."""
    for folder in (path, *dataset_folders(path)):
        for name in METADATA:
            if (folder / name).is_file():
                kind = f"images with captions in {(folder / name).relative_to(path).as_posix()}"
                return Found("diffusion", kind, {"name": "captioned_folder"}, condition="text")
    return None


def find_class_folders(path: Path) -> Found | None:
    """Folders of images by class, with or without splits, or images alone."""
    files = dataset_files(path, SUFFIXES)
    if not files:
        return None
    folders = [folder.name for folder in dataset_folders(path)]
    splits = [name for name in folders if name in SPLIT_NAMES]
    base = path / next((name for name in splits if name in STAND_INS["train"]), "")
    classes = [folder.name for folder in dataset_folders(base) if dataset_files(folder, SUFFIXES)]
    keys: dict[str, Any] = {"name": "image_folder"}
    reasons: dict[str, str] = {}
    if base.name in STAND_INS["train"] and base.name != "train" and base != path:
        keys["train_split"], reasons["train_split"] = base.name, "the name of its folder"
    if len(classes) > 1:
        counts = [len(dataset_files(base / name, SUFFIXES)) for name in classes]
        each = f"{min(counts)} to {max(counts)}" if min(counts) < max(counts) else f"{min(counts)}"
        kind = f"{len(classes)} folders of images, one per class ({each} images each)"
        return Found("diffusion", kind, keys, reasons, condition="class")
    if any(item.is_file() and item.suffix.lower() in SUFFIXES for item in entries(base)) or classes:
        return Found("diffusion", "images without masks, classes or captions", keys, reasons)
    return None
