"""A dataset that was found in a folder, and the keys that all kinds share."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from unetdiff.data.masks.inspect import MaskValues

SMALL = 100
"""Images below which a larger fraction is held out."""


@dataclass
class Found:
    """A dataset in a folder."""

    task: str
    """segmentation or diffusion."""
    kind: str
    """In words."""
    keys: dict[str, Any]
    """Keys of `data:`, without root."""
    reasons: dict[str, str] = field(default_factory=dict)
    """Why, for each of these keys."""
    root: Path = Path()
    condition: str = "none"
    """Of a denoiser."""
    masks: MaskValues | None = None
    """Of mask files."""
    left_out: list[Path] = field(default_factory=list)
    """Folders with images that are not data: environments, packages, runs."""
    hint: str = ""
    """What another folder would be."""


def add_encoding(found: Found, path: Path) -> None:
    """Keys of the masks' values, and their reasons."""
    masks = found.masks
    assert masks is not None
    for key, value in masks.keys().items():
        if key == "num_classes" and os.path.isfile(path / "classes.txt"):
            continue
        found.keys[key] = value
        found.reasons[key] = f"{masks.files} masks: {masks.describe()}"
    tables = [name for name in ("class_dict.csv", "label_colors.txt", "colors.txt") if (path / name).is_file()]
    if "mask_colors" in found.keys and tables:
        found.keys["mask_colors"], found.reasons["mask_colors"] = tables[0], f"{masks.describe()}, named in this file"


def add_val_fraction(found: Found, images: int) -> None:
    """Hold out a fraction of the images: a larger one where they are few."""
    is_small = images < SMALL
    found.keys["val_fraction"] = 0.2 if is_small else 0.1
    reason = "no lists and no folders of splits: drawn by seed"
    found.reasons["val_fraction"] = reason + ("; a fifth, as they are few" if is_small else "")
