"""The same validation images, segmented by several runs, as images of a record."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from PIL import Image

from unetdiff.experiments.images import Album, legend
from unetdiff.experiments.runs import last_weights
from unetdiff.reports.dataset_groups import choose, open_dataset
from unetdiff.reports.embed import as_array, shrunk
from unetdiff.reports.masks import predictions
from unetdiff.reports.record import Gallery
from unetdiff.reports.runs import Run
from unetdiff.segmentation.palette import as_mask, colorize


def mask_gallery(title: str, runs: Mapping[str, Run], folder: Path, count: int, seed: int) -> Gallery:
    """A row a validation image: itself, its truth, and what each run finds in it with its last weights.

    Args:
        title: of the gallery.
        runs: finished runs with a segmentation head, all of one set, by the name of their column.
        folder: the record's.
        count: validation images, of different classes as far as there are.
        seed: which images.
    """
    data = open_dataset(next(iter(runs.values())), own_size=True)
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
