"""The mask files of a dataset, listed without reading one."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

from unetdiff.data.config import DataConfig
from unetdiff.data.masks.globs import named_files
from unetdiff.data.masks.voc_paths import MASKS
from unetdiff.errors import UserError

PATTERNS = {
    "voc": "**/Segmentation*",
    "voc_folder": "**/SegmentationClass",
    "cityscapes": "**/gtFine",
    "ade20k": "**/annotations",
}
"""`data.name` -> folders of masks; others have `data.masks`, or masks that are no image files."""


def masks_in_layout(config: DataConfig, roots: Iterable[str | Path | None]) -> set[str]:
    """The real paths of the masks of a dataset, or of one in its layout, in any of these folders; none where there are
    no masks or no files of them."""
    pattern = config.masks if config.name == "folders" else PATTERNS.get(config.name)
    folders = [root for root in roots if root is not None] if pattern is not None else []
    return {os.path.realpath(file) for root in folders for file in _listed(str(pattern), root)}


def mask_files(config: DataConfig) -> list[Path]:
    """The mask files of a dataset whose encoding is not known from its name; [] where there are none."""
    pattern = {"folders": config.masks, "voc_folder": MASKS}.get(config.name)
    return [] if pattern is None else _listed(pattern, config.root or ".")


def _listed(pattern: str, root: str | Path) -> list[Path]:
    try:
        named = named_files("data.masks", pattern, Path(root).expanduser())
    except UserError:  # not there
        return []
    return [file for files in named.values() for file in files]
