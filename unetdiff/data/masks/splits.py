"""Splits of named files: from lists, from folders of the splits' names, by a pattern, or a fraction drawn by seed."""

from __future__ import annotations

import fnmatch
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Literal

import torch

from unetdiff.data.config import DataConfig
from unetdiff.data.hashing import generator_of
from unetdiff.data.masks.globs import is_glob
from unetdiff.data.masks.voc_lists import read_ids
from unetdiff.data.masks.voc_paths import SPLITS
from unetdiff.errors import FileError, UserError, config_error
from unetdiff.files.folders import files_in

Role = Literal["train", "val"]
VAL_FRACTION = 0.1
"""Held out where nothing else gives the validation split."""
STAND_INS = {"train": ("train", "training"), "val": ("val", "validation", "valid")}
"""Names of folders and lists for the default name of a split."""


@dataclass(frozen=True)
class Split:
    """The samples of a split."""

    indices: list[int]
    place: str
    """What gives the split: a list, a folder, a pattern or a fraction; for messages."""


def split_of(names: Sequence[str], files: Sequence[Path], root: Path, config: DataConfig, role: Role) -> Split:
    """The samples of a split, in the order of `names` (of a list, in its order).

    The first that exists gives a split called NAME: a list `root`/NAME or NAME.txt (also in splits/ or
    ImageSets/Segmentation/), names that match NAME if it is a glob, a folder called NAME on the images' paths. Where
    nothing gives the validation split, or `data.val_fraction` is set, it is a fraction of the training split (of all
    images where nothing gives that), drawn by `data.split_seed`, whole groups at a time (`data.group_pattern`). Where
    only the validation split is given, all other images are for training.

    Args:
        names: of all samples.
        files: their images.
        root: the dataset's folder.
        config: the `data:` section.
        role: "train" or "val".

    Raises:
        UserError: a split that does not exist or is empty, or a list with an unknown name.
    """
    train = _named("data.train_split", config.train_split, names, files, root)
    val = None if config.val_fraction is not None else _named("data.val_split", config.val_split, names, files, root)
    if train is None and config.train_split != DataConfig.train_split:
        raise _missing("data.train_split", config.train_split, root)
    if val is None and config.val_fraction is None and config.val_split != DataConfig.val_split:
        raise _missing("data.val_split", config.val_split, root)
    if val is not None and train is None:
        others = set(range(len(names))) - set(val.indices)
        train = Split(sorted(others), str(root))
    elif val is None:
        whole = list(range(len(names))) if train is None else train.indices
        fraction = VAL_FRACTION if config.val_fraction is None else config.val_fraction
        held_out = set(_fraction([names[i] for i in whole], fraction, config, root))
        place = str(root) if train is None else train.place
        val = Split([i for n, i in enumerate(whole) if n in held_out], place)
        train = Split([i for n, i in enumerate(whole) if n not in held_out], place)
    assert train is not None
    for key, split in (("data.train_split", train), ("data.val_split", val)):
        if not split.indices:
            raise FileError.of(split.place, f"the split has no images ({key})", "Correct the splits.")
    return train if role == "train" else val


def _named(key: str, split: str, names: Sequence[str], files: Sequence[Path], root: Path) -> Split | None:
    """The samples of a split that a list, a glob or a folder gives; None if there is none of this name."""
    for name in STAND_INS.get(split, (split,)):
        for path in (root / name, root / f"{name}.txt", root / "splits" / f"{name}.txt", root / SPLITS / f"{name}.txt"):
            if os.path.isfile(path):
                return Split(_listed(path, names, files, root), str(path))
        if is_glob(name):
            found = [i for i, one in enumerate(names) if fnmatch.fnmatchcase(one, name) or _matches(one, name)]
            if not found:
                raise config_error(key, name, f"a pattern of names such as {names[0]} (none matches)")
            return Split(found, f"{key}={name}")
        found = [i for i, path in enumerate(files) if name in _folders(path, root)]
        if found:
            return Split(found, str(root / name))
    return None


def _matches(name: str, pattern: str) -> bool:
    return fnmatch.fnmatchcase(PurePosixPath(name).name, pattern)


def _folders(path: Path, root: Path) -> tuple[str, ...]:
    return path.relative_to(root).parts[:-1] if path.is_relative_to(root) else path.parts[:-1]


def _listed(path: Path, names: Sequence[str], files: Sequence[Path], root: Path) -> list[int]:
    """The samples of a list with a name, a file name or a path of an image per line."""
    by_name: dict[str, list[int]] = {}
    for i, (name, file) in enumerate(zip(names, files, strict=True)):
        relative = file.relative_to(root).as_posix() if file.is_relative_to(root) else file.as_posix()
        for text in {
            name,
            PurePosixPath(name).name,
            relative,
            file.name,
            file.stem,
            str(PurePosixPath(relative).with_suffix("")),
        }:
            by_name.setdefault(text, []).append(i)
    indices = []
    for line in read_ids(path):
        first = re.split(r"[\s,]+", line)[0]  # "image mask" on one line
        found = by_name.get(line) or by_name.get(first) or by_name.get(str(PurePosixPath(first).with_suffix(""))) or []
        if len(found) != 1:
            reason = f"'{line}' is the name of {len(found) or 'no'} images"
            raise FileError.of(path, reason, f"Use names such as {names[0]}.")
        indices.append(found[0])
    return indices


def _fraction(names: Sequence[str], fraction: float, config: DataConfig, root: Path) -> list[int]:
    """Positions of whole groups, drawn by seed, of about a fraction of the samples: at least one group, never all."""
    groups: dict[str, list[int]] = {}
    for i, name in enumerate(names):
        groups.setdefault(group_of(name, config.group_pattern), []).append(i)
    if len(groups) < 2:
        raise FileError.of(
            root,
            f"{len(names)} image(s) in {len(groups)} group(s) cannot be split into train and val",
            "Give at least 2, or correct data.group_pattern.",
        )
    keys = sorted(groups)
    order = torch.randperm(len(keys), generator=generator_of(config.split_seed, len(keys))).tolist()
    wanted, drawn = max(1, round(fraction * len(names))), []  # type: ignore[var-annotated]
    for number in order[:-1]:
        group = groups[keys[number]]
        if drawn and len(drawn) + len(group) / 2 > wanted:
            continue
        drawn += group
        if len(drawn) >= wanted:
            break
    return sorted(drawn)


def group_of(name: str, pattern: str | None) -> str:
    """What a name has in common with those of its group: the pattern's first group or its match; the name itself
    without a pattern."""
    if pattern is None:
        return name
    match = re.search(pattern, name)
    if match is None:
        return name
    return match[1] if match.re.groups and match[1] is not None else match[0]


def _missing(key: str, split: str, root: Path) -> UserError:
    folders = [folder for folder in (root, root / "splits", root / SPLITS) if folder.is_dir()]
    lists = sorted(path.stem for folder in folders for path in files_in(folder, {".txt"}))
    there = f" Lists: {', '.join(lists)}." if lists else ""
    remedy = f"Write {root / split}.txt with a name per line, or set data.val_fraction.{there}"
    return config_error(key, split, f"a list or a glob of names, or a folder of images, in {root}", remedy)
