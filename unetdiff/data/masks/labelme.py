"""LabelMe's JSON files, one per image, as masks of classes."""

from __future__ import annotations

import base64
import math
from pathlib import Path
from typing import Any

import numpy as np

from unetdiff.data.config import DataConfig
from unetdiff.data.masks.globs import named_files
from unetdiff.data.masks.polygons import (
    Annotated,
    Region,
    ShapeReader,
    box,
    find_image,
    label_classes,
    polygon,
    split_samples,
)
from unetdiff.data.masks.splits import Role
from unetdiff.data.roots import dataset_root
from unetdiff.data.threads import map_in_threads
from unetdiff.errors import FileError
from unetdiff.files.images import SUFFIXES, open_image
from unetdiff.files.records import read_json


class LabelMeReader(ShapeReader):
    """Images of LabelMe. Shapes are drawn in the order of the file, as LabelMe's own exporter does."""

    def label(self, shape: Any) -> str:
        return str(shape["label"])

    def region(self, shape: Any, size: tuple[int, int]) -> Region:
        kind, points = shape.get("shape_type") or "polygon", shape["points"]
        if kind == "polygon":
            return polygon(points, size)
        if kind == "rectangle":
            return box(points[0], points[1], size)
        if kind == "circle":
            (x, y), edge = points[0], points[1]
            radius = math.hypot(edge[0] - x, edge[1] - y)
            return box((x - radius, y - radius), (x + radius, y + radius), size, ellipse=True)
        if kind == "mask":
            return _pasted(shape["mask"], points[0], size)
        raise ValueError(f"a shape_type of polygon, rectangle, circle or mask has an area (got {kind})")


def _pasted(text: str, corner: list[float], size: tuple[int, int]) -> Region:
    """A mask that LabelMe stores as a PNG in base64, at its corner (x, y)."""
    with open_image(base64.b64decode(text, validate=True), "mask") as image:
        part = np.array(image).astype(bool)
    x, y = (int(number) for number in corner)
    region = np.zeros(size, bool)
    region[y : y + part.shape[0], x : x + part.shape[1]] = part[: size[0] - y, : size[1] - x]
    return region


def labelme(config: DataConfig, role: Role, masks: bool) -> LabelMeReader:
    """Images whose JSON files are in `data.annotations`: a folder or a glob, `data.root` itself where it is not set."""
    root = dataset_root(config)
    files = named_files("data.annotations", config.annotations or ".", root, {".json"})
    paths = [(name, path) for name, found in files.items() for path in found]
    samples = [one for one in map_in_threads(lambda item: _read(*item, config, root), paths, "read", False) if one]
    labels = sorted({str(shape.get("label")) for sample in samples for shape in sample.shapes})
    if not samples:
        raise FileError.of(root, "no JSON of LabelMe found (with imagePath and shapes)", "Correct data.annotations.")
    index_of, classes = label_classes(labels, config, root)
    samples, place = split_samples(samples, config, root, role)
    return LabelMeReader(samples, index_of, classes, place, masks=masks)


def _read(name: str, path: Path, config: DataConfig, root: Path) -> Annotated | None:
    """The annotations of a file; None for JSON of another kind."""
    content = read_json(path)
    if not isinstance(content, dict) or not isinstance(content.get("shapes"), list) or "imagePath" not in content:
        return None
    folders = [path.parent, *([root / config.images] if config.images else []), root, root / "images"]
    image = find_image(str(content["imagePath"]), folders)
    if not image.is_file():  # renamed together with its JSON
        near = [folder / f"{path.stem}{suffix}" for folder in folders for suffix in sorted(SUFFIXES)]
        image = next((other for other in near if other.is_file()), image)
    height, width = content.get("imageHeight"), content.get("imageWidth")
    size = (height, width) if isinstance(height, int) and isinstance(width, int) else None
    shapes = [shape for shape in content["shapes"] if isinstance(shape, dict)]
    return Annotated(name, image, str(path), size, shapes)
