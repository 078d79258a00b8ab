"""Captioned images: a folder in Hugging Face's ImageFolder layout with a metadata file."""

from __future__ import annotations

import os
import posixpath
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from unetdiff.data.config import DataConfig
from unetdiff.data.decoding import RGB, decode
from unetdiff.data.images import ImageSource, holdout_indices, training_buckets
from unetdiff.data.issues import Issue, raise_first_issue
from unetdiff.data.roots import dataset_root, split_folders
from unetdiff.data.transforms import Transform
from unetdiff.errors import FileError, UserError
from unetdiff.files.folders import inside, regular_file
from unetdiff.files.records import parse_json, read_csv
from unetdiff.files.texts import read_lines

MAX_ROWS = 50_000_000
"""Largest table that is read; its rows are held in memory."""
METADATA = ("metadata.jsonl", "metadata.csv", "metadata.parquet")
FILE_COLUMN, CAPTION_COLUMN = "file_name", "text"


@dataclass(frozen=True)
class Row:
    """One image of a metadata file."""

    file: Path | None
    """The image; None if the row does not name a readable one."""
    caption: str
    """Its stripped caption; "" if there is none."""


@dataclass(frozen=True)
class CaptionedSplit:
    """The rows of a split and all issues of its metadata file."""

    metadata: Path
    rows: list[Row]
    issues: list[Issue]


def captioned_folder(config: DataConfig, role: str, transform: Transform) -> ImageSource:
    """Images with a metadata file of their captions, in `root/SPLIT/` or, for a single split, in `root/`.

    The metadata file is `metadata.jsonl`, `metadata.csv` or `metadata.parquet`. Its column `file_name` is relative to
    its folder, its column `data.caption_column` ("text" by default) is the caption. Images without a row are ignored.
    With `root/TRAIN_SPLIT` but no `root/VAL_SPLIT` (nor, for "val", `root/validation` or `root/valid`), or with
    neither, the validation split is held out (see `holdout_indices`).

    Raises:
        UserError: no metadata file, or an issue in it (the first one, with its line).
    """
    split = read_split(config, role)
    raise_first_issue(split.issues)
    files = [row.file for row in split.rows if row.file is not None]  # of all rows: one without is an issue

    def open_image(i: int) -> Tensor:
        return decode(files[i], image_range=config.image_range, channels=config.channels or RGB)

    return ImageSource(
        open_image,
        None,
        [],
        lambda i: str(files[i]),
        transform,
        config.size,
        [row.caption for row in split.rows],
        training_buckets(files, config, role),
        source=lambda i: files[i],
    )


def read_split(config: DataConfig, role: str) -> CaptionedSplit:
    """The captions of "train" or "val", with a list of issues instead of errors.

    Raises:
        UserError: the metadata file is missing or unreadable, or no row has the columns.
    """
    metadata, shared = _metadata_of(config, role)
    rows, issues = read_metadata(metadata, config.caption_column or CAPTION_COLUMN)
    if shared and (len(rows) > 1 or not issues):
        rows = [rows[i] for i in holdout_indices(len(rows), role, metadata)]
    return CaptionedSplit(metadata, rows, issues)


def caption_issue(place: str, column: str, value: Any) -> Issue | None:
    """The issue of a value that is not a non-empty string; None if it is one."""
    if isinstance(value, str) and value.strip():
        if any("\ud800" <= character <= "\udfff" for character in value):
            return Issue(place, "caption is not valid Unicode", value, "Write it again as UTF-8.")
        return None
    shown = f"{column}: {value!r}" if value is not None and not isinstance(value, str) else f"{column} is empty"
    return Issue(place, "caption missing", shown, "Write one, or remove the row.")


def _metadata_of(config: DataConfig, role: str) -> tuple[Path, bool]:
    """The metadata file of a split, and whether it holds both splits."""
    train, val = split_folders(config)
    if not os.path.isdir(train):
        return _metadata_in(dataset_root(config)), True
    if not os.path.isdir(val):
        return _metadata_in(train), True
    return _metadata_in(val if role == "val" else train), False


def _metadata_in(folder: Path) -> Path:
    files = [folder / name for name in METADATA if os.path.exists(folder / name)]
    if not files:
        raise UserError(
            f"{folder}: no {' or '.join(METADATA)} found. Add one next to the images, with the columns "
            f"{FILE_COLUMN} and data.caption_column."
        )
    if len(files) > 1:
        raise UserError(f"{folder}: both {files[0].name} and {files[1].name} found. Keep one.")
    return files[0]


def read_metadata(metadata: Path, column: str) -> tuple[list[Row], list[Issue]]:
    """The rows of a metadata file in order (without unparsable ones), and all its issues."""
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
        file, file_issue = _file(folder, name, place)
        if file is not None:
            known = first_of.setdefault(str(file), place)
            if known != place:
                file = None
                file_issue = Issue(
                    place, f"{FILE_COLUMN} {name} repeated", f"first in {known}", "Keep one of the rows."
                )
        caption = record.get(column)
        issues += [issue for issue in (file_issue, caption_issue(place, column, caption)) if issue is not None]
        rows.append(Row(file, caption.strip() if isinstance(caption, str) else ""))
    if not rows and not issues:
        raise UserError(f"{metadata}: no rows found. Write one image per line.")
    for key, needed in (("its images", FILE_COLUMN), (f"data.caption_column={column}", column)):
        if rows and needed not in columns:
            raise UserError(f"{metadata}: no column {needed} ({key}). Use one of {', '.join(columns)}.")
    return rows, issues


def _file(folder: Path, name: Any, place: str) -> tuple[Path | None, Issue | None]:
    """The existing image below the folder that a row names, or an issue."""
    if not isinstance(name, str) or not name.strip():
        return None, Issue(place, f"{FILE_COLUMN} missing", repr(name), "Name the image, or remove the row.")
    try:
        file = inside(folder, posixpath.normpath(name), links=True)
    except FileError:
        return None, Issue(place, "image outside of the folder", name, f"Move it into {folder}.")
    if not os.path.isfile(file):
        return None, Issue(place, "image not found", str(file), "Add it, or remove the row.")
    return file, None


def _records(metadata: Path) -> Iterator[tuple[str, dict[str, Any] | Issue]]:
    """(place, columns) of each row of a metadata file, in order; an issue for a line that is not a row."""
    readers = {".jsonl": _json_lines, ".csv": _csv_rows, ".parquet": _parquet_rows}
    yield from readers[metadata.suffix](metadata)


def _json_lines(path: Path) -> Iterator[tuple[str, dict[str, Any] | Issue]]:
    for number, line in enumerate(read_lines(path), start=1):
        place = f"{path}:{number}"
        if not line:
            continue
        try:
            record = parse_json(line, place)
        except FileError as error:
            reason = error.reason.removeprefix("must be JSON (").removesuffix(")")
            yield place, Issue(place, "invalid JSON", reason, "Write one object per line.")
            continue
        if isinstance(record, dict):
            yield place, record
        else:
            remedy = f'Write e.g. {{"{FILE_COLUMN}": "0.png", "{CAPTION_COLUMN}": "a blue three"}}.'
            yield place, Issue(place, "not a JSON object", line[:40], remedy)


def _csv_rows(path: Path) -> Iterator[tuple[str, dict[str, Any] | Issue]]:
    for line, record, cells in read_csv(path):
        place = f"{path}:{line}"
        if cells > len(record):
            value = f"{cells} cells, {len(record)} columns"
            yield place, Issue(place, "too many cells", value, "Quote text that contains commas.")
        else:
            yield place, dict(record)


def _parquet_rows(path: Path) -> Iterator[tuple[str, dict[str, Any] | Issue]]:
    import pyarrow.parquet as pq  # slow to import; needed only here

    require_parquet(path)
    try:
        records = pq.read_table(path).to_pylist()
    except Exception as error:  # pyarrow's own errors, and UnicodeDecodeError for a text that is not UTF-8
        raise parquet_error(path, error) from None
    for number, record in enumerate(records):
        yield f"{path}, row {number}", record


def require_parquet(path: Path) -> None:
    """Check the footer of a parquet file before memory is taken for its rows.

    Raises:
        FileError: missing, not parquet, or of more than `MAX_ROWS` rows.
    """
    import pyarrow.parquet as pq

    try:
        rows = pq.read_metadata(regular_file(path)).num_rows
    except FileError:
        raise
    except Exception as error:
        raise parquet_error(path, error) from None
    if rows > MAX_ROWS:
        raise FileError.of(path, f"must have at most {MAX_ROWS:,} rows (got {rows:,})", "Give a part of it.")


def parquet_error(path: Path, error: BaseException) -> FileError:
    """What pyarrow or datasets raised for a file, as one line."""
    reason = " ".join(str(error.__cause__ or error).split()) or type(error).__name__
    return FileError.of(path, f"cannot be read as parquet ({reason[:300]})", "Download or write it again.")
