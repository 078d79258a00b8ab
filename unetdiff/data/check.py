"""Is a set fit to train on? Every fault with its file, its value and a remedy, before any training."""

from __future__ import annotations

import hashlib
import os
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Literal

import numpy as np
from PIL import Image
from tqdm import tqdm

from unetdiff.data.build import build_dataset
from unetdiff.data.captions import read_split
from unetdiff.data.config import DataConfig
from unetdiff.data.decoding import decode, upright_size
from unetdiff.data.images import folder_files
from unetdiff.data.issues import BadFile, Issue, raise_first_issue, size_issue, value_issue
from unetdiff.data.parquet import read_table
from unetdiff.data.threads import map_in_threads
from unetdiff.data.transforms import IGNORE_INDEX
from unetdiff.data.voc import (
    Pair,
    VOCFolder,
    read_indices,
    split_file,
    wrong_values,
)


def check(config: DataConfig, masks: bool = True, full: bool = True, progress: bool = True) -> list[Issue]:
    """Every fault of both splits, whatever `data.train_fraction`; [] for a set that is fit to train on.

    Args:
        config: the `data:` section.
        masks: look at the masks of a VOC-style set too (a denoiser alone needs none).
        full: decode every image; else read a JPEG's header and end only, and decode it where those are odd.
        progress: show a bar.

    Raises:
        UserError: the set cannot even be listed (no such folder, split or class list).
    """
    config = replace(config, train_fraction=1.0)
    if config.name in ("voc", "voc_folder"):
        return _check_masked(config, masks, full, progress)
    if config.name == "image_folder":
        return _check_folder(config, full, progress)
    if config.name == "captioned_folder":
        return _check_captioned(config, full, progress)
    if config.name == "parquet":
        return _check_parquet(config, full, progress)
    for split in _roles():  # scenes, fashion_mnist and cifar10 are read whole when they are built
        build_dataset(config, split, segmentation=False)
    return []


def first_issue(config: DataConfig, masks: bool = True) -> Issue | None:
    """The first fault, found quickly: every mask is read, JPEGs by header and end. None for a clean set."""
    issues = check(config, masks, full=False, progress=False)
    return issues[0] if issues else None


def require_clean(config: DataConfig, masks: bool = True) -> None:
    """Refuse to train on a set with a fault: UserError naming the first and how many more there are."""
    raise_first_issue(check(config, masks, full=False, progress=False))


def _roles() -> tuple[Literal["train", "val"], Literal["train", "val"]]:
    return "train", "val"


def _check_masked(config: DataConfig, masks: bool, full: bool, progress: bool) -> list[Issue]:
    sized = config if masks else replace(config, size=config.size or [32, 32])
    splits: dict[str, VOCFolder] = {}
    for role in _roles():
        built = build_dataset(sized, role, segmentation=masks)
        assert isinstance(built, VOCFolder)
        splits[role] = built
    train, val = splits["train"], splits["val"]
    issues = list(_list_issues(train, val))
    pairs = list({pair.name: pair for split in (train, val) for pair in split.pairs}.values())
    count = len(train.classes) if masks else None

    def examine(pair: Pair) -> list[Issue]:
        return _pair_issues(pair, count, full, config.allow_binary_masks)

    for found in map_in_threads(examine, pairs, "check", progress):
        issues += found
    return issues


def _list_issues(train: VOCFolder, val: VOCFolder) -> Iterator[Issue]:
    """Ids that two splits share, or that one names twice."""
    for split in (train, val):
        names = [pair.name for pair in split.pairs]
        again = sorted({name for name, n in _counts(names).items() if n > 1})
        if again:
            file = str(split_file(split.root, split.split))
            yield Issue(file, f"{len(again)} id(s) listed more than once", _some(again), "keep one line of each")
    shared = sorted({pair.name for pair in train.pairs} & {pair.name for pair in val.pairs})
    if shared:
        yield Issue(
            str(split_file(train.root, train.split)),
            f"{len(shared)} id(s) are in the split '{val.split}' too",
            _some(shared),
            f"take them out of {train.split}.txt, or the score on '{val.split}' is one of memory",
        )


def _pair_issues(pair: Pair, num_classes: int | None, full: bool, void_only: bool) -> list[Issue]:
    """Faults of one image and its mask; without `num_classes`, of the image alone."""
    issues = []
    size = None
    try:
        size = _image_size(pair.image, full)
    except BadFile as error:
        issues.append(_of(error))
    if num_classes is None:
        return issues
    try:
        values = read_indices(pair.mask)
    except BadFile as error:
        return [*issues, _of(error)]
    there = set(np.flatnonzero(np.bincount(values.reshape(-1), minlength=256)).tolist())
    wrong = wrong_values(values, num_classes)
    if IGNORE_INDEX in there and there <= {0, IGNORE_INDEX} and not void_only:
        issues.append(
            Issue(
                str(pair.mask),
                f"a 0/{IGNORE_INDEX} mask, but {IGNORE_INDEX} is void, of which nothing is learnt",
                f"{(values == IGNORE_INDEX).mean():.0%} of it is {IGNORE_INDEX}",
                f"write the class's number instead of {IGNORE_INDEX}; if it is void, set data.allow_binary_masks=true",
            )
        )
    elif wrong:
        issues.append(value_issue(pair.mask, wrong, num_classes))
    if size is not None and values.shape != size:
        issues.append(size_issue(pair.image, pair.mask, size, values.shape))
    return issues


def _image_size(path: Path, full: bool) -> tuple[int, int]:
    """(height, width) of an image that can be read, else BadFile."""
    if not full:
        try:
            with Image.open(path) as image, open(path, "rb") as file:
                if image.format == "JPEG":
                    file.seek(-2, os.SEEK_END)
                    if file.read() == b"\xff\xd9":  # the end-of-image marker: not cut short
                        return upright_size(image)
        except (OSError, SyntaxError, ValueError):
            pass  # decode below says what is wrong
    height, width = decode(path).shape[1:]
    return height, width


def _check_folder(config: DataConfig, full: bool, progress: bool) -> list[Issue]:
    by_role = {}
    for role in _roles():
        files, _, chosen = folder_files(config, role)
        by_role[role] = [files[i][0] for i in chosen]
    return _image_issues(by_role["train"], by_role["val"], full, progress)


def _check_captioned(config: DataConfig, full: bool, progress: bool) -> list[Issue]:
    splits = [read_split(config, role) for role in _roles()]
    train, val = ([row.file for row in split.rows if row.file is not None] for split in splits)
    # both splits may be of one metadata file, whose faults are each told once
    issues = list(dict.fromkeys(issue for split in splits for issue in split.issues))
    return issues + _image_issues(train, val, full, progress)


def _image_issues(train: list[Path], val: list[Path], full: bool, progress: bool) -> list[Issue]:
    """Images that both splits have, and those that cannot be read."""
    issues = []

    def examine(path: Path) -> list[Issue]:
        try:
            _image_size(path, full)
        except BadFile as error:
            return [_of(error)]
        return []

    for other, file in _same_files(train, val):
        issues.append(Issue(str(file), "the same image is in the training split", str(other), "remove one of the two"))
    for found in map_in_threads(examine, [*train, *val], "check", progress):
        issues += found
    return issues


def _same_files(train: list[Path], val: list[Path]) -> Iterator[tuple[Path, Path]]:
    """Files of the same bytes in both; only those of equal length are read."""
    by_length = defaultdict(list)
    for path in train:
        by_length[path.stat().st_size].append(path)
    for path in val:
        candidates = by_length.get(path.stat().st_size, [])
        if candidates:
            digest = _digest(path)
            for other in candidates:
                if _digest(other) == digest:
                    yield other, path
                    break


def _digest(path: Path) -> bytes:
    return hashlib.sha1(path.read_bytes()).digest()


def _check_parquet(config: DataConfig, full: bool, progress: bool) -> list[Issue]:
    issues = []
    for role in _roles():
        table = read_table(config, role)
        issues += table.issues
        rows = range(len(table.rows)) if full else range(min(len(table.rows), 8))
        for i in tqdm(rows, desc=f"check {role}", disable=not progress):
            try:
                table.image(i)
            except BadFile as error:
                issues.append(_of(error))
    return issues


def _of(error: BadFile) -> Issue:
    assert error.issue is not None
    return error.issue


def _some(names: list[str]) -> str:
    shown = ", ".join(names[:3])
    return shown if len(names) <= 3 else f"{shown}, ..."


def _counts(names: list[str]) -> dict[str, int]:
    counts: dict[str, int] = defaultdict(int)
    for name in names:
        counts[name] += 1
    return counts
