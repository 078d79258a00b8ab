"""Images with a caption: a folder in Hugging Face's ImageFolder layout, with a metadata file."""

from __future__ import annotations

import csv
import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from unetdiff.data.config import DataConfig
from unetdiff.data.decoding import decode
from unetdiff.data.images import ImageSource, holdout_indices
from unetdiff.data.issues import Issue, raise_first_issue
from unetdiff.data.roots import dataset_root, split_folders
from unetdiff.data.transforms import Transform
from unetdiff.errors import UserError

METADATA = ("metadata.jsonl", "metadata.csv", "metadata.parquet")
FILE_COLUMN, CAPTION_COLUMN = "file_name", "text"


@dataclass(frozen=True)
class Row:
    """One image of a metadata file."""

    file: Path | None
    """The image; None where the row names none that may be read."""
    caption: str
    """Its caption without space around it; "" for none."""


@dataclass(frozen=True)
class CaptionedSplit:
    """The rows of a split, and every fault of the metadata file that it is in."""

    metadata: Path
    rows: list[Row]
    issues: list[Issue]


def captioned_folder(config: DataConfig, role: str, transform: Transform) -> ImageSource:
    """Images and a metadata file that gives each its caption, in `root/SPLIT/` or, for one split only, in `root/`.

    The metadata file is `metadata.jsonl`, `metadata.csv` or `metadata.parquet`. Its `file_name` is relative to its
    folder, its column `data.caption_column` ("text" by default) is the caption. Images without a row are left alone.
    With `root/TRAIN_SPLIT` and no `root/VAL_SPLIT` (nor, for "val", `root/validation` or `root/valid`), or with
    neither, val is held out of the one set (see `holdout_indices`).

    Raises:
        UserError: no metadata file, or a fault in it; the first one is named, with its line.
    """
    split = read_split(config, role)
    raise_first_issue(split.issues)
    files = [row.file for row in split.rows if row.file is not None]  # all of them: a row without is a fault

    def open_image(i: int) -> Tensor:
        return decode(files[i])

    return ImageSource(
        open_image,
        None,
        [],
        lambda i: str(files[i]),
        transform,
        config.size,
        [row.caption for row in split.rows],
    )


def read_split(config: DataConfig, role: str) -> CaptionedSplit:
    """The captions of "train" or "val", with faults listed instead of refused.

    Raises:
        UserError: there is no metadata file, it cannot be read at all, or no row of it has the columns.
    """
    metadata, shared = _metadata_of(config, role)
    rows, issues = _read(metadata, config.caption_column or CAPTION_COLUMN)
    if shared and (len(rows) > 1 or not issues):
        rows = [rows[i] for i in holdout_indices(len(rows), role)]
    return CaptionedSplit(metadata, rows, issues)


def caption_issue(place: str, column: str, given: Any) -> Issue | None:
    """What to tell of a value that is no caption; None for one that is."""
    if isinstance(given, str) and given.strip():
        return None
    found = f"{column}: {given!r}" if given is not None and not isinstance(given, str) else f"{column} is empty"
    return Issue(place, "no caption", found, "write one, or remove the row")


def _metadata_of(config: DataConfig, role: str) -> tuple[Path, bool]:
    """The metadata file that a split is in, and whether both splits are."""
    train, val = split_folders(config)
    if not train.is_dir():
        return _metadata_in(dataset_root(config)), True
    if not val.is_dir():
        return _metadata_in(train), True
    return _metadata_in(val if role == "val" else train), False


def _metadata_in(folder: Path) -> Path:
    there = [folder / name for name in METADATA if (folder / name).is_file()]
    if not there:
        raise UserError(
            f"{folder}: no {' or '.join(METADATA)}; a captioned folder has one beside its images, with the columns "
            f"{FILE_COLUMN} and data.caption_column"
        )
    if len(there) > 1:
        raise UserError(f"{folder} has {there[0].name} and {there[1].name}; keep one")
    return there[0]


def _read(metadata: Path, column: str) -> tuple[list[Row], list[Issue]]:
    """The rows of a metadata file in its order (but for those that are no rows at all), and every fault of it."""
    folder = metadata.parent
    rows: list[Row] = []
    issues: list[Issue] = []
    columns: dict[str, None] = {}  # in order
    first_of: dict[str, str] = {}
    for place, record in _records(metadata):
        if isinstance(record, Issue):
            issues.append(record)
            continue
        columns |= dict.fromkeys(record)
        name = record.get(FILE_COLUMN)
        file, fault = _file(folder, name, place)
        if file is not None:
            known = first_of.setdefault(str(file), place)
            if known != place:
                file = None
                fault = Issue(place, f"{FILE_COLUMN} {name} comes again", f"first in {known}", "keep one of the rows")
        caption = record.get(column)
        faults = (fault, caption_issue(place, column, caption))
        issues += [fault for fault in faults if fault is not None]
        rows.append(Row(file, caption.strip() if isinstance(caption, str) else ""))
    if not rows and not issues:
        raise UserError(f"{metadata} is empty: give one image a line")
    for key, needed in (("its images", FILE_COLUMN), (f"data.caption_column={column}", column)):
        if rows and needed not in columns:
            raise UserError(f"{metadata}: no column {needed} ({key}); it has {', '.join(columns)}")
    return rows, issues


def _file(folder: Path, name: Any, place: str) -> tuple[Path | None, Issue | None]:
    """The image that a row names, below its folder and there; else the fault."""
    if not isinstance(name, str) or not name.strip():
        return None, Issue(place, f"no {FILE_COLUMN}", repr(name), "name the image, or remove the row")
    below = os.path.normpath(name)
    if os.path.isabs(below) or below.split(os.sep)[0] == os.pardir:
        return None, Issue(place, "the image is not below the folder", name, f"move it into {folder}")
    file = folder / below
    if not file.is_file():
        return None, Issue(place, "no such image", str(file), "put it there, or remove the row")
    return file, None


def _records(metadata: Path) -> Iterator[tuple[str, dict[str, Any] | Issue]]:
    """(place, columns of a row) of a metadata file, in order; a fault where a line is no row."""
    readers = {".jsonl": _json_lines, ".csv": _csv_rows, ".parquet": _parquet_rows}
    try:
        yield from readers[metadata.suffix](metadata)
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"{metadata}: cannot be read ({error}); write it again, as UTF-8") from error


def _json_lines(path: Path) -> Iterator[tuple[str, dict[str, Any] | Issue]]:
    with open(path, encoding="utf-8-sig") as file:
        for number, line in enumerate(file, start=1):
            place = f"{path}:{number}"
            if not line.strip():
                continue
            try:
                record = json.loads(line)
            except json.JSONDecodeError as error:
                yield place, Issue(place, "the line is no JSON", str(error), "write one object a line")
                continue
            if isinstance(record, dict):
                yield place, record
            else:
                fix = f'e.g. {{"{FILE_COLUMN}": "0.png", "{CAPTION_COLUMN}": "a blue three"}}'
                yield place, Issue(place, "the line is no JSON object", line.strip()[:40], fix)


def _csv_rows(path: Path) -> Iterator[tuple[str, dict[str, Any] | Issue]]:
    with open(path, encoding="utf-8-sig", newline="") as file:
        reader = csv.DictReader(file)
        for given in reader:
            record: dict[Any, Any] = dict(given)
            place, beyond = f"{path}:{reader.line_num}", record.pop(None, None)
            if beyond is not None:
                found = f"{len(record) + len(beyond)} cells, {len(record)} columns"
                yield place, Issue(place, "the row has too many cells", found, "put quotes around text with commas")
            else:
                yield place, record


def _parquet_rows(path: Path) -> Iterator[tuple[str, dict[str, Any] | Issue]]:
    import pyarrow as pa  # slow to import; needed only here
    import pyarrow.parquet as pq

    try:
        records = pq.read_table(path).to_pylist()
    except pa.ArrowException as error:
        raise UserError(f"{path}: cannot be read as parquet ({error}); write it again") from error
    for number, record in enumerate(records):
        yield f"{path}, row {number}", record
