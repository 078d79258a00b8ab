"""The built-in dataset: handwritten digits on textured backgrounds, 32x32 RGB, generated from a seed.

The digits are the 1,797 of scikit-learn's `load_digits` (UCI, 8x8); a fixed fifth of each class is reserved for
validation, so that no digit image is in both splits. A scene has an image, a mask (digit + 1), a class, a color and a
caption, and is a pure function of (seed, split, index, and for the training split the held-out pairs): a larger dataset
starts with the scenes of a smaller one.
"""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from unetdiff.data.base import ImageDataset
from unetdiff.data.config import AugmentConfig, ScenesConfig
from unetdiff.data.prompt import COLORS, DIGITS, Prompt, caption_of, prompts, trained_pairs, validate_scene_counts
from unetdiff.data.sampling import SampleKey
from unetdiff.data.scene_rendering import render_scenes
from unetdiff.data.transforms import Transform
from unetdiff.errors import config_error

PALETTE = np.array(
    [
        (0, 0, 0), (31, 119, 180), (255, 127, 14), (44, 160, 44), (214, 39, 40), (148, 103, 189),
        (140, 86, 75), (227, 119, 194), (160, 160, 160), (188, 189, 34), (23, 190, 207),
    ],
    np.uint8,
)  # fmt: skip
"""Colors of the mask: black, then matplotlib's tab10."""

_CHUNK = 1000  # scenes rendered at once


class Scenes(ImageDataset):
    """The scenes of a split, rendered at construction and held in memory as uint8.

    Args:
        split: its digit images are in no other split.
        config: number of scenes, digits, colors, backgrounds.
        size: [height, width] that scenes are resized to; None: 32 x 32.
        augment: augmentation of the training split; None: none.
        segmentation: return masks.
        layout: return masks resized with the image (see `Transform`).

    Raises:
        UserError: an option out of range, invalid held-out pairs, or an empty split.
    """

    def __init__(
        self,
        split: Literal["train", "val"],
        config: ScenesConfig,
        size: list[int] | None = None,
        augment: AugmentConfig | None = None,
        segmentation: bool = True,
        layout: bool = False,
    ) -> None:
        validate_scene_counts(config)
        count = config.train_images if split == "train" else config.val_images
        if not 1 <= config.digits <= 9:
            raise config_error("data.scenes.digits", config.digits, "in 1..9")
        if not 0 <= config.clutter <= 1:
            raise config_error("data.scenes.clutter", config.clutter, "in [0, 1]")
        if not 0 <= config.spread <= 1:
            raise config_error("data.scenes.spread", config.spread, "in [0, 1]")
        if not 1 <= config.colors <= len(COLORS):
            raise config_error("data.scenes.colors", config.colors, f"in 1..{len(COLORS)} ({', '.join(COLORS)})")
        trained_pairs(config)
        self.split = split
        self.has_masks = segmentation or layout
        self.classes = ["background", *DIGITS] if self.has_masks else []
        self.palette = PALETTE if self.has_masks else PALETTE[:0]
        self.labels = list(DIGITS)
        self.config = config
        self.transform: Transform = Transform(size, augment, layout=layout)
        chunks = [
            render_scenes(split, config, np.arange(first, min(first + _CHUNK, count)))
            for first in range(0, count, _CHUNK)
        ]
        self.images = torch.cat([chunk[0] for chunk in chunks])  # (N, 3, H, W)
        self.masks = torch.cat([chunk[1] for chunk in chunks])  # (N, H, W)
        self.digits = np.concatenate([chunk[2] for chunk in chunks])  # (N, D)
        self.colors = np.concatenate([chunk[3] for chunk in chunks])  # (N, D)

    def __len__(self) -> int:
        return len(self.images)

    def sample_name(self, index: int) -> str:
        return f"scenes/{self.split}/{index:06d}"

    def caption(self, index: int) -> str:
        """E.g. "a red seven and a blue two", largest digit first."""
        return caption_of(self.digits[index], self.colors[index])

    def prompts(self) -> list[Prompt]:
        """All pairs of digit and color, and whether they are held out of training."""
        return prompts(self.config)

    def mask(self, index: int) -> Tensor:
        return self.masks[self.sample_index(index)]

    def __getitem__(self, key: int | SampleKey) -> dict[str, Any]:
        """An item as in `ImageDataset`, with "label" the largest digit and "color" its index in `COLORS`.

        "labels" are all digits of the scene, cropped away or not.
        """
        index = self.sample_index(key)
        image, mask = self.transform(self.images[index], self.masks[index] if self.has_masks else None, key)
        item: dict[str, Any] = {"image": image, "name": self.sample_name(index)}
        if mask is not None:
            item["mask"] = mask
        item["label"] = int(self.digits[index, 0])
        item["labels"] = tuple(sorted(set(self.digits[index].tolist())))
        item["color"] = int(self.colors[index, 0])
        item["caption"] = self.caption(index)
        return item
