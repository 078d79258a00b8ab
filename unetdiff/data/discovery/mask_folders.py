"""Folders of images and of masks, paired by the names of their files."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path, PurePosixPath

from unetdiff.data.discovery.found import Found, add_encoding, add_val_fraction
from unetdiff.data.discovery.stray_folders import dataset_files, is_stray
from unetdiff.data.masks.folders import match_files
from unetdiff.data.masks.globs import named_files
from unetdiff.data.masks.inspect import MaskValues, inspect_masks
from unetdiff.data.masks.splits import STAND_INS
from unetdiff.errors import UserError
from unetdiff.files.images import SUFFIXES

MASK_WORDS = ("mask", "label", "gt", "seg", "annot", "truth", "lbl")
"""In the paths of masks."""
ENDING = re.compile(r"(?:[_-][A-Za-z][A-Za-z0-9]*)+$")
"""Of a file's stem: "_mask", "_gtFine_labelIds"."""
MIN_OVERLAP = 0.5
"""Fraction of the images that must have a mask of their name."""
MIN_BLOCKS = 5
"""Blocks of ten pages of a stack from which whole ones are held out."""
MAX_PROBED = 5
"""Files of a candidate that are decoded to see whether they are masks."""


def find_image_and_mask_folders(path: Path) -> Found | None:
    """The two globs whose files pair best, one of images and one of masks."""
    files = dataset_files(path, SUFFIXES)
    candidates = _candidates(path, files)
    named = {pattern: matched for pattern in candidates if (matched := _named(path, pattern))}
    values = {pattern: probe([files[0] for files in found.values()]) for pattern, found in named.items()}
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
    add_encoding(found, path)
    own = named[image_glob]
    if found.masks.files > count:
        found.kind = "stacks of images and of masks"
        found.reasons["masks"] = f"{count} of the same names, {found.masks.files} pages"
        add_val_fraction(found, found.masks.files)
        if found.masks.files >= MIN_BLOCKS * 10:
            found.keys["group_pattern"] = r"^.*(?=\d$)"
            found.reasons["group_pattern"] = "ten neighboring pages, which are alike, stay together"
        return found
    _add_splits(found, path, list(own), [file for group in own.values() for file in group])
    return found


def _named(path: Path, pattern: str) -> dict[str, list[Path]]:
    """The files of a candidate by name, without stray ones; none where it reads as something else (a folder v1.0)."""
    try:
        named = named_files("data.images", pattern, path)
    except UserError:
        return {}
    stray: dict[Path, bool] = {}

    def is_in_stray(file: Path) -> bool:
        folders = list(file.relative_to(path).parents)[:-1]
        return any(stray.setdefault(one, is_stray(path / one)) for one in folders)

    kept = {name: [file for file in files if not is_in_stray(file)] for name, files in named.items()}
    return {name: files for name, files in kept.items() if files}


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
    match = ENDING.search(stem)
    return (match[0] if match else "", dot + suffix)


def probe(files: Sequence[Path]) -> MaskValues:
    """The values of a few files at equal distances, to see whether they are masks."""
    return inspect_masks(files[:: max(1, len(files) // MAX_PROBED)][:MAX_PROBED])


def _score(pattern: str, values: MaskValues) -> float:
    """How much a pattern looks like one of masks."""
    words = sum(word in pattern.lower() for word in MASK_WORDS) > 0
    kind = {"none": 0.0, "antialiased": 0.3, "colors": 0.5, "values": 0.7}.get(values.encoding, 0.8)
    return 0.5 * words + kind - 0.2 * values.in_rgb


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
