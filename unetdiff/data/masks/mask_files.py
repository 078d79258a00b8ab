"""The mask files of a dataset, listed without reading one: what a search for its images leaves out."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

from unetdiff.data.config import DataConfig
from unetdiff.data.masks.globs import named_files
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
    found: set[str] = set()
    for root in roots if pattern is not None else ():
        try:
            named = named_files("data.masks", str(pattern), Path(root)) if root is not None else {}
        except UserError:  # not there
            continue
        found |= {os.path.realpath(file) for files in named.values() for file in files}
    return found
