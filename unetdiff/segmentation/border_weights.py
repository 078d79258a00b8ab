"""The weight map of Ronneberger et al. 2015, equation 2: the background between two close objects counts more.

    w(x) = w_c(x) + w0 exp(-(d1(x) + d2(x))^2 / (2 sigma^2))

d1 and d2 are the distances to the nearest and to the second nearest object, w_c the class weight. An object is a
connected component of the pixels of one class other than the background.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import ndimage
from torch import Tensor

from unetdiff.data.base import ImageDataset
from unetdiff.data.sampling import SampleKey
from unetdiff.data.transforms import ignore_mask
from unetdiff.segmentation.config import BorderWeightsConfig

KEY = "border_weight"
"""Of a batch: what is added to the class weight of each pixel, float32 (B, H, W)."""
REACH = 5.0
"""Largest d1 + d2 in units of sigma; beyond it the weight is below w0 exp(-12.5), and set to 0."""


def border_weights(mask: Tensor, config: BorderWeightsConfig, ignore_index: int = 255) -> Tensor:
    """w0 exp(-(d1 + d2)^2 / (2 sigma^2)) at the background pixels of a mask, 0 at all others.

    Distances of objects are computed in their surroundings only: about 0.1 s for a slice of 512 x 512 with 100 cells.

    Args:
        mask: class indices, uint8 (H, W); ignored pixels are neither objects nor background.
        config: w0, sigma in pixels, and the class of the background.
        ignore_index: ignored in addition to 255.

    Returns:
        float32 (H, W).
    """
    values = mask.numpy()
    nearest = np.full((2, *values.shape), np.inf, np.float32)  # d1 and d2
    reach = REACH * config.sigma
    for label in np.unique(values[~ignore_mask(values, ignore_index)]):
        if label != config.background:
            objects, _ = ndimage.label(values == label)
            _measure(objects, nearest, reach)
    total = nearest.sum(axis=0)
    weight = np.where(total <= reach, config.w0 * np.exp(-np.square(total) / (2 * config.sigma**2)), 0)
    return torch.from_numpy((weight * (values == config.background)).astype(np.float32))


def _measure(objects: NDArray[np.int32], nearest: NDArray[np.float32], reach: float) -> None:
    """Lower the two smallest distances, (2, H, W), by those to the components 1.. of `objects` (H, W)."""
    margin = int(np.ceil(reach))
    for number, box in enumerate(ndimage.find_objects(objects), start=1):
        window = tuple(slice(max(0, side.start - margin), side.stop + margin) for side in box)
        distance = ndimage.distance_transform_edt(objects[window] != number).astype(np.float32)
        first, second = nearest[0][window], nearest[1][window]  # views
        np.minimum(second, np.maximum(first, distance), out=second)
        np.minimum(first, distance, out=first)


class BorderWeighted(ImageDataset):
    """The items of a dataset with masks, and their border weights, "border_weight" (H, W).

    They are computed from the mask as it is trained on, after deformation and cropping: what the network must keep
    apart are the objects that it sees.
    """

    def __init__(self, dataset: ImageDataset, config: BorderWeightsConfig, ignore_index: int) -> None:
        self.dataset, self.config, self.ignore_index = dataset, config, ignore_index
        self.classes, self.palette, self.labels = dataset.classes, dataset.palette, dataset.labels

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, key: int | SampleKey) -> dict[str, Any]:
        item = self.dataset[key]
        return {**item, KEY: border_weights(item["mask"], self.config, self.ignore_index)}

    def sample_name(self, index: int) -> str:
        return self.dataset.sample_name(index)
