"""Images of an experiment: files below its folder, and the colours of what masks show."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
from PIL import Image
from torch import Tensor

from unetdiff.experiments.runs import last_weights
from unetdiff.reports.dataset_groups import choose, open_set
from unetdiff.reports.embed import as_array, shrunk
from unetdiff.reports.masks import predictions
from unetdiff.reports.record import Gallery
from unetdiff.reports.runs import Run
from unetdiff.segmentation.palette import VOID, VOID_COLOR, as_mask, colorize

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
    return entries + ([("void", _hex(VOID_COLOR))] if VOID in shown else [])


def _hex(color: Sequence[int] | np.ndarray) -> str:
    return "#" + "".join(f"{int(level):02x}" for level in color)


def mask_gallery(title: str, runs: Mapping[str, Run], folder: Path, count: int, seed: int) -> Gallery:
    """A row a validation image: itself, its truth, and what each run finds in it with its last weights.

    Args:
        title: of the gallery.
        runs: finished runs with a segmentation head, all of one set, by the name of their column.
        folder: the record's.
        count: validation images, of different classes as far as there are.
        seed: which images.
    """
    data = open_set(next(iter(runs.values())), own_size=True)
    items = [data[index] for index in choose(data, count, seed)]
    masks = {"truth": [as_mask(item["mask"]) for item in items]}
    for name, run in runs.items():
        masks[name] = predictions(last_weights(run), items)
    album = Album(folder, "masks")

    def add(image: np.ndarray, photo: bool) -> str:
        return album.add(np.asarray(shrunk(Image.fromarray(image), photo)))

    rows = []
    for row, item in enumerate(items):
        files = [add(as_array(item["image"]), photo=True)]
        files += [add(colorize(column[row], data.palette), photo=False) for column in masks.values()]
        rows.append((str(item["name"]), files))
    shown = legend(data.classes, data.palette, [mask for column in masks.values() for mask in column])
    return Gallery(title, ["image", *masks], rows, legend=shown)
