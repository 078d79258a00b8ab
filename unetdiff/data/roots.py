"""Where a set lies on disk."""

from __future__ import annotations

from pathlib import Path

from unetdiff.data.config import DataConfig
from unetdiff.errors import UserError


def dataset_root(config: DataConfig) -> Path:
    """`data.root`, or a UserError that asks for it."""
    if config.root is None:
        raise UserError(f"data.name={config.name} needs data.root, the folder of the set")
    return Path(config.root).expanduser()


def split_folders(config: DataConfig) -> tuple[Path, Path]:
    """The folders that the training and the validation split would have; where there is no `val`, `validation` is
    meant as well.

    Raises:
        UserError: `data.root` is no folder.
    """
    root = dataset_root(config)
    if not root.is_dir():
        raise UserError(f"data.root={config.root}: no such folder")
    val = root / config.val_split
    if config.val_split == DataConfig.val_split and not val.is_dir():
        val = next((p for p in (root / "validation", root / "valid") if p.is_dir()), val)
    return root / config.train_split, val
