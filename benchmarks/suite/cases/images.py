"""Random images with masks and classes, and the normalization of the peers."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from unetdiff.data.base import ImageDataset, classes_present, collate
from unetdiff.data.masks.classes import voc_colormap
from unetdiff.data.sampling import SampleKey
from unetdiff.models.encoders import IMAGENET_MEAN, IMAGENET_STD
from unetdiff.training.tasks.base import Batch

IGNORE_FRACTION = 0.05  # about VOC's
CELLS = 8  # regions along a side of a mask


def normalize_imagenet(images: Tensor, layout: torch.memory_format = torch.channels_last) -> Tensor:
    """uint8 (B, 3, H, W), normalized by ImageNet's mean and standard deviation."""
    mean, std = (torch.tensor(value, device=images.device)[:, None, None] for value in (IMAGENET_MEAN, IMAGENET_STD))
    return ((images.float() / 255 - mean) / std).contiguous(memory_format=layout)


def blocky_mask(classes: int, size: int, generator: torch.Generator) -> Tensor:
    """A mask of square regions, some of them ignored (255), uint8 (size, size)."""
    cells = torch.randint(classes, (1, 1, CELLS, CELLS), generator=generator)
    ignored = torch.rand(cells.shape, generator=generator) < IGNORE_FRACTION
    return F.interpolate(cells.masked_fill(ignored, 255).float(), size=(size, size), mode="nearest")[0, 0].to(
        torch.uint8
    )


class RandomImages(ImageDataset):
    """Noise images with blocky masks and a label each; image i is always the same.

    Args:
        number: number of images.
        size: height and width.
        classes: classes of the masks.
        labels: classes of the images.
    """

    def __init__(self, number: int, size: int, classes: int = 21, labels: int = 10) -> None:
        self.number, self.size = number, size
        self.classes = [f"class {i}" for i in range(classes)]
        self.palette = np.asarray(voc_colormap(classes), np.uint8)
        self.labels = [f"label {i}" for i in range(labels)]

    def __len__(self) -> int:
        return self.number

    def __getitem__(self, key: int | SampleKey) -> dict:
        index = self.sample_index(key)
        generator = torch.Generator().manual_seed(index)
        image = torch.randint(256, (3, self.size, self.size), generator=generator).to(torch.uint8)
        mask = blocky_mask(len(self.classes), self.size, generator)
        label = int(torch.randint(len(self.labels), (), generator=generator))
        item = {"image": image, "mask": mask, "label": label, "labels": classes_present(mask)}
        return {**item, "name": self.sample_name(index)}

    def sample_name(self, index: int) -> str:
        return f"random-{index}"

    def batch(self) -> Batch:
        """All images as one batch."""
        return collate([self[i] for i in range(len(self))])
