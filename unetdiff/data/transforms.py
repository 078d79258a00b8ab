"""Pixel ranges, resizing, and augmentation as a pure function of a seed (transforms.v2 on uint8 tensors)."""

from __future__ import annotations

from typing import TypeVar

import numpy as np
import torch
from einops import rearrange
from torch import Tensor
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as F

from unetdiff.data.config import AugmentConfig
from unetdiff.data.geometry import IGNORE_INDEX, elastic, elastic_displacement, random_crop, rotate
from unetdiff.data.sampling import SampleKey
from unetdiff.errors import config_error

Mask = TypeVar("Mask", Tensor, np.ndarray)


def ignore_mask(mask: Mask, ignore_index: int) -> Mask:
    """Where a mask is ignored, bool of its shape: `ignore_index`, and always 255, which pads crops."""
    return (mask == ignore_index) | (mask == IGNORE_INDEX)


def to_model_range(pixels: Tensor) -> Tensor:
    """uint8 pixels 0..255, any shape, to float32 in [-1, 1]: x / 127.5 - 1."""
    return pixels.to(torch.float32) / 127.5 - 1.0


def to_uint8(pixels: Tensor) -> Tensor:
    """Float pixels in [-1, 1], any shape, to uint8 0..255, rounded and clamped."""
    return ((pixels.to(torch.float32) + 1.0) * 127.5).round().clamp(0, 255).to(torch.uint8)


def resize_image(image: Tensor, size: tuple[int, int]) -> Tensor:
    """uint8 image (..., C, H, W) to exactly `size` = (height, width): bilinear, antialiased."""
    if tuple(image.shape[-2:]) == size:
        return image
    if tuple(size) == (1, 1):  # torch's uint8 kernel fails where its input's strides are ambiguous
        return F.resize_image(image.float(), [1, 1], antialias=True).round().clamp(0, 255).to(image.dtype)
    return F.resize_image(image, list(size), interpolation=v2.InterpolationMode.BILINEAR, antialias=True)


def resize_mask(mask: Tensor, size: tuple[int, int]) -> Tensor:
    """uint8 mask (H, W) to exactly `size` by nearest neighbor.

    "nearest-exact" samples at pixel centers, as image resizing does; torch's "nearest" samples at upper left corners,
    which shifts a mask against its image.
    """
    if tuple(mask.shape) == size:
        return mask
    return F.resize_image(mask[None], list(size), interpolation=v2.InterpolationMode.NEAREST_EXACT)[0]


def fit_longest_side(size: tuple[int, ...], longest_side: int) -> tuple[int, int]:
    """(height, width) scaled so that the longer one is `longest_side`, aspect ratio kept."""
    factor = longest_side / max(size)
    return max(1, round(size[0] * factor)), max(1, round(size[1] * factor))


def cover(image: Tensor, size: tuple[int, int]) -> Tensor:
    """uint8 image (..., C, H, W) resized, aspect ratio kept, to just cover `size`, then center-cropped to it."""
    return F.center_crop_image(resize_to_cover(image, size), list(size))


def resize_to_cover(image: Tensor, size: tuple[int, int]) -> Tensor:
    """uint8 image (..., C, H, W) resized, aspect ratio kept, to just cover `size`."""
    return resize_image(image, _cover_size(image.shape[-2:], size))


def _cover_size(image_size: tuple[int, ...], size: tuple[int, int]) -> tuple[int, int]:
    height, width = image_size
    factor = max(size[0] / height, size[1] / width)
    return max(size[0], round(height * factor)), max(size[1], round(width * factor))


def resize_layout(
    image: Tensor, mask: Tensor, size: tuple[int, int] | None, longest_side: int | None
) -> tuple[Tensor, Tensor]:
    """image uint8 (C, H, W) and mask uint8 (H, W) resized and cropped alike, aspect ratio kept.

    They are resized to `longest_side` and then to cover `size`, center-cropped, where these are not None.
    """
    if longest_side is not None:
        whole = fit_longest_side(image.shape[-2:], longest_side)
        image, mask = resize_image(image, whole), resize_mask(mask, whole)
    if size is not None:
        scaled = resize_mask(mask, _cover_size(mask.shape, size))
        image, mask = cover(image, size), F.center_crop_image(scaled[None], list(size))[0]
    return image, mask


class EvalTransform:
    """Validation transform: the image is resized to `size` or `longest_side`, the mask keeps its own size.

    An image with a mask is resized to exactly `size` (its logits are resized to the mask); one without is resized by
    its shorter side and center-cropped, so that generative models see the right aspect ratio. With `layout`, image and
    mask are both resized and cropped like that.
    """

    def __init__(self, size: list[int] | None, longest_side: int | None = None, layout: bool = False) -> None:
        self.size, self.longest_side, self.layout = checked_size("data.size", size), longest_side, layout

    def __call__(self, image: Tensor, mask: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
        """image uint8 (C, H, W), mask uint8 (H, W) or None -> the same, resized."""
        if self.layout and mask is not None:
            return resize_layout(image, mask, self.size, self.longest_side)
        if self.longest_side is not None:
            image = resize_image(image, fit_longest_side(image.shape[-2:], self.longest_side))
        if self.size is None:
            return image, mask
        return (cover(image, self.size) if mask is None else resize_image(image, self.size)), mask


class TrainTransform:
    """Resize, scale jitter, elastic deformation, rotation, random crop, flips, color jitter, in this order.

    A pure function of the key's seed that leaves all global generators unchanged. `strong=False` disables scale and
    color jitter; the others stay. Crops larger than the image are padded with its mean color, masks with 255 (ignore),
    or both are mirrored. With scale jitter and no `crop`, the crop is `size`. With `random_crop`, the crop of an image
    without mask to `size` is at a random place. `layout` as in `EvalTransform`.

    Raises:
        UserError: a size, crop, scale or color out of range, or scale jitter with neither crop nor size.
    """

    def __init__(
        self, size: list[int] | None, augment: AugmentConfig, longest_side: int | None = None, layout: bool = False
    ) -> None:
        self.size, self.longest_side, self.layout = checked_size("data.size", size), longest_side, layout
        self.crop = checked_size("data.augment.crop", augment.crop)
        self.flip, self.random_crop = augment.flip, augment.random_crop
        self.vertical_flip, self.rotate, self.elastic = augment.vertical_flip, augment.rotate, augment.elastic
        self.mirrors = augment.crop_padding == "mirror"
        self.scale: tuple[float, float] | None = None
        if augment.scale is not None:
            if len(augment.scale) != 2 or not 0 < augment.scale[0] <= augment.scale[1]:
                raise config_error(
                    "data.augment.scale",
                    augment.scale,
                    "[smallest, largest], two positive factors",
                    "Give e.g. [0.5, 2.0].",
                )
            self.scale = (augment.scale[0], augment.scale[1])
            self.crop = self.crop or self.size
            if self.crop is None:
                raise config_error(
                    "data.augment.crop", None, "set with data.augment.scale", "Give [height, width], or set data.size."
                )
        if not 0 <= augment.color <= 1:
            raise config_error("data.augment.color", augment.color, "in [0, 1]")
        self.jitter = (
            v2.ColorJitter(brightness=augment.color, contrast=augment.color, saturation=augment.color)
            if augment.color > 0
            else None
        )
        moves = self.flip or self.vertical_flip or self.rotate or self.elastic > 0
        self.random = moves or self.crop is not None or self.jitter is not None or self.random_crop

    def __call__(
        self, image: Tensor, mask: Tensor | None, seed: int, strong: bool, size: tuple[int, int] | None = None
    ) -> tuple[Tensor, Tensor | None]:
        """image uint8 (C, H, W), mask uint8 (H, W) or None -> both of one size.

        size: of an image without mask, instead of `size`: that of its bucket.
        """
        size = size or self.size
        if mask is None and size is not None:
            image = resize_to_cover(image, size) if self.random_crop else cover(image, size)
        elif mask is not None and self.layout:
            image, mask = resize_layout(image, mask, self.size, self.longest_side)
        if not self.random:
            return (image, mask) if mask is None and size is not None else self._resize(image, mask, 1.0)
        with torch.random.fork_rng(devices=[]):
            # Not torch.manual_seed, which would seed the accelerators' generators as well.
            torch.default_generator.manual_seed(seed)
            factor = 1.0
            if self.scale is not None and strong:
                factor = float(torch.empty(()).uniform_(*self.scale))
            if mask is None and self.random_crop and size is not None:
                image, _ = random_crop(image, None, size)
            elif mask is not None or size is None or factor != 1.0:
                image, mask = self._resize(image, mask, factor)
            if self.elastic:
                image, mask = elastic(image, mask, elastic_displacement(image.shape[-2:], self.elastic))
            if self.rotate:
                image, mask = rotate(image, mask, turns_freely=self.crop is not None)
            if self.crop is not None:
                image, mask = random_crop(image, mask, self.crop, self.mirrors)
            for flips, dim in ((self.flip, -1), (self.vertical_flip, -2)):
                if flips and bool(torch.rand(()) < 0.5):
                    image, mask = image.flip(dim), None if mask is None else mask.flip(dim)
            if self.jitter is not None and strong:
                image = _by_channel(self.jitter, image)
        return image, mask

    @property
    def num_views(self) -> int | None:
        """Number of different images that augmentation makes of one: itself, and its mirror image; None: unbounded."""
        moves = self.vertical_flip or self.rotate or self.elastic > 0
        if moves or self.scale is not None or self.crop is not None or self.random_crop or self.jitter is not None:
            return None
        return 2 if self.flip else 1

    def is_flipped(self, seed: int) -> bool:
        """Whether a call with this seed flips the image, where `num_views` is bounded."""
        return self.flip and bool(torch.rand((), generator=torch.Generator().manual_seed(seed)) < 0.5)

    def _resize(self, image: Tensor, mask: Tensor | None, factor: float) -> tuple[Tensor, Tensor | None]:
        height, width = self.size or image.shape[-2:]
        if self.longest_side is not None:
            height, width = fit_longest_side((height, width), self.longest_side)
        size = (max(1, round(height * factor)), max(1, round(width * factor)))
        return resize_image(image, size), None if mask is None else resize_mask(mask, size)


class Transform:
    """`TrainTransform` for a `SampleKey`, `EvalTransform` for an int."""

    def __init__(
        self,
        size: list[int] | None,
        augment: AugmentConfig | None = None,
        longest_side: int | None = None,
        layout: bool = False,
    ) -> None:
        self.train = TrainTransform(size, augment or AugmentConfig(), longest_side, layout)
        self.eval = EvalTransform(size, longest_side, layout)

    def __call__(
        self, image: Tensor, mask: Tensor | None, key: int | SampleKey, size: tuple[int, int] | None = None
    ) -> tuple[Tensor, Tensor | None]:
        """image uint8 (C, H, W), mask uint8 (H, W) or None, and the key that the sample was indexed with.

        size: of an image without mask in training, instead of the configured one.
        """
        if isinstance(key, SampleKey):
            return self.train(image, mask, key.seed, key.strong, size)
        return self.eval(image, mask)


def checked_size(key: str, size: list[int] | None) -> tuple[int, int] | None:
    """`size` as (height, width), or a UserError that names the config key."""
    if size is None:
        return None
    if len(size) != 2 or min(size) < 1:
        raise config_error(key, size, "[height, width], two positive integers", "Give e.g. [256, 256].")
    return size[0], size[1]


def _by_channel(jitter: v2.ColorJitter, image: Tensor) -> Tensor:
    """Color jitter of an image uint8 (C, H, W) of any channels: those of other than gray and RGB images one by one,
    with the same brightness and contrast."""
    if image.shape[0] in (1, 3):
        jittered: Tensor = jitter(image)
        return jittered
    return rearrange(jitter(rearrange(image, "c h w -> c 1 h w")), "c 1 h w -> c h w")
