"""Check a dataset before training: every issue with its file, value and remedy."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from itertools import zip_longest
from pathlib import Path
from typing import Literal

from unetdiff.console import progress_bar
from unetdiff.data.build import build_dataset
from unetdiff.data.captions import read_split
from unetdiff.data.config import DataConfig, validate_image_range
from unetdiff.data.decoding import RGB
from unetdiff.data.image_format import resolve_image_format
from unetdiff.data.image_survey import ImageSurvey
from unetdiff.data.images import folder_files
from unetdiff.data.issues import BadFile, Issue, issue_of, raise_first_issue
from unetdiff.data.labelled import unlabelled_files
from unetdiff.data.masks.build import READERS, build_reader
from unetdiff.data.masks.reader import MaskReader
from unetdiff.data.parquet import read_table
from unetdiff.data.regularization import read_regularization
from unetdiff.data.threads import map_in_threads
from unetdiff.errors import FileError
from unetdiff.files.folders import files_in, size_of
from unetdiff.files.images import SUFFIXES
from unetdiff.files.writing import sha256_of

QUICK_ROWS = 8
"""Rows of a parquet table of which a quick check decodes the image."""


@dataclass(frozen=True)
class CheckReport:
    """The result of a check."""

    issues: list[Issue]
    """What must be corrected before training."""
    notes: list[str]
    """What is done with the images (alpha, ranges, further pages), and what is skipped, a line each."""


def check(config: DataConfig, masks: bool = True, full: bool = True, progress: bool = True) -> list[Issue]:
    """The issues of `examine`."""
    return examine(config, masks, full, progress).issues


def examine(config: DataConfig, masks: bool = True, full: bool = True, progress: bool = True) -> CheckReport:
    """All issues of both splits and of `data.unlabelled_root`; none for a clean dataset.

    All images are examined, whatever `data.train_fraction` and `data.label_fraction`.

    Args:
        config: the `data:` section.
        masks: check the masks of a dataset too (an unconditional denoiser needs none).
        full: decode every image; else read the header and end of a JPEG only, and decode it if these look wrong.
        progress: show a progress bar.

    Raises:
        UserError: the dataset cannot be listed (missing folder, split or class list).
    """
    validate_image_range(config.image_range)
    config = resolve_image_format(replace(config, train_fraction=1.0, label_fraction=1.0), masks)
    survey = ImageSurvey(config.image_range, config.channels or RGB, full)
    if config.name in READERS:
        issues, skipped = _check_masked(config, masks, survey, progress)
    elif config.name == "image_folder":
        issues, skipped = _check_folder(config, survey, progress)
    elif config.name == "captioned_folder":
        issues, skipped = _check_captioned(config, survey, progress)
    elif config.name == "parquet":
        issues, skipped = _check_parquet(config, survey, progress)
    else:
        for split in _roles():  # scenes, fashion_mnist and cifar10 are read completely when built
            build_dataset(config, split, segmentation=False)
        issues, skipped = [], []
    return CheckReport(issues + survey.issues(), survey.notes() + skipped)


def first_issue(config: DataConfig, masks: bool = True) -> Issue | None:
    """The first issue of a quick check (`full=False`); None for a clean dataset."""
    issues = check(config, masks, full=False, progress=False)
    return issues[0] if issues else None


def require_clean(config: DataConfig, masks: bool = True) -> None:
    """Raise a UserError with the first issue of a quick check and the number of further ones, if there are any."""
    raise_first_issue(check(config, masks, full=False, progress=False))


def _roles() -> tuple[Literal["train", "val"], Literal["train", "val"]]:
    return "train", "val"


def _check_masked(
    config: DataConfig, masks: bool, survey: ImageSurvey, progress: bool
) -> tuple[list[Issue], list[str]]:
    train, val = (build_reader(config, role, masks) for role in _roles())
    issues = [*_list_issues(train, val, config), *dict.fromkeys([*train.issues(), *val.issues()])]
    samples = {reader.names[i]: (reader, i) for reader in (train, val) for i in range(len(reader.names))}

    def examine(sample: tuple[MaskReader, int]) -> list[Issue]:
        return _sample_issues(*sample, survey, masks)

    for sample_issues in map_in_threads(examine, list(samples.values()), "check", progress):
        issues += sample_issues
    if masks and (files := unlabelled_files(config)):
        issues += [*_seen_issues(files, val), *_image_issues(files, [], survey, progress)]
    return issues, _unlisted(samples.values(), masks)


def _unlisted(samples: Iterable[tuple[MaskReader, int]], masks: bool) -> list[str]:
    """Files next to the images of both splits that are in neither, nor masks of theirs."""
    listed: set[Path] = set()
    folders: set[Path] = set()
    for reader, index in samples:
        try:
            source, _ = reader.image(index)
        except BadFile:
            continue
        if isinstance(source, Path):
            listed.add(source)
            folders.add(source.parent)
        if masks:
            listed.add(reader.mask_place(index))
    others = [path for folder in sorted(folders) if folder.is_dir() for path in files_in(folder) if path not in listed]
    return _skipped(others, "in no split")


def _skipped(files: Sequence[Path], why: str = "not images by their suffix") -> list[str]:
    """A note on files that are not read."""
    if not files:
        return []
    counts = Counter(path.suffix.lower() or "no suffix" for path in files)
    kinds = ", ".join(f"{n} {suffix}" for suffix, n in counts.most_common(5))
    return [f"{len(files)} file(s) skipped, {why}: {kinds}, e.g. {min(files)}"]


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
    """Names that are in both splits, or twice in one, and classes that differ between the splits."""
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
    if train.classes != val.classes:  # the index of a class would mean another one
        pairs = zip_longest(train.classes, val.classes, fillvalue="none")
        number, (own, other) = next((i, pair) for i, pair in enumerate(pairs) if pair[0] != pair[1])
        found = f"class {number} is '{other}', and '{own}' in '{config.train_split}'"
        remedy = "List the same classes in the same order for both splits."
        yield Issue(val.place, f"other classes than those of '{config.train_split}'", found, remedy)


def _sample_issues(reader: MaskReader, index: int, survey: ImageSurvey, masks: bool) -> list[Issue]:
    """Issues of an image, and of its mask if `masks`."""
    issues, size = [], None
    try:
        size = survey.image_size(*reader.image(index))
    except BadFile as error:
        issues.append(issue_of(error))
    if masks:
        issues += reader.mask_issues(index, size)
    return list(dict.fromkeys(issues))  # several files of one name are reported for the image and for the mask


def _check_folder(config: DataConfig, survey: ImageSurvey, progress: bool) -> tuple[list[Issue], list[str]]:
    by_role = {}
    for role in _roles():
        files, _, chosen = folder_files(config, role)
        by_role[role] = [files[i][0] for i in chosen]
    issues = _image_issues(by_role["train"], by_role["val"], survey, progress)
    folders = sorted({path.parent for files in by_role.values() for path in files})
    others = [path for folder in folders for path in files_in(folder) if path.suffix.lower() not in SUFFIXES]
    return issues, _skipped(others)


def _check_captioned(config: DataConfig, survey: ImageSurvey, progress: bool) -> tuple[list[Issue], list[str]]:
    splits = [read_split(config, role) for role in _roles()]
    train, val = ([row.file for row in split.rows if row.file is not None] for split in splits)
    # both splits may share a metadata file: report its issues once
    issues = list(dict.fromkeys(issue for split in splits for issue in split.issues))
    others, _, more = read_regularization(config)
    listed = {*train, *val}
    folders = sorted({path.parent for path in listed})
    rest = [path for folder in folders if folder.is_dir() for path in files_in(folder, SUFFIXES) if path not in listed]
    return issues + more + _image_issues(train, val, survey, progress, others), _skipped(rest, "without a caption")


def _image_issues(
    train: list[Path], val: list[Path], survey: ImageSurvey, progress: bool, others: Sequence[Path] = ()
) -> list[Issue]:
    """Images that are in both splits or cannot be read; `others`: further images to read."""
    issues = []

    def examine(path: Path) -> list[Issue]:
        try:
            survey.image_size(path)
        except BadFile as error:
            return [issue_of(error)]
        return []

    for other, file in _same_files(train, val):
        issues.append(Issue(str(file), "duplicate of a training image", str(other), "Remove one of the two."))
    for image_issues in map_in_threads(examine, [*train, *val, *others], "check", progress):
        issues += image_issues
    return issues


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


def _check_parquet(config: DataConfig, survey: ImageSurvey, progress: bool) -> tuple[list[Issue], list[str]]:
    issues: list[Issue] = []
    skipped = []
    for role in _roles():
        table = read_table(config, role)
        issues += table.issues
        rows = range(len(table.rows)) if survey.full else range(min(len(table.rows), QUICK_ROWS))
        if len(rows) < len(table.rows):
            skipped.append(f"{len(table.rows) - len(rows)} image(s) of {role} not decoded")
        for i in progress_bar(rows, desc=f"check {role}", enabled=progress):
            try:
                survey.image_size(*table.source(i))
            except BadFile as error:
                issues.append(issue_of(error))
    return list(dict.fromkeys(issues)), skipped  # both splits may share a file


def _first(names: list[str]) -> str:
    shown = ", ".join(names[:3])
    return shown if len(names) <= 3 else f"{shown}, ..."
