"""Tables of Hugging Face datasets."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from unetdiff.data.captions import METADATA
from unetdiff.data.discovery.found import Found, add_encoding
from unetdiff.data.discovery.stray_folders import dataset_files
from unetdiff.data.masks.inspect import inspect_masks

MAX_ROWS = 1000
"""Rows of a table whose masks are read."""


def find_tables(path: Path) -> Found | None:
    """Hugging Face tables: with two columns of images, masks; with one, classes or captions."""
    saved = (path / "dataset_dict.json").is_file() or (path / "dataset_info.json").is_file()
    files = [file for file in dataset_files(path, {".parquet"}) if file.name not in METADATA]
    if not saved and not files:
        return None
    import datasets as hf

    from unetdiff.data.config import DataConfig
    from unetdiff.data.masks.huggingface import columns_of, tables_of

    tables, _ = tables_of(DataConfig(name="huggingface", root=str(path)))
    features = next(iter(tables.values())).features
    columns = [name for name, kind in features.items() if isinstance(kind, hf.Image)]
    if len(columns) > 1:
        keys: dict[str, Any] = {"name": "huggingface"}
        kind = "a Hugging Face table of images and masks"
        found = Found("segmentation", kind, keys, {"name": f"columns {', '.join(columns)}"})
        rows, config = next(iter(tables.values())), DataConfig(name="huggingface", root=str(path))
        column = columns_of(config, rows, masks=True)[1]
        cells = rows.select_columns([column]).cast_column(column, hf.Image(decode=False))
        step = max(1, len(cells) // MAX_ROWS)
        found.masks = inspect_masks([cells[i][column]["bytes"] or b"" for i in range(0, len(cells), step)])
        add_encoding(found, path)
        return found
    if not columns or saved:
        return None
    keys = {"name": "parquet", "image_column": columns[0]}
    reasons = {"image_column": "the column of images"}
    labels = [name for name, kind in features.items() if isinstance(kind, hf.ClassLabel)]
    if labels:
        keys["label_column"], reasons["label_column"] = labels[0], "the column of classes"
        return Found("diffusion", "a Hugging Face table of images and classes", keys, reasons, condition="class")
    texts = [name for name, kind in features.items() if str(getattr(kind, "dtype", "")) in ("string", "large_string")]
    if texts:
        keys["caption_column"], reasons["caption_column"] = texts[0], "the column of texts"
        return Found("diffusion", "a Hugging Face table of images and captions", keys, reasons, condition="text")
    return None
