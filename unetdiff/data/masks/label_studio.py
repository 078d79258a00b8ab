"""Label Studio's JSON export (polygons, boxes, ellipses and brushes) as masks of classes."""

from __future__ import annotations

import re
from contextlib import suppress
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlparse

import numpy as np
from einops import rearrange
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from unetdiff.data.config import DataConfig
from unetdiff.data.masks.polygons import (
    Annotated,
    Region,
    ShapeReader,
    find_image,
    label_classes,
    polygon,
    split_samples,
)
from unetdiff.data.masks.splits import Role
from unetdiff.data.raw_images import read_info
from unetdiff.data.roots import dataset_root
from unetdiff.errors import FileError, config_error
from unetdiff.files.folders import files_in
from unetdiff.files.images import SUFFIXES
from unetdiff.files.records import read_json

KINDS = ("polygonlabels", "rectanglelabels", "ellipselabels", "brushlabels")
MAX_BYTES = 1 << 30


class LabelStudioReader(ShapeReader):
    """Images of Label Studio. Regions are drawn in the order of the export."""

    def label(self, shape: Any) -> str:
        return str(shape["value"][shape["type"]][0])

    def region(self, shape: Any, size: tuple[int, int]) -> Region:
        value, kind = shape["value"], shape["type"]
        height, width = size
        if kind == "polygonlabels":  # coordinates are percentages
            return polygon([(x * width / 100, y * height / 100) for x, y in value["points"]], size)
        if kind == "brushlabels":
            return rearrange(decode_rle(value["rle"]), "(h w c) -> h w c", h=height, w=width, c=4)[..., 3] > 0
        if kind == "rectanglelabels":
            return polygon(_corners(value, size), size)
        return _ellipse(value, size)


def _corners(value: dict[str, Any], size: tuple[int, int]) -> list[tuple[float, float]]:
    """The corners (x, y) of a box, rotated clockwise around its upper left one."""
    height, width = size
    x, y = value["x"] * width / 100, value["y"] * height / 100
    dx, dy = value["width"] * width / 100, value["height"] * height / 100
    angle = np.deg2rad(value.get("rotation", 0))
    cos, sin = float(np.cos(angle)), float(np.sin(angle))
    return [(x + a * cos - b * sin, y + a * sin + b * cos) for a, b in ((0, 0), (dx, 0), (dx, dy), (0, dy))]


def _ellipse(value: dict[str, Any], size: tuple[int, int]) -> Region:
    height, width = size
    if value.get("rotation"):
        raise ValueError("rotated ellipses are not supported; export them as polygons")
    x, y = value["x"] * width / 100, value["y"] * height / 100
    a, b = value["radiusX"] * width / 100, value["radiusY"] * height / 100
    canvas = Image.new("1", (width, height))
    ImageDraw.Draw(canvas).ellipse([x - a, y - b, x + a, y + b], fill=1)
    return np.array(canvas, bool)


def decode_rle(data: list[int]) -> NDArray[np.uint8]:
    """The bytes of Label Studio's run lengths (rgba of each pixel, as its converter decodes them), (N,)."""
    bits = np.unpackbits(np.array(data, np.uint8))
    position = 0

    def read(count: int) -> int:
        nonlocal position
        if position + count > len(bits):
            raise ValueError("the run lengths of a brush are truncated")
        number = int("".join(map(str, bits[position : position + count])), 2)
        position += count
        return number

    total = read(32)
    word = read(5) + 1
    sizes = [read(4) + 1 for _ in range(4)]
    if not 0 < total <= 4 * (1 << 27):
        raise ValueError(f"the run lengths of a brush are of {total} bytes")
    out = np.zeros(total, np.uint8)
    i = 0
    while i < total:
        is_run = read(1)
        end = i + 1 + read(sizes[read(2)])
        if is_run:
            out[i:end] = read(word)
            i = end
        else:
            while i < end:
                out[i : i + 1] = read(word)
                i += 1
    return out


def label_studio(config: DataConfig, role: Role, masks: bool) -> LabelStudioReader:
    """Images of the tasks in `data.annotations`; the only JSON file in `data.root` where it is not set."""
    root = dataset_root(config)
    path = _export(config, root)
    content = read_json(path, max_bytes=MAX_BYTES)
    if not isinstance(content, list) or not all(isinstance(task, dict) and "data" in task for task in content):
        raise FileError.of(
            path, "must be a list of tasks with data and annotations", "Export it from Label Studio as JSON."
        )
    if content and all("annotations" not in task for task in content):
        raise FileError.of(path, "has tasks without annotations (JSON-MIN?)", "Export it from Label Studio as JSON.")
    folders = [*([root / config.images] if config.images else []), path.parent, root, root / "images", root / "upload"]
    tasks = [_task(task, path, folders) for task in content]
    samples = [sample for sample in tasks if sample is not None]
    labels = {str(shape["value"][shape["type"]][0]) for sample in samples for shape in sample.shapes}
    index_of, classes = label_classes(sorted(labels), config, path)
    samples, place = split_samples(samples, config, root, role)
    return LabelStudioReader(samples, index_of, classes, place, masks=masks)


def _export(config: DataConfig, root: Path) -> Path:
    if config.annotations is not None:
        path = root / config.annotations
        if not path.is_file():
            raise config_error("data.annotations", config.annotations, f"an existing file in {root}")
        return path
    found = files_in(root, {".json"}) if root.is_dir() else []
    if len(found) != 1:
        constraint = f"set where {root} has {len(found)} JSON files"
        raise config_error("data.annotations", None, constraint, "Name the export of Label Studio.")
    return found[0]


def _task(task: dict[str, Any], path: Path, folders: list[Path]) -> Annotated | None:
    """The regions of the last annotation of a task that was not cancelled; None for a task without one."""
    done = [one for one in task.get("annotations") or [] if isinstance(one, dict) and not one.get("was_cancelled")]
    texts = [text for text in task["data"].values() if isinstance(text, str)] if isinstance(task["data"], dict) else []
    names = [name for name in map(image_name, texts) if Path(name).suffix.lower() in SUFFIXES]
    if not done or not names:
        return None
    shapes, size = [], None
    for entry in done[-1].get("result") or []:
        kind = entry.get("type") if isinstance(entry, dict) else None
        if kind in KINDS and entry.get("value", {}).get(kind):
            shapes.append(entry)
            size = (int(entry["original_height"]), int(entry["original_width"]))
    short = re.sub(r"^[0-9a-f]{8}-", "", Path(names[0]).name)  # Label Studio puts a hash before the name
    image = find_image(names[0], folders)
    image = image if image.is_file() else find_image(short, folders)
    if size is None:  # labeled without a region: all of it is background, as large as the image
        with suppress(FileError):  # reported when the image is read
            size = read_info(image).size
    return Annotated(Path(image.name).stem, image, f"{path}, task {task.get('id', '?')}", size, shapes)


def image_name(text: str) -> str:
    """The path in a task's link: /data/upload/1/ab.jpg, /data/local-files/?d=folder/ab.jpg, s3://bucket/ab.jpg."""
    parts = urlparse(text)
    local = parse_qs(parts.query).get("d")
    name = local[0] if local else unquote(parts.path)
    return re.sub(r"^/?(data/)?(upload/\d+/)?", "", name) or name
