"""Check a dataset before training: every issue with its file, value and remedy."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Literal

from unetdiff.console import progress_bar
from unetdiff.data.build import build_dataset
from unetdiff.data.captions import read_split
from unetdiff.data.config import DataConfig, validate_image_range
from unetdiff.data.depth import BitDepths
from unetdiff.data.images import folder_files
from unetdiff.data.issues import BadFile, Issue, issue_of, raise_first_issue
from unetdiff.data.labelled import unlabelled_files
from unetdiff.data.masks.build import READERS, build_reader
from unetdiff.data.masks.reader import MaskReader
from unetdiff.data.parquet import read_table
from unetdiff.data.regularization import read_regularization
from unetdiff.data.threads import map_in_threads
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
        masks: check the masks of a dataset too (an unconditional denoiser needs none).
        full: decode every image; else read the header and end of a JPEG only, and decode it if these look wrong.
        progress: show a progress bar.

    Raises:
        UserError: the dataset cannot be listed (missing folder, split or class list).
    """
    validate_image_range(config.image_range)
    config = replace(config, train_fraction=1.0, label_fraction=1.0)
    if config.name in READERS:
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
    train, val = (build_reader(config, role, masks) for role in _roles())
    issues = [*_list_issues(train, val, config), *dict.fromkeys([*train.issues(), *val.issues()])]
    samples = {reader.names[i]: (reader, i) for reader in (train, val) for i in range(len(reader.names))}
    depths = BitDepths(config.image_range, full)

    def examine(sample: tuple[MaskReader, int]) -> list[Issue]:
        return _sample_issues(*sample, depths, masks)

    for sample_issues in map_in_threads(examine, list(samples.values()), "check", progress):
        issues += sample_issues
    if masks and (files := unlabelled_files(config)):
        return issues + list(_seen_issues(files, val)) + _image_issues(files, [], depths, progress)
    return issues + depths.issues()


def _seen_issues(files: list[Path], val: MaskReader) -> Iterator[Issue]:
    """Images without masks that are also in the validation split."""
    images = []
    for index in range(len(val.names)):
        with suppress(BadFile):
            source, _ = val.image(index)
            images += [source] if isinstance(source, Path) else []
    for file, image in _same_files(files, images):
        found = "also an image of the validation split"
        yield Issue(str(file), found, str(image), "Remove it: the denoiser would have seen it.")


def _list_issues(train: MaskReader, val: MaskReader, config: DataConfig) -> Iterator[Issue]:
    """Names that are in both splits, or twice in one."""
    for reader in (train, val):
        repeated = sorted(name for name, n in Counter(reader.names).items() if n > 1)
        if repeated:
            message = f"{len(repeated)} id(s) listed more than once"
            yield Issue(reader.place, message, _first(repeated), "Keep one line of each.")
    shared = sorted(set(train.names) & set(val.names))
    if shared:
        remedy = (
            f"Remove them from '{config.train_split}': trained on, they inflate the metrics on '{config.val_split}'."
        )
        yield Issue(train.place, f"{len(shared)} id(s) also in the split '{config.val_split}'", _first(shared), remedy)


def _sample_issues(reader: MaskReader, index: int, depths: BitDepths, masks: bool) -> list[Issue]:
    """Issues of an image, and of its mask if `masks`."""
    issues, size = [], None
    try:
        size = depths.image_size(*reader.image(index))
    except BadFile as error:
        issues.append(issue_of(error))
    if masks:
        issues += reader.mask_issues(index, size)
    return list(dict.fromkeys(issues))  # several files of one name are reported for the image and for the mask


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
            return [issue_of(error)]
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
                issues.append(issue_of(error))
    return list(dict.fromkeys(issues)) + depths.issues()  # both splits may share a file


def _first(names: list[str]) -> str:
    shown = ", ".join(names[:3])
    return shown if len(names) <= 3 else f"{shown}, ..."
