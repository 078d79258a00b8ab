"""Check a dataset before training: every issue with its file, value and remedy."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Literal

import numpy as np

from unetdiff.console import progress_bar
from unetdiff.data.build import build_dataset
from unetdiff.data.captions import read_split
from unetdiff.data.config import DataConfig, validate_image_range
from unetdiff.data.depth import BitDepths
from unetdiff.data.images import folder_files
from unetdiff.data.issues import BadFile, Issue, ambiguous_issue, raise_first_issue, size_issue, value_issue
from unetdiff.data.labelled import unlabelled_files
from unetdiff.data.parquet import read_table
from unetdiff.data.regularization import read_regularization
from unetdiff.data.threads import map_in_threads
from unetdiff.data.transforms import IGNORE_INDEX
from unetdiff.data.voc import VOCFolder, read_indices, wrong_values
from unetdiff.data.voc_lists import ImageMaskPair, split_file
from unetdiff.errors import FileError
from unetdiff.files.folders import size_of
from unetdiff.files.writing import sha256_of

QUICK_ROWS = 8
"""Rows of a parquet table of which a quick check decodes the image."""


def check(config: DataConfig, masks: bool = True, full: bool = True, progress: bool = True) -> list[Issue]:
    """All issues of both splits and of `data.unlabelled_root`; [] for a clean dataset.

    All images are checked, whatever `data.train_fraction` and `data.label_fraction`.

    Args:
        config: the `data:` section.
        masks: check the masks of a VOC-style dataset too (an unconditional denoiser needs none).
        full: decode every image; else read the header and end of a JPEG only, and decode it if these look wrong.
        progress: show a progress bar.

    Raises:
        UserError: the dataset cannot be listed (missing folder, split or class list).
    """
    validate_image_range(config.image_range)
    config = replace(config, train_fraction=1.0, label_fraction=1.0)
    if config.name in ("voc", "voc_folder"):
        return _check_masked(config, masks, full, progress)
    if config.name == "image_folder":
        return _check_folder(config, full, progress)
    if config.name == "captioned_folder":
        return _check_captioned(config, full, progress)
    if config.name == "parquet":
        return _check_parquet(config, full, progress)
    for split in _roles():  # scenes, fashion_mnist and cifar10 are read completely when built
        build_dataset(config, split, segmentation=False)
    return []


def first_issue(config: DataConfig, masks: bool = True) -> Issue | None:
    """The first issue of a quick check (`full=False`); None for a clean dataset."""
    issues = check(config, masks, full=False, progress=False)
    return issues[0] if issues else None


def require_clean(config: DataConfig, masks: bool = True) -> None:
    """Raise a UserError with the first issue of a quick check and the number of further ones, if there are any."""
    raise_first_issue(check(config, masks, full=False, progress=False))


def _roles() -> tuple[Literal["train", "val"], Literal["train", "val"]]:
    return "train", "val"


def _check_masked(config: DataConfig, masks: bool, full: bool, progress: bool) -> list[Issue]:
    sized = config if masks else replace(config, size=config.size or [32, 32])
    splits: dict[str, VOCFolder] = {}
    for role in _roles():
        built = build_dataset(replace(sized, unlabelled_root=None), role, segmentation=masks)
        assert isinstance(built, VOCFolder)
        splits[role] = built
    train, val = splits["train"], splits["val"]
    issues = list(_list_issues(train, val))
    pairs = list({pair.name: pair for split in (train, val) for pair in split.pairs}.values())
    count = len(train.classes) if masks else None

    depths = BitDepths(config.image_range, full)

    def examine(pair: ImageMaskPair) -> list[Issue]:
        return _pair_issues(pair, count, depths, config.allow_binary_masks)

    for pair_issues in map_in_threads(examine, pairs, "check", progress):
        issues += pair_issues
    if masks and (files := unlabelled_files(config)):
        for file, image in _same_files(files, [pair.image for pair in val.pairs if pair.image.is_file()]):
            found = "also an image of the validation split"
            issues.append(Issue(str(file), found, str(image), "Remove it: the denoiser would have seen it."))
        return issues + _image_issues(files, [], depths, progress)
    return issues + depths.issues()


def _list_issues(train: VOCFolder, val: VOCFolder) -> Iterator[Issue]:
    """Ids that are in both splits, or twice in one."""
    for split in (train, val):
        names = [pair.name for pair in split.pairs]
        repeated = sorted(name for name, n in Counter(names).items() if n > 1)
        if repeated:
            file = str(split_file(split.root, split.split))
            yield Issue(
                file, f"{len(repeated)} id(s) listed more than once", _first(repeated), "Keep one line of each."
            )
    shared = sorted({pair.name for pair in train.pairs} & {pair.name for pair in val.pairs})
    if shared:
        yield Issue(
            str(split_file(train.root, train.split)),
            f"{len(shared)} id(s) also in the split '{val.split}'",
            _first(shared),
            f"Remove them from {train.split}.txt: trained on, they inflate the metrics on '{val.split}'.",
        )


def _pair_issues(pair: ImageMaskPair, num_classes: int | None, depths: BitDepths, allow_binary: bool) -> list[Issue]:
    """Issues of an image and its mask; without `num_classes`, of the image only."""
    if pair.ambiguous:
        return [ambiguous_issue(pair.ambiguous)]
    issues = []
    size = None
    try:
        size = depths.image_size(pair.image)
    except BadFile as error:
        issues.append(_issue_of(error))
    if num_classes is None:
        return issues
    try:
        values = read_indices(pair.mask)
    except BadFile as error:
        return [*issues, _issue_of(error)]
    present = set(np.flatnonzero(np.bincount(values.reshape(-1), minlength=256)).tolist())
    wrong = wrong_values(values, num_classes)
    if IGNORE_INDEX in present and present <= {0, IGNORE_INDEX} and not allow_binary:
        issues.append(
            Issue(
                str(pair.mask),
                f"a 0/{IGNORE_INDEX} mask, but {IGNORE_INDEX} is ignored in training",
                f"{(values == IGNORE_INDEX).mean():.0%} of it is {IGNORE_INDEX}",
                f"Write the class index instead of {IGNORE_INDEX}, or set data.allow_binary_masks=true to ignore it.",
            )
        )
    elif wrong:
        issues.append(value_issue(pair.mask, wrong, num_classes))
    if size is not None and values.shape != size:
        issues.append(size_issue(pair.image, pair.mask, size, values.shape))
    return issues


def _check_folder(config: DataConfig, full: bool, progress: bool) -> list[Issue]:
    by_role = {}
    for role in _roles():
        files, _, chosen = folder_files(config, role)
        by_role[role] = [files[i][0] for i in chosen]
    return _image_issues(by_role["train"], by_role["val"], BitDepths(config.image_range, full), progress)


def _check_captioned(config: DataConfig, full: bool, progress: bool) -> list[Issue]:
    splits = [read_split(config, role) for role in _roles()]
    train, val = ([row.file for row in split.rows if row.file is not None] for split in splits)
    # both splits may share a metadata file: report its issues once
    issues = list(dict.fromkeys(issue for split in splits for issue in split.issues))
    others, _, more = read_regularization(config)
    return issues + more + _image_issues(train, val, BitDepths(config.image_range, full), progress, others)


def _image_issues(
    train: list[Path], val: list[Path], depths: BitDepths, progress: bool, others: Sequence[Path] = ()
) -> list[Issue]:
    """Images that are in both splits or cannot be read; `others`: further images to read."""
    issues = []

    def examine(path: Path) -> list[Issue]:
        try:
            depths.image_size(path)
        except BadFile as error:
            return [_issue_of(error)]
        return []

    for other, file in _same_files(train, val):
        issues.append(Issue(str(file), "duplicate of a training image", str(other), "Remove one of the two."))
    for image_issues in map_in_threads(examine, [*train, *val, *others], "check", progress):
        issues += image_issues
    return issues + depths.issues()


def _same_files(train: list[Path], val: list[Path]) -> Iterator[tuple[Path, Path]]:
    """(training file, validation file) with the same bytes; only files of equal length are read."""
    by_length = defaultdict(list)
    for path in train:
        by_length[_length(path)].append(path)
    for path in val:
        candidates = by_length.get(_length(path), [])
        if candidates and _length(path):
            digest = _digest(path)
            for other in candidates:
                if digest is not None and _digest(other) == digest:
                    yield other, path
                    break


def _length(path: Path) -> int:
    """Size of a file in bytes; 0 if it cannot be read, which is reported when it is decoded."""
    try:
        return size_of(path)
    except FileError:
        return 0


def _digest(path: Path) -> str | None:
    try:
        return sha256_of(path)
    except FileError:
        return None


def _check_parquet(config: DataConfig, full: bool, progress: bool) -> list[Issue]:
    issues: list[Issue] = []
    depths = BitDepths(config.image_range, full)
    for role in _roles():
        table = read_table(config, role)
        issues += table.issues
        rows = range(len(table.rows)) if full else range(min(len(table.rows), QUICK_ROWS))
        for i in progress_bar(rows, desc=f"check {role}", enabled=progress):
            try:
                depths.image_size(*table.source(i))
            except BadFile as error:
                issues.append(_issue_of(error))
    return list(dict.fromkeys(issues)) + depths.issues()  # both splits may share a file


def _issue_of(error: BadFile) -> Issue:
    assert error.issue is not None
    return error.issue


def _first(names: list[str]) -> str:
    shown = ", ".join(names[:3])
    return shown if len(names) <= 3 else f"{shown}, ..."
