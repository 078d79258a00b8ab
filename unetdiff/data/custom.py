"""Datasets given in Python: any map-style dataset whose items are dicts."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

import numpy as np
import torch
from einops import rearrange
from PIL import Image
from torch import Tensor

from unetdiff.data.base import ImageDataset, classes_present, empty_palette
from unetdiff.data.config import AugmentConfig, DataConfig
from unetdiff.data.decoding import RGB, image_pixels, with_channels
from unetdiff.data.masks.classes import voc_colormap
from unetdiff.data.masks.encodings import wrong_values
from unetdiff.data.name_lists import distinct_names
from unetdiff.data.sampling import SampleKey
from unetdiff.data.transforms import Transform
from unetdiff.errors import UserError, config_error

CHECKED_ITEMS = 4
"""Items that are read, and checked, before training."""
KEYS = ("image", "mask", "label", "caption", "name")


class MapDataset(Protocol):
    """A map-style dataset, e.g. a `torch.utils.data.Dataset`, a list or a `datasets.Dataset`."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> Any: ...


class CustomDataset(ImageDataset):
    """A map-style dataset of dicts, resized and augmented as the config says.

    Items have "image", and what the task needs of "mask", "label" and "caption"; "name" is optional.

    - "image": uint8, (C, H, W) as a tensor or (H, W, C) as an array, or (H, W); or a PIL image.
    - "mask": integers (H, W), tensor, array or PIL image: class indices, 255 = ignore.
    - "label": the index of the image's class. "caption": a string.

    Args:
        source: the dataset.
        title: in messages: "train_data" or "val_data".
        config: the `data:` section; names of the classes are `data.class_names`, the dataset's own `classes`, or
            `data.num_classes` of them.
        needs: keys that every item must have, besides "image".
        augmented: whether items that are indexed with a `SampleKey` are augmented.
        layout: resize masks with their images.

    Raises:
        UserError: the dataset is empty, or one of its first items is not as above; later ones when they are read.
    """

    def __init__(
        self,
        source: MapDataset,
        title: str,
        config: DataConfig,
        needs: tuple[str, ...] = (),
        augmented: bool = False,
        layout: bool = False,
    ) -> None:
        if not (hasattr(source, "__len__") and hasattr(source, "__getitem__")):
            remedy = "Give a dataset with __len__ and __getitem__; an iterable one can be turned into a list."
            raise UserError(f"{title}: must be a map-style dataset (got {type(source).__name__}). {remedy}")
        if not len(source):
            raise UserError(f"{title}: must have at least one item.")
        self.source, self.title, self.needs = source, title, needs
        augment = config.augment if augmented else AugmentConfig()
        self.transform: Transform = Transform(config.size, augment, config.longest_side, layout)
        self.image_range, self.channels = config.image_range, config.channels or RGB
        self.classes, self.palette, self.labels = [], empty_palette(), []
        if "mask" in needs or "label" in needs:
            names = _class_names(source, config, title)
            self.labels = names
            if "mask" in needs:
                self.classes, self.palette = list(names), voc_colormap(len(names))
        for index in range(min(len(source), CHECKED_ITEMS)):
            self._read(index)

    def __len__(self) -> int:
        return len(self.source)

    def sample_name(self, index: int) -> str:
        return f"{self.title}/{index:06d}"

    def __getitem__(self, key: int | SampleKey) -> dict[str, Any]:
        item = self._read(self.sample_index(key))
        item["image"], mask = self.transform(item["image"], item.get("mask"), key)
        if mask is not None:
            item |= {"mask": mask, "labels": classes_present(mask)}
        return item

    def mask(self, index: int) -> Tensor:
        return self._read(self.sample_index(index))["mask"]

    def _read(self, index: int) -> dict[str, Any]:
        """A checked item, not resized."""
        item = self.source[index]
        where = f"{self.title}[{index}]"
        if not isinstance(item, Mapping):
            raise UserError(f"{where}: must be a dict with {', '.join(KEYS)} (got {type(item).__name__}).")
        missing = [key for key in ("image", *self.needs) if key not in item]
        if missing:
            got = ", ".join(map(str, item)) or "nothing"
            raise UserError(f"{where}: must have the key {missing[0]} (got {got}).")
        image = _image(item["image"], f'{where}["image"]', self.image_range, self.channels)
        checked: dict[str, Any] = {"image": image, "name": str(item.get("name", self.sample_name(index)))}
        if "mask" in self.needs:
            checked["mask"] = _mask(item["mask"], f'{where}["mask"]', image, len(self.classes))
        if "label" in self.needs:
            label = item["label"]
            is_index = not isinstance(label, bool) and isinstance(label, int | np.integer)
            if not is_index or not 0 <= label < len(self.labels):
                constraint = f"an integer from 0 to {len(self.labels) - 1}"
                raise UserError(f'{where}["label"]: must be {constraint} (got {label!r}).')
            checked |= {"label": int(label), "labels": (int(label),)}
        if "caption" in self.needs:
            if not isinstance(item["caption"], str) or not item["caption"].strip():
                raise UserError(f'{where}["caption"]: must be a text that is not empty (got {item["caption"]!r}).')
            checked["caption"] = item["caption"].strip()
        return checked


def _class_names(source: MapDataset, config: DataConfig, title: str) -> list[str]:
    names = config.class_names or getattr(source, "classes", None)
    if names is None and config.num_classes is not None:
        names = [f"class {i}" for i in range(config.num_classes)]
    if names is None:
        remedy = f"Give data.class_names or data.num_classes, or set `classes` of {title}."
        raise config_error("data.num_classes", None, f"set for {title}, whose classes have no names", remedy)
    return distinct_names([str(name) for name in names], [f"{title}.classes"] * len(names))


def first_channels(source: MapDataset) -> int | None:
    """Channels of the first image of a dataset: 1 or 3 of a PIL image; None where that is unclear."""
    item = source[0] if len(source) else None
    image = item.get("image") if isinstance(item, Mapping) else None
    if isinstance(image, Image.Image):
        return 1 if image.mode in ("L", "1", "I", "F", "I;16") else RGB
    if isinstance(image, Tensor | np.ndarray) and image.ndim in (2, 3):
        return 1 if image.ndim == 2 else int(image.shape[0 if isinstance(image, Tensor) else 2])
    return None


def _image(value: Any, where: str, image_range: list[float] | None, channels: int) -> Tensor:
    """uint8 (channels, H, W)."""
    expected = f"must be uint8 of ({channels}, H, W) as a tensor, (H, W, {channels}) as an array, or a PIL image"
    try:
        if isinstance(value, Image.Image):
            value = image_pixels(value, image_range, channels)
        if isinstance(value, Tensor) and value.ndim == 3:
            value = rearrange(value, "c h w -> h w c")
        if not isinstance(value, Tensor | np.ndarray):
            raise UserError(f"{where}: {expected} (got {type(value).__name__}).")
        array = np.asarray(value)
        if array.dtype != np.uint8:
            remedy = "Multiply values in [0, 1] by 255 and convert: (image * 255).round().to(torch.uint8)."
            raise UserError(f"{where}: {expected} (got {array.dtype}). {remedy}")
        array = array[..., None] if array.ndim == 2 else array
        if array.ndim != 3 or array.size == 0:
            raise UserError(f"{where}: {expected} (got shape {tuple(value.shape)}).")
        array = with_channels(array, channels)
    except UserError:
        raise
    except ValueError as error:
        raise UserError(f"{where}: {expected} ({error}).") from None
    return rearrange(torch.from_numpy(array), "h w c -> c h w").contiguous()


def _mask(value: Any, where: str, image: Tensor, num_classes: int) -> Tensor:
    """uint8 (H, W) of the image's size."""
    array = np.asarray(value)
    if array.ndim != 2 or array.dtype.kind not in "iub":
        got = f"{array.dtype}, shape {array.shape}"
        raise UserError(f"{where}: must be integers of (H, W), class indices and 255 = ignore (got {got}).")
    if array.shape != tuple(image.shape[-2:]):
        size = tuple(image.shape[-2:])
        raise UserError(f"{where}: must have the image's size {size} (got {array.shape}).")
    array = array.astype(np.uint8) if array.dtype == bool else array
    wrong = wrong_values(array, num_classes)
    if wrong or int(array.min()) < 0:
        shown = ", ".join(map(str, wrong[:5])) or str(int(array.min()))
        constraint = f"class indices 0..{num_classes - 1}, or 255 = ignore"
        raise UserError(f"{where}: must be {constraint} (got {shown}). Map them, or correct data.num_classes.")
    return torch.from_numpy(array.astype(np.uint8))
