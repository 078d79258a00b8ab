"""What a folder holds: the dataset that it is, the keys of `data:` that read it, and the reason for each."""

from __future__ import annotations

import os
import re
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

from unetdiff.data.masks.folders import match_files
from unetdiff.data.masks.globs import named_files
from unetdiff.data.masks.inspect import MaskValues, inspect_masks
from unetdiff.data.masks.splits import STAND_INS
from unetdiff.data.masks.voc_paths import IMAGES, MASKS, SPLITS, VOC_FOLDER
from unetdiff.errors import FileError, UserError
from unetdiff.files.folders import entries, files_in, folders_in
from unetdiff.files.images import SUFFIXES
from unetdiff.files.records import read_json
from unetdiff.files.texts import read_start

METADATA = ("metadata.jsonl", "metadata.csv", "metadata.parquet")
MASK_WORDS = ("mask", "label", "gt", "seg", "annot", "truth", "lbl")
SPLIT_NAMES = (*STAND_INS["train"], *STAND_INS["val"], "test", "testing")
MIN_OVERLAP = 0.5
"""Fraction of the images that must have a mask of their name."""
SMALL, MANY_CLASSES = 100, 5
MAX_ROWS = 1000
"""Rows of a table whose masks are read."""
MAX_PROBED = 5
"""Files of a candidate that are decoded to see whether they are masks."""


@dataclass
class Found:
    """A dataset in a folder."""

    task: str
    """segmentation or diffusion."""
    kind: str
    """In words."""
    keys: dict[str, Any]
    """Keys of `data:`, without root."""
    reasons: dict[str, str] = field(default_factory=dict)
    """Why, for each of these keys."""
    root: Path = Path()
    condition: str = "none"
    """Of a denoiser."""
    masks: MaskValues | None = None
    """Of mask files."""


def discover(path: Path) -> Found:
    """The dataset in a folder.

    Raises:
        UserError: not a folder, or nothing in it that is a dataset.
    """
    if not os.path.exists(path):
        raise FileError.of(path, "does not exist", "Give the folder that holds the dataset.")
    if not path.is_dir():
        raise FileError.of(path, "must be a folder of images", "Give the folder that holds the dataset.")
    for look in (_known_layout, _annotations, _tables, _captions, _image_and_mask_folders, _class_folders):
        found = look(path)
        if found is not None:
            if found.root == Path():
                found.root = path
            return found
    raise FileError.of(
        path, "no images found", f"Give a folder with images ({', '.join(sorted(SUFFIXES)[:6])}, ...), at any depth."
    )


def _known_layout(path: Path) -> Found | None:
    if (path / VOC_FOLDER).is_dir():
        return Found("segmentation", "PASCAL VOC 2012", {"name": "voc"})
    if all((path / part).is_dir() for part in (IMAGES, MASKS, SPLITS)):
        keys: dict[str, Any] = {"name": "voc_folder"}
        found = Found("segmentation", "images and masks in VOC's layout", keys)
        found.masks = inspect_masks(files_in(path / MASKS, SUFFIXES, recursive=True))
        _add_encoding(found, path)
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


def _annotations(path: Path) -> Found | None:
    """COCO, LabelMe or Label Studio JSON."""
    files = files_in(path, {".json"}, recursive=True)
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
        folder = next((p.parent for p in files_in(path, SUFFIXES, recursive=True) if p.name == sample.image.name), None)
        if folder is not None:
            found.keys["images"] = folder.relative_to(path).as_posix()
            found.reasons["images"] = f"where {sample.image.name} is"


def _tables(path: Path) -> Found | None:
    """Hugging Face tables: with two columns of images, masks; with one, classes or captions."""
    saved = (path / "dataset_dict.json").is_file() or (path / "dataset_info.json").is_file()
    files = [file for file in files_in(path, {".parquet"}, recursive=True) if file.name not in METADATA]
    if not saved and not files:
        return None
    import datasets as hf

    from unetdiff.data.config import DataConfig
    from unetdiff.data.masks.huggingface import columns_of, tables_of

    tables, _ = tables_of(DataConfig(name="huggingface", root=str(path)))
    features = next(iter(tables.values())).features
    columns = [name for name, kind in features.items() if isinstance(kind, hf.Image)]
    if len(columns) > 1:
        keys: dict[str, Any] = {"name": "huggingface"}
        kind = "a Hugging Face table of images and masks"
        found = Found("segmentation", kind, keys, {"name": f"columns {', '.join(columns)}"})
        rows, config = next(iter(tables.values())), DataConfig(name="huggingface", root=str(path))
        column = columns_of(config, rows, masks=True)[1]
        cells = rows.select_columns([column]).cast_column(column, hf.Image(decode=False))
        step = max(1, len(cells) // MAX_ROWS)
        found.masks = inspect_masks([cells[i][column]["bytes"] or b"" for i in range(0, len(cells), step)])
        _add_encoding(found, path)
        return found
    if not columns or saved:
        return None
    keys = {"name": "parquet", "image_column": columns[0]}
    reasons = {"image_column": "the column of images"}
    labels = [name for name, kind in features.items() if isinstance(kind, hf.ClassLabel)]
    if labels:
        keys["label_column"], reasons["label_column"] = labels[0], "the column of classes"
        return Found("diffusion", "a Hugging Face table of images and classes", keys, reasons, condition="class")
    texts = [name for name, kind in features.items() if str(getattr(kind, "dtype", "")) in ("string", "large_string")]
    if texts:
        keys["caption_column"], reasons["caption_column"] = texts[0], "the column of texts"
        return Found("diffusion", "a Hugging Face table of images and captions", keys, reasons, condition="text")
    return None


def _captions(path: Path) -> Found | None:
    for folder in (path, *folders_in(path)):
        for name in METADATA:
            if (folder / name).is_file():
                kind = f"images with captions in {(folder / name).relative_to(path).as_posix()}"
                return Found("diffusion", kind, {"name": "captioned_folder"}, condition="text")
    return None


def _image_and_mask_folders(path: Path) -> Found | None:
    """The two globs whose files pair best, one of images and one of masks."""
    files = files_in(path, SUFFIXES, recursive=True)
    candidates = _candidates(path, files)
    named = {pattern: named_files("data.images", pattern, path) for pattern in candidates}
    values = {pattern: _probe(found) for pattern, found in named.items()}
    best: tuple[float, str, str] | None = None
    for mask_pattern, masks in named.items():
        if values[mask_pattern].encoding == "none":
            continue
        taken = {file for found in masks.values() for file in found}
        for image_pattern, images in named.items():
            left = {name: [file for file in found if file not in taken] for name, found in images.items()}
            left = {name: found for name, found in left.items() if found}
            if image_pattern == mask_pattern or not left:
                continue
            try:
                pairs, _ = match_files(left, masks, path)
            except UserError:
                continue
            overlap = sum(pair.mask.is_file() and not pair.ambiguous for pair in pairs) / len(pairs)
            score = overlap + (len(pairs) + 0.1 * len(masks)) / len(files)  # masks of all splits before those of one
            score += _score(mask_pattern, values[mask_pattern]) - _score(image_pattern, values[image_pattern])
            score -= 0.01 * (mask_pattern + image_pattern).count("*")
            if overlap >= MIN_OVERLAP and (best is None or score > best[0]):
                best = (score, image_pattern, mask_pattern)
    if best is None:
        return None
    _, image_glob, masks_glob = best
    count = len(named[masks_glob])
    found = Found("segmentation", "images and masks", {"name": "folders", "images": image_glob, "masks": masks_glob})
    found.reasons |= {"images": "relative to root; a folder or a glob", "masks": f"{count} of the same names"}
    found.masks = inspect_masks([file for group in named[masks_glob].values() for file in group])
    _add_encoding(found, path)
    own = named[image_glob]
    _add_splits(found, path, list(own), [file for group in own.values() for file in group])
    return found


def _candidates(path: Path, files: list[Path]) -> list[str]:
    """Folders and globs of files that may be the images or the masks: by their folder and by the end of their names."""
    groups: dict[str, list[str]] = {}
    for file in files:
        parts = file.relative_to(path).parts
        if len(parts) == 1:
            groups.setdefault("", []).append(parts[0])
            continue
        groups.setdefault(parts[0], []).append(parts[-1])
        for depth in range(1, len(parts) - 1):  # split/images, sample/images
            groups.setdefault("*/" * depth + parts[depth], []).append(parts[-1])
    groups["**"] = [file.name for file in files if file.parent != path]  # split/x_rgb.png: by the ends of names alone
    patterns: list[str] = []
    for folder, names in groups.items():
        if len(groups) > 200 and len(names) < 0.05 * len(files):  # a folder per sample
            continue
        endings = Counter(_ending(name) for name in names)
        common = [ending for ending, number in endings.items() if number >= max(1, 0.1 * len(names)) and ending[0]]
        if folder and folder != "**":
            patterns.append(folder)
        nested = "**/*" if folder and folder != "**" else "*"
        base = f"{folder}/" if folder else ""
        patterns += [f"{base}{nested}{stem}{suffix}" for stem, suffix in common]
        suffixes = Counter(PurePosixPath(name).suffix for name in names)
        if (len(suffixes) > 1 and folder != "**") or not folder:
            patterns += [f"{base}{nested}{suffix}" for suffix in suffixes]
    return list(dict.fromkeys(patterns))[:60]


def _ending(name: str) -> tuple[str, str]:
    """("_gtFine_labelIds", ".png") of aachen_0_gtFine_labelIds.png; ("", ".png") where the name ends otherwise."""
    stem, dot, suffix = name.rpartition(".")
    match = re.search(r"(?:[_-][A-Za-z][A-Za-z0-9]*)+$", stem)
    return (match[0] if match else "", dot + suffix)


def _probe(named: dict[str, list[Path]]) -> MaskValues:
    files = [found[0] for found in named.values()]
    return inspect_masks(files[:: max(1, len(files) // MAX_PROBED)][:MAX_PROBED])


def _score(pattern: str, values: MaskValues) -> float:
    """How much a pattern looks like one of masks."""
    words = sum(word in pattern.lower() for word in MASK_WORDS) > 0
    kind = {"none": 0.0, "antialiased": 0.3, "colors": 0.5, "values": 0.7}.get(values.encoding, 0.8)
    return 0.5 * words + kind - 0.2 * values.in_rgb


def _add_encoding(found: Found, path: Path) -> None:
    """Keys of the masks' values, and their reasons."""
    masks = found.masks
    assert masks is not None
    for key, value in masks.keys().items():
        if key == "num_classes" and os.path.isfile(path / "classes.txt"):
            continue
        found.keys[key] = value
        found.reasons[key] = f"{masks.files} masks: {masks.describe()}"
    tables = [name for name in ("class_dict.csv", "label_colors.txt", "colors.txt") if (path / name).is_file()]
    if "mask_colors" in found.keys and tables:
        found.keys["mask_colors"], found.reasons["mask_colors"] = tables[0], f"{masks.describe()}, named in this file"


def _add_splits(found: Found, path: Path, names: list[str], files: list[Path]) -> None:
    """Lists, folders, or a fraction with the groups that names show."""
    listed = [name for name in ("train.txt", "val.txt") if (path / name).is_file()]
    parts = {part for file in files for part in file.relative_to(path).parts[:-1]}
    if len(listed) == 2 or any(part in STAND_INS["val"] for part in parts):
        return
    add_val_fraction(found, len(names))
    groups = Counter(re.sub(r"[_-]?\d+$", "", name) for name in names)
    if 4 <= len(groups) <= len(names) / 2 and max(groups.values()) < 0.5 * len(names):
        found.keys["group_pattern"] = r"^.*?(?=[_-]?\d+$)"
        example = groups.most_common(1)[0]
        found.reasons["group_pattern"] = f"{len(groups)} scenes such as {example[0]} ({example[1]} images) stay whole"


def add_val_fraction(found: Found, images: int) -> None:
    """Hold out a fraction of the images: a larger one where they are few."""
    is_small = images < SMALL
    found.keys["val_fraction"] = 0.2 if is_small else 0.1
    reason = "no lists and no folders of splits: drawn by seed"
    found.reasons["val_fraction"] = reason + ("; a fifth, as they are few" if is_small else "")


def _class_folders(path: Path) -> Found | None:
    """Folders of images by class, with or without splits, or images alone."""
    files = files_in(path, SUFFIXES, recursive=True)
    if not files:
        return None
    folders = [folder.name for folder in folders_in(path)]
    splits = [name for name in folders if name in SPLIT_NAMES]
    base = path / next((name for name in splits if name in STAND_INS["train"]), "")
    classes = [folder.name for folder in folders_in(base) if files_in(folder, SUFFIXES, recursive=True)]
    keys: dict[str, Any] = {"name": "image_folder"}
    reasons: dict[str, str] = {}
    if base.name in STAND_INS["train"] and base.name != "train" and base != path:
        keys["train_split"], reasons["train_split"] = base.name, "the name of its folder"
    if len(classes) > 1:
        counts = [len(files_in(base / name, SUFFIXES, recursive=True)) for name in classes]
        each = f"{min(counts)} to {max(counts)}" if min(counts) < max(counts) else f"{min(counts)}"
        kind = f"{len(classes)} folders of images, one per class ({each} images each)"
        return Found("diffusion", kind, keys, reasons, condition="class")
    if any(item.is_file() and item.suffix.lower() in SUFFIXES for item in entries(base)) or classes:
        return Found("diffusion", "images without masks, classes or captions", keys, reasons)
    return None
