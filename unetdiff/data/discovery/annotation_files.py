"""Annotations in JSON: COCO, LabelMe, Label Studio."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path

from unetdiff.data.discovery.found import Found
from unetdiff.data.discovery.stray_folders import dataset_files
from unetdiff.errors import UserError
from unetdiff.files.images import SUFFIXES
from unetdiff.files.records import read_json
from unetdiff.files.texts import read_start


def find_annotations(path: Path) -> Found | None:
    """COCO, LabelMe or Label Studio JSON."""
    files = dataset_files(path, {".json"})
    kinds = Counter(_json_kind(file) for file in files[:50])
    if kinds["coco"]:
        found = Found("segmentation", "COCO annotations", {"name": "coco"})
        own = [file for file in files if _json_kind(file) == "coco"]
        _place_coco(found, path, own)
        return found
    if kinds["labelme"]:
        return Found("segmentation", f"LabelMe annotations of {len(files)} images", {"name": "labelme"})
    if kinds["label_studio"]:
        file = next(file for file in files if _json_kind(file) == "label_studio")
        keys = {"name": "label_studio", "annotations": file.relative_to(path).as_posix()}
        return Found("segmentation", "a Label Studio export", keys)
    return None


def _json_kind(file: Path) -> str:
    """By the first keys of a file, without reading all of it."""
    start = read_start(file, 1 << 16).decode("utf-8", "replace").lstrip("\ufeff \n\r\t")
    if '"shapes"' in start and ("imagePath" in start or file.stat().st_size > 1 << 16):
        return "labelme"
    if start.startswith("[") and '"data"' in start and '"annotations"' in start:
        return "label_studio"
    if start.startswith("{") and re.search(r'"(images|annotations|categories)"\s*:\s*\[', start):
        content = read_json(file, max_bytes=1 << 31)
        if all(key in content for key in ("images", "annotations", "categories")):
            annotations = content["annotations"]
            return "coco" if any("segmentation" in one for one in annotations[:100]) else "other"
    return "other"


def _place_coco(found: Found, path: Path, files: list[Path]) -> None:
    """`data.annotations` and `data.images`, where they are not where exporters put them."""
    from unetdiff.data.config import DataConfig
    from unetdiff.data.masks.coco import annotation_file, coco

    config = DataConfig(name="coco", root=str(path))
    try:
        annotation_file(config, "train", path)
    except UserError:
        names = [file.relative_to(path).as_posix() for file in files]
        pattern = next((name.replace("train", "{split}") for name in names if "train" in name), None)
        found.keys["annotations"] = pattern if pattern and len(names) > 1 else names[0]
        found.reasons["annotations"] = f"COCO JSON: {', '.join(names[:3])}"
        config.annotations = found.keys["annotations"]
    sample = coco(config, "train", False).samples[0]
    if not sample.image.is_file():
        folder = next((p.parent for p in dataset_files(path, SUFFIXES) if p.name == sample.image.name), None)
        if folder is not None:
            found.keys["images"] = folder.relative_to(path).as_posix()
            found.reasons["images"] = f"where {sample.image.name} is"
