"""Images of a record: PNG files in its folder, mask colors, and validation images segmented by several runs."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
from PIL import Image
from torch import Tensor

from unetdiff.files.images import save_image
from unetdiff.files.writing import make_folder
from unetdiff.reports.dataset_groups import choose, open_dataset
from unetdiff.reports.embed import as_array, shrunk
from unetdiff.reports.masks import predictions
from unetdiff.reports.record import Gallery
from unetdiff.reports.runs import Run
from unetdiff.segmentation.palette import IGNORE_COLOR, IGNORE_INDEX, as_mask, colorize

FOLDER = "images"


class ImageWriter:
    """Writes the images of a gallery as numbered PNG files.

    Args:
        output: the record's folder.
        prefix: start of the file names.
    """

    def __init__(self, output: Path, prefix: str) -> None:
        self.output, self.prefix, self.count = output, prefix, 0
        make_folder(output / FOLDER)

    def add(self, image: Tensor | np.ndarray) -> str:
        """Write an image, in any form that `unetdiff.reports.embed.as_array` accepts.

        Returns:
            Its path relative to the record's folder.
        """
        file = f"{FOLDER}/{self.prefix}-{self.count:03d}.png"
        save_image(Image.fromarray(as_array(image)), self.output / file)
        self.count += 1
        return file


def legend(classes: Sequence[str], palette: np.ndarray, masks: Iterable[np.ndarray]) -> list[tuple[str, str]]:
    """Name and "#rrggbb" of every class, and of the ignore index, that occurs in a mask (H, W)."""
    values = set(np.unique(np.concatenate([np.unique(mask) for mask in masks])).tolist())
    entries = [(name, hex_color(palette[index])) for index, name in enumerate(classes) if index in values]
    return entries + ([("ignore", hex_color(IGNORE_COLOR))] if IGNORE_INDEX in values else [])


def hex_color(color: Sequence[int] | np.ndarray) -> str:
    """A color (3,) of 0 to 255 as "#rrggbb"."""
    return "#" + "".join(f"{int(level):02x}" for level in color)


def mask_gallery(title: str, runs: Mapping[str, Run], folder: Path, num_rows: int, seed: int) -> Gallery:
    """Validation images as rows: the image, its ground truth, and the masks of each run.

    Args:
        title: title of the gallery.
        runs: finished runs with a segmentation head and one dataset, by the name of their column.
        folder: the record's folder.
        num_rows: number of validation images, of different classes as far as possible.
        seed: seed of their choice.
    """
    data = open_dataset(next(iter(runs.values())), own_size=True)
    items = [data[index] for index in choose(data, num_rows, seed)]
    masks = {"ground truth": [as_mask(item["mask"]) for item in items]}
    for name, run in runs.items():
        masks[name] = predictions(run, items, data.classes)
    writer = ImageWriter(folder, "masks")

    def add(image: np.ndarray, photo: bool) -> str:
        return writer.add(np.asarray(shrunk(Image.fromarray(image), photo)))

    rows = []
    for row, item in enumerate(items):
        files = [add(as_array(item["image"]), photo=True)]
        files += [add(colorize(column[row], data.palette), photo=False) for column in masks.values()]
        rows.append((str(item["name"]), files))
    entries = legend(data.classes, data.palette, [mask for column in masks.values() for mask in column])
    return Gallery(title, ["image", *masks], rows, legend=entries)
