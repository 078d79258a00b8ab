"""Folders of a dataset and its splits."""

from __future__ import annotations

import os
from pathlib import Path

from unetdiff.data.config import DataConfig
from unetdiff.errors import config_error


def dataset_root(config: DataConfig) -> Path:
    """`data.root`; UserError if it is not set."""
    if config.root is None:
        raise config_error("data.root", None, f"set with data.name={config.name}", "Give the folder of the dataset.")
    return Path(config.root).expanduser()


def split_folders(config: DataConfig) -> tuple[Path, Path]:
    """The folders of the training and the validation split, whether or not they exist; `validation` or `valid` stand in
    for a missing `val`.

    Raises:
        UserError: `data.root` is not a folder.
    """
    root = dataset_root(config)
    if not os.path.isdir(root):
        raise config_error("data.root", config.root, "an existing folder")
    val = root / config.val_split
    if config.val_split == DataConfig.val_split and not os.path.isdir(val):
        val = next((p for p in (root / "validation", root / "valid") if os.path.isdir(p)), val)
    return root / config.train_split, val
