"""The same validation pictures, segmented by several runs, as pictures of a record."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from PIL import Image

from unetdiff.compare.embed import as_array, shrunk
from unetdiff.compare.masks import predictions
from unetdiff.compare.runs import Run
from unetdiff.compare.sets import choose, open_set
from unetdiff.experiments.record import Gallery
from unetdiff.experiments.runs import last_weights
from unetdiff.segmentation.palette import VOID_COLOR, as_mask, colorize

VOID = 255


def mask_gallery(title: str, runs: Mapping[str, Run], folder: Path, count: int, seed: int) -> Gallery:
    """A row a validation picture: itself, its truth, and what each run finds in it with its last weights.

    Args:
        title: of the gallery.
        runs: finished runs with a segmentation head, all of one set, by the name of their column.
        folder: the record's; the files go to pictures/ in it.
        count: validation pictures, of different classes as far as there are.
        seed: which pictures.
    """
    first = next(iter(runs.values()))
    data = open_set(first)
    items = [data[index] for index in choose(data, count, seed)]
    truths = [as_mask(item["mask"]) for item in items]
    found = {"picture": [as_array(item["image"]) for item in items]}
    occurring: set[int] = {int(value) for truth in truths for value in np.unique(truth)}
    found["truth"] = [colorize(truth, data.palette) for truth in truths]
    for name, run in runs.items():
        masks = predictions(last_weights(run), items, truths)
        occurring |= {int(value) for mask in masks for value in np.unique(mask)}
        found[name] = [colorize(mask, data.palette) for mask in masks]
    (folder / "pictures").mkdir(parents=True, exist_ok=True)
    rows = []
    for row, item in enumerate(items):
        files = []
        for column, pictures in found.items():
            file = f"pictures/{row:02d}-{column.replace(' ', '-').lower()}.png"
            shrunk(Image.fromarray(pictures[row]), photo=column == "picture").save(folder / file)
            files.append(file)
        rows.append((str(item["name"]), files))
    legend = [(name, _hex(data.palette[i])) for i, name in enumerate(data.classes) if i in occurring]
    legend += [("void, counted nowhere", _hex(VOID_COLOR))] if VOID in occurring else []
    return Gallery(title, list(found), rows, legend=legend)


def _hex(color: np.ndarray | tuple[int, ...]) -> str:
    return "#{:02x}{:02x}{:02x}".format(*(int(level) for level in color))
