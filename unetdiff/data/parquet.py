"""Hugging Face parquet: a table with a picture and a class column."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from unetdiff.data.config import DataConfig
from unetdiff.data.images import ImageSource, decode, held_out
from unetdiff.data.transforms import Transform
from unetdiff.data.voc import root_of
from unetdiff.errors import UserError


def parquet(config: DataConfig, role: str, transform: Transform) -> ImageSource:
    """Hugging Face parquet with a picture and a class column; pictures are decoded when asked for.

    `root` is a file, or a folder (itself or its `data/`) with files named SPLIT*.parquet. Where there are
    none of the validation split, val is held out of the training split (see `held_out`). Names of the classes
    come from the features if they are there; else they are the column's own values.
    """
    rows, column, title, targets, labels = _parquet_rows(config, role)

    def open_picture(i: int) -> Tensor:
        return decode(rows[i][column], f"{title(i)} ({column})")

    return ImageSource(open_picture, targets, labels, title, transform, config.size)


def _parquet_rows(config: DataConfig, role: str) -> tuple[Any, str, Callable[[int], str], list[int], list[str]]:
    import datasets as hf  # slow to import; needed only here

    root = root_of(config)
    train, val = _parquet_files(root, config.train_split), _parquet_files(root, config.val_split)
    whole = sorted(root.rglob("*.parquet")) if root.is_dir() else [root]
    if not whole or not whole[0].is_file():
        raise UserError(f"data.root={config.root}: no parquet file there")
    single = not (train and val)
    files = (train or whole) if single else (val if role == "val" else train)
    if single and not train and len({_split_name(file) for file in whole}) > 1:
        raise UserError(
            f"data.train_split={config.train_split}: no file {config.train_split}*.parquet in {root}; "
            "there are "
            f"{', '.join(sorted({_split_name(file) for file in whole}))}"
        )
    try:
        rows = hf.Dataset.from_parquet([str(file) for file in files], keep_in_memory=False)
    except Exception as error:  # pyarrow and datasets have no common base
        raise UserError(f"{files[0]}: cannot be read as parquet ({error})") from error
    for key, column in (("image_column", config.image_column), ("label_column", config.label_column)):
        if column not in rows.column_names:
            raise UserError(f"data.{key}={column}: {files[0].name} has the columns {', '.join(rows.column_names)}")
    values = rows[config.label_column][:]
    feature = rows.features[config.label_column]
    names: list[Any] = sorted(set(values))
    if isinstance(feature, hf.ClassLabel):
        labels, targets = list(feature.names), [int(value) for value in values]
    else:
        if not single and role == "val":  # the classes are train's
            other = hf.Dataset.from_parquet([str(file) for file in train])
            unknown = set(names) - set(other[config.label_column][:])
            if unknown:
                raise UserError(f"data.label_column={config.label_column}: val has {min(unknown)!r}, train has not")
            names = sorted(set(other[config.label_column][:]))
        number = {name: i for i, name in enumerate(names)}
        labels, targets = [str(name) for name in names], [number[value] for value in values]
    for i, target in enumerate(targets):
        if not 0 <= target < len(labels):
            raise UserError(f"{files[0]}, row {i}: class {target}, but there are {len(labels)}; remove the row")
    chosen = held_out(len(rows), role) if single else np.arange(len(rows))
    rows = rows.select_columns([config.image_column]).cast_column(config.image_column, hf.Image(decode=False))
    if single:
        rows = rows.select(chosen)
    stem = files[0].stem

    def title(i: int) -> str:
        return f"{stem}/{int(chosen[i]):06d}"

    return rows, config.image_column, title, [targets[i] for i in chosen], labels


def _split_name(file: Path) -> str:
    return file.stem.split("-")[0]


def _parquet_files(root: Path, split: str) -> list[Path]:
    if not root.is_dir():
        return []
    found = [file for file in sorted(root.rglob("*.parquet")) if _split_name(file) == split]
    if not found and split == "val":
        found = [file for file in sorted(root.rglob("*.parquet")) if _split_name(file) == "validation"]
    return found
