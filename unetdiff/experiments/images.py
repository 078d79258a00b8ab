"""Images of an experiment: files below its folder, and the colours of what masks show."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
from PIL import Image
from torch import Tensor

from unetdiff.reports.embed import as_array
from unetdiff.segmentation.palette import IGNORE_COLOR, IGNORE_INDEX

FOLDER = "images"


class Album:
    """Writes the images of a record.

    Args:
        output: the record's folder.
        name: what the files of this gallery begin with.
    """

    def __init__(self, output: Path, name: str) -> None:
        self.output, self.name, self.count = output, name, 0
        (output / FOLDER).mkdir(parents=True, exist_ok=True)

    def add(self, image: Tensor | np.ndarray) -> str:
        """Write an image, as `unetdiff.reports.embed.as_array` takes it; its file, relative to the record's folder."""
        file = f"{FOLDER}/{self.name}-{self.count:03d}.png"
        Image.fromarray(as_array(image)).save(self.output / file)
        self.count += 1
        return file


def legend(classes: Sequence[str], palette: np.ndarray, masks: Iterable[np.ndarray]) -> list[tuple[str, str]]:
    """Name and "#rrggbb" of every class, and of void, that some mask (H, W) shows."""
    shown = set(np.unique(np.concatenate([np.unique(mask) for mask in masks])).tolist())
    entries = [(name, _hex(palette[index])) for index, name in enumerate(classes) if index in shown]
    return entries + ([("void", _hex(IGNORE_COLOR))] if IGNORE_INDEX in shown else [])


def _hex(color: Sequence[int] | np.ndarray) -> str:
    return "#" + "".join(f"{int(level):02x}" for level in color)
