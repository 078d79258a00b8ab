"""Instances of COCO JSON (polygons and run lengths) as masks of classes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from pycocotools import mask as coco_mask

from unetdiff.data.config import DataConfig
from unetdiff.data.issues import Issue
from unetdiff.data.masks.polygons import Annotated, Region, ShapeReader, find_image, label_classes, split_samples
from unetdiff.data.masks.splits import STAND_INS, Role
from unetdiff.data.roots import dataset_root
from unetdiff.errors import FileError, config_error
from unetdiff.files.folders import files_in
from unetdiff.files.records import read_json

SPLIT = "{split}"
PER_SPLIT = (
    "annotations/instances_{split}.json",
    "annotations/instances_{split}2017.json",
    "annotations/{split}.json",
    "{split}/_annotations.coco.json",
    "{split}.json",
)
"""Where exporters put the annotations of a split: COCO itself, Roboflow, others."""
WHOLE = ("_annotations.coco.json", "annotations.json", "annotations/instances_default.json", "result.json")
"""Where they put those of all splits."""
MAX_BYTES = 1 << 31
"""Largest file of annotations; those of COCO's 118,287 training images have 470 million bytes."""


class CocoReader(ShapeReader):
    """Images of COCO JSON. Instances are drawn by area, the largest first, so that small ones stay visible; a crowd is
    of its class."""

    def label(self, shape: Any) -> str:
        return str(shape["label"])

    def region(self, shape: Any, size: tuple[int, int]) -> Region:
        return decode(shape["segmentation"], size)


def decode(segmentation: Any, size: tuple[int, int]) -> Region:
    """The pixels of polygons [[x0, y0, x1, ...], ...] or run lengths {counts, size}, (H, W); ValueError for others."""
    height, width = size
    if isinstance(segmentation, list):
        if not segmentation:
            raise ValueError("empty segmentation")
        if any(len(part) < 6 or len(part) % 2 for part in segmentation):
            raise ValueError("a polygon needs x and y of three points")
        runs = coco_mask.merge(coco_mask.frPyObjects(segmentation, height, width))
    elif isinstance(segmentation, dict) and list(segmentation.get("size", [])) == [height, width]:
        is_list = isinstance(segmentation["counts"], list)
        runs = coco_mask.frPyObjects(segmentation, height, width) if is_list else segmentation
    else:
        raise ValueError(f"segmentation must be polygons, or run lengths of size [{height}, {width}]")
    return coco_mask.decode(runs).astype(bool)


def coco(config: DataConfig, role: Role, masks: bool) -> CocoReader:
    """Images and instances of `data.annotations`: a file per split ("{split}" in its name), or one for all."""
    root = dataset_root(config)
    path, is_whole = annotation_file(config, role, root)
    content = read_json(path, max_bytes=MAX_BYTES)
    keys = ("images", "annotations", "categories")
    if not isinstance(content, dict) or not all(isinstance(content.get(key), list) for key in keys):
        raise FileError.of(path, "must be COCO JSON with the lists images, annotations and categories")
    folders = image_folders(config, role, root, path)
    samples, labels, issues = _samples(content, path, folders)
    index_of, classes = label_classes(labels, config, path)
    place = str(path)
    if is_whole:
        samples, place = split_samples(samples, config, root, role)
    return CocoReader(samples, index_of, classes, place, issues, masks)


def annotation_file(config: DataConfig, role: Role, root: Path) -> tuple[Path, bool]:
    """The annotations of a split, and whether they are to be split: they are those of all splits, or no file of the
    validation split exists."""
    found = files_in(root, {".json"}) if root.is_dir() else []
    alone = [path.name for path in found] if len(found) == 1 else []
    for pattern in [*PER_SPLIT, *WHOLE, *alone] if config.annotations is None else [config.annotations]:
        train, val = (_existing(root, pattern, split) for split in (config.train_split, config.val_split))
        if SPLIT in pattern and train and val and config.val_fraction is None:
            return (train if role == "train" else val), False
        if train and (SPLIT not in pattern or val or config.val_split == DataConfig.val_split):
            return train, True
    constraint = f"a file in {root}" + ("" if config.annotations else f", such as {PER_SPLIT[0]} or {WHOLE[1]}")
    remedy = "Give the COCO JSON, e.g. annotations/{split}.json."
    raise config_error("data.annotations", config.annotations, constraint, remedy)


def _existing(root: Path, pattern: str, split: str) -> Path | None:
    paths = (root / pattern.replace(SPLIT, name) for name in STAND_INS.get(split, (split,)))
    return next((path for path in paths if path.is_file()), None)


def image_folders(config: DataConfig, role: Role, root: Path, path: Path) -> list[Path]:
    """Where the images of annotations may be."""
    name = config.train_split if role == "train" else config.val_split
    names = (*STAND_INS.get(name, (name,)), config.train_split)  # of both, where validation is held out
    if config.images is not None:
        return [root / config.images.replace(SPLIT, one) for one in names]
    folders = [path.parent, root, root / "images", root / "data"]
    patterns = ("{}", "{}2017", "images/{}", "images/{}2017")
    return folders + [root / pattern.format(one) for one in names for pattern in patterns]


def _samples(
    content: dict[str, Any], path: Path, folders: list[Path]
) -> tuple[list[Annotated], list[str], list[Issue]]:
    """The images with their instances by area, the labels, and entries that refer to nothing."""
    try:
        categories = {entry["id"]: str(entry["name"]) for entry in content["categories"]}
        samples: dict[Any, Annotated] = {}
        for entry in content["images"]:
            size = (int(entry["height"]), int(entry["width"]))
            name = str(entry["file_name"])
            samples[entry["id"]] = Annotated(
                name.rpartition(".")[0] or name, find_image(name, folders), str(path), size
            )
        issues = []
        for entry in content["annotations"]:
            where, what = samples.get(entry["image_id"]), f"annotation {entry.get('id', '?')}"
            if where is None or entry["category_id"] not in categories:
                value = f"image_id {entry['image_id']}, category_id {entry['category_id']}"
                message = f"{what} is of an image or a category that is not listed"
                issues.append(Issue(str(path), message, value, "Correct it, or remove it."))
            elif not entry.get("segmentation"):
                message = f"{what} has no segmentation, only a box"
                issues.append(Issue(str(path), message, where.image.name, "Export polygons or run lengths."))
            else:
                where.shapes.append({**entry, "label": categories[entry["category_id"]]})
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise FileError.of(path, f"must be COCO JSON (key {error})", "Export it again.") from None
    for sample in samples.values():
        sample.shapes.sort(key=_area, reverse=True)
    parents = {entry.get("supercategory") for entry in content["categories"] if entry["id"] != 0}
    if 0 in categories and categories[0] in parents:  # Roboflow's name of the dataset, which no annotation has
        del categories[0]
    labels = [categories[number] for number in sorted(categories)]
    return list(samples.values()), labels, issues


def _area(shape: dict[str, Any]) -> float:
    area = shape.get("area")
    if isinstance(area, int | float):
        return float(area)
    segmentation = shape["segmentation"]
    if not isinstance(segmentation, list):
        return float(np.inf)
    return sum(_polygon_area(part) for part in segmentation if len(part) >= 6)


def _polygon_area(part: list[float]) -> float:
    """The shoelace formula for [x0, y0, x1, y1, ...]."""
    x, y = np.array(part[0::2], float), np.array(part[1::2], float)
    return float(abs(x @ np.roll(y, -1) - y @ np.roll(x, -1)) / 2)
