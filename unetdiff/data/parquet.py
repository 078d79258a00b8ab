"""Hugging Face parquet: a table with an image column and a class column, a caption column, or both."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from unetdiff.data.bucket_sizes import Size
from unetdiff.data.captions import caption_issue, parquet_error, require_parquet
from unetdiff.data.config import DataConfig
from unetdiff.data.decoding import RGB, bad_file, decode
from unetdiff.data.images import ImageSource, holdout_indices, training_buckets
from unetdiff.data.issues import BadFile, Issue, raise_first_issue
from unetdiff.data.name_lists import distinct_names
from unetdiff.data.raw_images import read_info
from unetdiff.data.roots import dataset_root
from unetdiff.data.transforms import Transform
from unetdiff.errors import FileError, UserError, config_error
from unetdiff.files.folders import files_in, inside
from unetdiff.files.writing import file_errors


@dataclass(frozen=True)
class Table:
    """The rows of a split."""

    rows: Any
    """A `datasets.Dataset` of the image column alone."""
    column: str
    """Its name."""
    file: Path
    """The (first) file."""
    numbers: NDArray[np.int64]
    """Each row's number in the file."""
    targets: list[int] | None
    """Each row's class; None without a class column."""
    labels: list[str]
    """Names of the classes."""
    captions: list[str] | None
    """Each row's stripped caption, "" if missing; None without a caption column."""
    issues: list[Issue]
    """Rows without a class, or without a caption if there is a caption column."""
    image_range: list[float] | None = None
    """See `unetdiff.data.decoding.to_uint8`."""
    channels: int = RGB
    """`data.channels`."""

    def title(self, i: int) -> str:
        """Name of a row."""
        return f"{self.file.stem}/{int(self.numbers[i]):06d}"

    def source(self, i: int) -> tuple[Path | bytes, str]:
        """The image file of a row or its bytes, and its name; BadFile for neither, or a file out of the folder."""
        name = f"{self.title(i)} ({self.column})"
        cell = self.rows[i][self.column]
        if cell is None or (cell["bytes"] is None and cell["path"] is None):
            raise BadFile.from_issue(Issue(name, "no image in the row", "empty", "Remove the row."))
        if cell["bytes"] is not None:
            return cell["bytes"], name
        try:
            return inside(self.file.parent, cell["path"], links=True), name
        except FileError:
            remedy = f"Store the bytes of the images, or paths inside {self.file.parent}."
            raise BadFile.from_issue(Issue(name, "image outside of the folder", cell["path"], remedy)) from None

    def sizes(self, rows: Sequence[int]) -> list[Size]:
        """(height, width) of the images of some rows, from their headers; BadFile if one cannot be read."""
        found = []
        for source, name in map(self.source, rows):
            try:
                found.append(read_info(source, name).size)
            except FileError as error:
                raise bad_file(source, name, error) from None
        return found

    def image(self, i: int) -> Tensor:
        """The image of a row, uint8 (channels, H, W); BadFile if it cannot be read."""
        return decode(*self.source(i), self.image_range, self.channels)


def parquet(config: DataConfig, role: str, transform: Transform) -> ImageSource:
    """Hugging Face parquet with an image column and classes, captions or both; images are decoded on access.

    `root` is a file, or a folder (itself or its `data/`) with files named SPLIT*.parquet. Without files of the
    validation split, it is held out of the training split (see `holdout_indices`). Class names come from the features,
    else they are the column's values. With `data.caption_column` the class column may be missing.

    Raises:
        UserError: a missing file or column, an invalid class, or a row without a caption.
    """
    table = read_table(config, role)
    raise_first_issue(table.issues)
    return ImageSource(
        table.image,
        table.targets,
        table.labels,
        table.title,
        transform,
        config.size,
        table.captions,
        training_buckets(range(len(table.numbers)), config, role, table.sizes),
        source=lambda i: table.source(i)[0],
    )


def read_table(config: DataConfig, role: str) -> Table:
    """The rows of "train" or "val", with missing classes and captions as `issues`; other errors as of `parquet`."""
    import datasets as hf  # slow to import; needed only here

    files, train, single = _files_of(config, role)
    rows = open_parquet(files)
    needed = [("image_column", config.image_column)]
    if config.caption_column is not None:
        needed.append(("caption_column", config.caption_column))
    if config.caption_column is None or config.label_column != DataConfig.label_column:
        needed.append(("label_column", config.label_column))  # optional next to captions, unless it was named
    for key, column in needed:
        if column not in rows.column_names:
            raise config_error(f"data.{key}", column, f"a column of {files[0].name}: {', '.join(rows.column_names)}")
    chosen = holdout_indices(len(rows), role, files[0]) if single else np.arange(len(rows))
    targets: list[int] | None = None
    labels: list[str] = []
    issues: list[Issue] = []
    if len(needed) == 3 or config.caption_column is None or _is_class(rows.features.get(config.label_column)):
        known = train if not single and role == "val" else None
        targets, labels, issues = _classes(config.label_column, rows, files[0], known)
    captions: list[str] | None = None
    if config.caption_column is not None:
        captions, missing = _captions(rows, config.caption_column, files[0], chosen)
        issues += missing
    feature = rows.features[config.image_column]
    try:
        rows = rows.select_columns([config.image_column]).cast_column(config.image_column, hf.Image(decode=False))
    except Exception as error:  # pyarrow and datasets share no base class
        constraint = f"a column of images in {files[0].name} (got {_kind(feature)})"
        raise config_error("data.image_column", config.image_column, constraint) from error
    if single:
        rows = rows.select(chosen)
    if targets is not None:
        targets = [targets[i] for i in chosen]
    column, image_range, channels = config.image_column, config.image_range, config.channels or RGB
    return Table(rows, column, files[0], chosen, targets, labels, captions, issues, image_range, channels)


def _files_of(config: DataConfig, role: str) -> tuple[list[Path], list[Path], bool]:
    """The files of a split, those of the training split, and whether the former hold both splits."""
    root = dataset_root(config)
    train, val = parquet_files(root, config.train_split), parquet_files(root, config.val_split)
    whole = files_in(root, {".parquet"}, recursive=True) if os.path.isdir(root) else [root]
    if not whole or not os.path.exists(whole[0]):
        raise config_error("data.root", config.root, "a parquet file or a folder with parquet files")
    single = not (train and val)
    files = (train or whole) if single else (val if role == "val" else train)
    if single and not train and len({_split_name(file) for file in whole}) > 1:
        splits = ", ".join(sorted({_split_name(file) for file in whole}))
        raise config_error("data.train_split", config.train_split, f"a split in {root}: {splits}")
    return files, train, single


@contextmanager
def quiet_datasets() -> Iterator[None]:
    """Without the progress bars of datasets: "Generating train split" of files that are only opened."""
    import datasets as hf

    was_quiet = hf.are_progress_bars_disabled()
    hf.disable_progress_bars()
    try:
        yield
    finally:
        if not was_quiet:
            hf.enable_progress_bars()


def open_parquet(files: list[Path]) -> Any:
    """A `datasets.Dataset` of parquet files; FileError for one that cannot be read."""
    import datasets as hf

    for file in files:
        require_parquet(file)
    cache = Path(hf.config.HF_DATASETS_CACHE)
    remedy = "It holds the tables that Hugging Face datasets reads. Set HF_DATASETS_CACHE to a folder that is writable."
    with file_errors(cache, remedy):
        try:
            with quiet_datasets():
                return hf.Dataset.from_parquet([str(file) for file in files], keep_in_memory=False)
        except OSError:
            raise
        except Exception as error:  # pyarrow and datasets share no base class
            if isinstance(error.__cause__, OSError) and error.__cause__.errno:
                raise error.__cause__ from None
            raise parquet_error(files[0], error) from None


def _classes(column: str, rows: Any, file: Path, train: list[Path] | None) -> tuple[list[int], list[str], list[Issue]]:
    """The class of each row, the class names (those of the files `train` if given), and rows without a valid class."""
    import datasets as hf

    feature = rows.features[column]
    values = _values(rows, column, file)
    remedy = "Correct it, or remove the row."
    if isinstance(feature, hf.ClassLabel):
        labels = distinct_names(
            list(feature.names), [f"{file} ({column}, class {i})" for i in range(len(feature.names))]
        )
        number: dict[Any, int] = {i: i for i in range(len(labels))}
    else:
        names = set(values) - {None}
        if train is not None:
            other = open_parquet(train)
            known = set(_values(other, column, train[0])) - {None} if column in other.column_names else set()
            if names - known:
                unknown = min(names - known)
                raise UserError(f"data.label_column={column}: classes of val must be in train (got {unknown!r}).")
            names = known
        ordered = sorted(names)
        labels = distinct_names([str(name) for name in ordered], [f"{file} ({column})"] * len(ordered))
        number = {name: i for i, name in enumerate(ordered)}
    issues = [
        Issue(f"{file}, row {i}", f"class must be in 0..{len(labels) - 1}", f"{column}: {value}", remedy)
        if value is not None
        else Issue(f"{file}, row {i}", "class missing", f"{column} is empty", remedy)
        for i, value in enumerate(values)
        if value not in number
    ]
    return [number.get(value, -1) for value in values], labels, issues


def _values(rows: Any, column: str, file: Path) -> list[Any]:
    """The integers or strings of a column."""
    if not _is_class(rows.features[column]):
        constraint = f"a column of integers or strings in {file.name} (got {_kind(rows.features[column])})"
        raise config_error("data.label_column", column, constraint, "Name another column.")
    return _texts(rows, column, file)


def _is_class(feature: Any) -> bool:
    """Whether a column can hold classes."""
    return str(getattr(feature, "dtype", "")).startswith(("int", "uint", "string", "large_string", "bool"))


def _texts(rows: Any, column: str, file: Path) -> list[Any]:
    """The values of a column; FileError for a string that is not UTF-8."""
    try:
        return rows[column][:]
    except UnicodeDecodeError as error:
        reason = f"column {column} must be UTF-8 (byte {error.object[error.start]:#x})"
        raise FileError.of(file, reason, "Write it again as UTF-8.") from None


def _kind(feature: Any) -> str:
    """The type of a column, in a word."""
    return str(getattr(feature, "dtype", None) or type(feature).__name__)


def _captions(rows: Any, column: str, file: Path, chosen: NDArray[np.int64]) -> tuple[list[str], list[Issue]]:
    """The captions of the chosen rows, and an issue for each missing one."""
    kind = rows.features[column]
    if str(getattr(kind, "dtype", kind)) not in ("string", "large_string"):
        raise config_error("data.caption_column", column, f"a column of strings in {file.name} (got {_kind(kind)})")
    values = _texts(rows, column, file)
    captions = [(int(i), values[i]) for i in chosen]
    issues = [caption_issue(f"{file}, row {i}", column, value) for i, value in captions]
    return [(value or "").strip() for _, value in captions], [issue for issue in issues if issue is not None]


def _split_name(file: Path) -> str:
    return file.stem.split("-")[0]


def parquet_files(root: Path, split: str) -> list[Path]:
    """The parquet files in a folder whose names begin with the name of a split; [] if it is not a folder."""
    if not os.path.isdir(root):
        return []
    found = files_in(root, {".parquet"}, recursive=True)
    files = [file for file in found if _split_name(file) == split]
    if not files and split == "val":
        files = [file for file in found if _split_name(file) == "validation"]
    return files
