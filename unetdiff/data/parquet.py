"""Hugging Face parquet: a table with an image column and a class column, a caption column, or both."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from unetdiff.data.captions import caption_issue
from unetdiff.data.config import DataConfig
from unetdiff.data.decoding import decode
from unetdiff.data.images import ImageSource, holdout_indices
from unetdiff.data.issues import Issue, raise_first_issue
from unetdiff.data.roots import dataset_root
from unetdiff.data.transforms import Transform
from unetdiff.errors import UserError, config_error


@dataclass(frozen=True)
class Table:
    """The rows of a split."""

    rows: Any
    """A `datasets.Dataset` of the image column alone."""
    column: str
    """Its name."""
    stem: str
    """Name of the (first) file."""
    numbers: NDArray[np.int64]
    """Each row's number in the file."""
    targets: list[int] | None
    """Each row's class; None without a class column."""
    labels: list[str]
    """Names of the classes."""
    captions: list[str] | None
    """Each row's stripped caption, "" if missing; None without a caption column."""
    issues: list[Issue]
    """Rows without a caption, if there is a caption column."""

    def title(self, i: int) -> str:
        """Name of a row."""
        return f"{self.stem}/{int(self.numbers[i]):06d}"

    def image(self, i: int) -> Tensor:
        """The image of a row, uint8 (3, H, W); BadFile if it cannot be read."""
        return decode(self.rows[i][self.column], f"{self.title(i)} ({self.column})")


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
    return ImageSource(table.image, table.targets, table.labels, table.title, transform, config.size, table.captions)


def read_table(config: DataConfig, role: str) -> Table:
    """The rows of "train" or "val", with missing captions as `issues`; other errors as of `parquet`."""
    import datasets as hf  # slow to import; needed only here

    files, train, single = _files_of(config, role)
    rows = _open(files)
    needed = [("image_column", config.image_column)]
    if config.caption_column is not None:
        needed.append(("caption_column", config.caption_column))
    if config.caption_column is None or config.label_column != DataConfig.label_column:
        needed.append(("label_column", config.label_column))  # optional next to captions, unless it was named
    for key, column in needed:
        if column not in rows.column_names:
            raise config_error(f"data.{key}", column, f"a column of {files[0].name}: {', '.join(rows.column_names)}")
    chosen = holdout_indices(len(rows), role) if single else np.arange(len(rows))
    targets, labels = _classes(config.label_column, rows, files, train if not single and role == "val" else None)
    captions: list[str] | None = None
    issues: list[Issue] = []
    if config.caption_column is not None:
        captions, issues = _captions(rows, config.caption_column, files[0], chosen)
    rows = rows.select_columns([config.image_column]).cast_column(config.image_column, hf.Image(decode=False))
    if single:
        rows = rows.select(chosen)
    if targets is not None:
        targets = [targets[i] for i in chosen]
    return Table(rows, config.image_column, files[0].stem, chosen, targets, labels, captions, issues)


def _files_of(config: DataConfig, role: str) -> tuple[list[Path], list[Path], bool]:
    """The files of a split, those of the training split, and whether the former hold both splits."""
    root = dataset_root(config)
    train, val = _parquet_files(root, config.train_split), _parquet_files(root, config.val_split)
    whole = sorted(root.rglob("*.parquet")) if root.is_dir() else [root]
    if not whole or not whole[0].is_file():
        raise config_error("data.root", config.root, "a parquet file or a folder with parquet files")
    single = not (train and val)
    files = (train or whole) if single else (val if role == "val" else train)
    if single and not train and len({_split_name(file) for file in whole}) > 1:
        splits = ", ".join(sorted({_split_name(file) for file in whole}))
        raise config_error("data.train_split", config.train_split, f"a split in {root}: {splits}")
    return files, train, single


def _open(files: list[Path]) -> Any:
    import datasets as hf

    try:
        return hf.Dataset.from_parquet([str(file) for file in files], keep_in_memory=False)
    except Exception as error:  # pyarrow and datasets share no base class
        raise UserError(f"{files[0]}: cannot be read as parquet ({error}). Download it again.") from error


def _classes(column: str, rows: Any, files: list[Path], train: list[Path] | None) -> tuple[list[int] | None, list[str]]:
    """The class of each row and the class names, those of the files `train` if given."""
    import datasets as hf

    if column not in rows.column_names:
        return None, []
    values = rows[column][:]
    feature = rows.features[column]
    if isinstance(feature, hf.ClassLabel):
        labels, targets = list(feature.names), [int(value) for value in values]
    else:
        names: list[Any] = sorted(set(values))
        if train is not None:
            other = _open(train)
            known = set(other[column][:]) if column in other.column_names else set()
            if set(names) - known:
                unknown = min(set(names) - known)
                raise UserError(f"data.label_column={column}: classes of val must be in train (got {unknown!r}).")
            names = sorted(known)
        number = {name: i for i, name in enumerate(names)}
        labels, targets = [str(name) for name in names], [number[value] for value in values]
    for i, target in enumerate(targets):
        if not 0 <= target < len(labels):
            raise UserError(
                f"{files[0]}, row {i}: class must be in 0..{len(labels) - 1} (got {target}). Remove the row."
            )
    return targets, labels


def _captions(rows: Any, column: str, file: Path, chosen: NDArray[np.int64]) -> tuple[list[str], list[Issue]]:
    """The captions of the chosen rows, and an issue for each missing one."""
    kind = rows.features[column]
    if str(getattr(kind, "dtype", kind)) not in ("string", "large_string"):
        raise config_error("data.caption_column", column, f"a column of strings in {file.name} (got {kind})")
    values = rows[column][:]
    captions = [(int(i), values[i]) for i in chosen]
    issues = [caption_issue(f"{file}, row {i}", column, value) for i, value in captions]
    return [(value or "").strip() for _, value in captions], [issue for issue in issues if issue is not None]


def _split_name(file: Path) -> str:
    return file.stem.split("-")[0]


def _parquet_files(root: Path, split: str) -> list[Path]:
    if not root.is_dir():
        return []
    files = [file for file in sorted(root.rglob("*.parquet")) if _split_name(file) == split]
    if not files and split == "val":
        files = [file for file in sorted(root.rglob("*.parquet")) if _split_name(file) == "validation"]
    return files
