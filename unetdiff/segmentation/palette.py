"""Masks as images: colors, overlays, palette PNG files and error maps."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from pathlib import Path

import numpy as np
import torch
from einops import rearrange
from PIL import Image
from torch import Tensor

from unetdiff.data.decoding import image_pixels
from unetdiff.data.transforms import IGNORE_INDEX, ignore_mask
from unetdiff.errors import UserError
from unetdiff.files.images import save_image

__all__ = [
    "IGNORE_COLOR",
    "ERROR_COLOR",
    "as_mask",
    "as_palette",
    "as_rgb_array",
    "as_uint8_array",
    "colorize",
    "error_map",
    "overlay",
    "palette_image",
    "save_mask",
]

MAX_ROWS = 256  # rows of an image blended at once
IGNORE_COLOR = (224, 224, 192)  # VOC's cream
ERROR_COLOR = (214, 30, 120)  # not in VOC's palette nor in that of scenes
CORRECT_COLOR = (236, 238, 240)

Mask = Tensor | np.ndarray
ImageInput = Tensor | np.ndarray | Image.Image
Palette = np.ndarray | Sequence[Sequence[int]]


def as_palette(palette: Palette, num_classes: int | None = None) -> np.ndarray:
    """Colors as uint8 (classes, 3); UserError for another shape or range, or fewer than `num_classes` colors."""
    color = np.asarray(palette)
    if color.ndim != 2 or color.shape[1] != 3 or color.min(initial=0) < 0 or color.max(initial=0) > 255:
        raise UserError(f"palette: must be (classes, 3), [red, green, blue] in 0..255 (got shape {color.shape}).")
    if len(color) > IGNORE_INDEX:
        raise UserError(f"palette: must have at most {IGNORE_INDEX} colors, for palette PNGs (got {len(color)}).")
    if num_classes is not None and len(color) < num_classes:
        raise UserError(f"palette: must have one color per class (got {len(color)} for {num_classes} classes).")
    return color.astype(np.uint8)


def as_mask(mask: Mask) -> np.ndarray:
    """A mask (H, W) of class indices as uint8, from a tensor on any device or an array."""
    array = mask.detach().cpu().numpy() if isinstance(mask, Tensor) else np.asarray(mask)
    if array.ndim != 2:
        raise UserError(f"mask: shape must be (H, W) (got {array.shape}).")
    if array.min(initial=0) < 0 or array.max(initial=0) > IGNORE_INDEX:
        raise UserError(
            f"mask: values must be class indices 0..254 or {IGNORE_INDEX} (ignore) (got {array.min()}..{array.max()})."
        )
    return array.astype(np.uint8)


def as_rgb_array(image: ImageInput) -> np.ndarray:
    """An image as uint8 (H, W, 3), from PIL, an array (H, W, C), or a uint8 tensor (C, H, W).

    Of an image of more than three channels the first three are shown, of two the second twice, and one is gray.
    """
    if isinstance(image, Image.Image):
        try:
            return image_pixels(image)
        except ValueError as error:
            raise UserError(f"image: {error}") from None
    array = as_uint8_array(image)
    if array.shape[2] == 3:
        return array
    return array[..., [min(channel, array.shape[2] - 1) for channel in range(3)]]


def as_uint8_array(image: Tensor | np.ndarray) -> np.ndarray:
    """A tensor uint8 (C, H, W) or an array uint8 (H, W, C), (H, W) with one channel, as an array (H, W, C)."""
    if isinstance(image, Tensor):
        if image.ndim != 3 or image.dtype != torch.uint8:
            raise UserError(f"image: tensors must be uint8 (C, H, W) (got {image.dtype} {tuple(image.shape)}).")
        return np.ascontiguousarray(rearrange(image.detach().cpu(), "c h w -> h w c").numpy())
    if image.ndim not in (2, 3) or image.dtype != np.uint8:
        raise UserError(f"image: arrays must be uint8 (H, W, C) (got {image.dtype} {image.shape}).")
    return image if image.ndim == 3 else image[..., None]


def _lookup_table(palette: Palette, ignore_index: int) -> np.ndarray:
    """256 colors: those of the classes, `IGNORE_COLOR` at `ignore_index` and beyond the classes."""
    color = as_palette(palette)
    table = np.tile(np.array(IGNORE_COLOR, dtype=np.uint8), (256, 1))
    table[: len(color)] = color
    if 0 <= ignore_index < 256:
        table[ignore_index] = IGNORE_COLOR
    return table


def colorize(mask: Mask, palette: Palette, ignore_index: int = IGNORE_INDEX) -> np.ndarray:
    """Mask (H, W) -> RGB, uint8 (H, W, 3)."""
    return _lookup_table(palette, ignore_index)[as_mask(mask)]


def palette_image(mask: Mask, palette: Palette, ignore_index: int = IGNORE_INDEX) -> Image.Image:
    """Mask (H, W) -> PIL image of mode "P" whose pixels are the class indices, as VOC stores masks."""
    image = Image.fromarray(as_mask(mask))
    image.putpalette(_lookup_table(palette, ignore_index).reshape(-1).tolist())
    return image


def save_mask(mask: Mask, path: str | Path, palette: Palette, ignore_index: int = IGNORE_INDEX) -> None:
    """Write a mask (H, W) as a palette PNG; opened without conversion, its pixels are class indices."""
    save_image(palette_image(mask, palette, ignore_index), path)


def overlay(
    image: ImageInput,
    mask: Mask,
    palette: Palette,
    alpha: float = 0.55,
    ignore_index: int = IGNORE_INDEX,
    transparent: Collection[int] = (),
) -> np.ndarray:
    """The image blended with the mask's colors, uint8 (H, W, 3).

    Args:
        image: of the mask's size.
        mask: class indices (H, W).
        palette: (classes, 3).
        alpha: weight of the mask's colors, in [0, 1].
        ignore_index: not blended.
        transparent: classes that are not blended, e.g. background.
    """
    base, index = as_rgb_array(image), as_mask(mask)
    if base.shape[:2] != index.shape:
        raise UserError(f"mask: size must be the image's (got {index.shape} and {base.shape[:2]}).")
    colors = alpha * _lookup_table(palette, ignore_index)  # (256, 3)
    unblended = np.isin(np.arange(256), [ignore_index, *transparent])
    result = np.empty_like(base)
    for top in range(0, len(base), MAX_ROWS):  # bounds the memory of float values
        rows = slice(top, top + MAX_ROWS)
        blend = ((1 - alpha) * base[rows] + colors[index[rows]]).round().astype(np.uint8)
        result[rows] = np.where(unblended[index[rows]][..., None], base[rows], blend)
    return result


def error_map(
    prediction: Mask, target: Mask, ignore_index: int = IGNORE_INDEX, image: ImageInput | None = None
) -> np.ndarray:
    """Wrong pixels magenta, ignored ones cream, the others pale (or the image in faded gray): uint8 (H, W, 3)."""
    pred, index = as_mask(prediction), as_mask(target)
    if pred.shape != index.shape:
        raise UserError(f"prediction: size must be the target's (got {pred.shape} and {index.shape}).")
    result = np.tile(np.array(CORRECT_COLOR, dtype=np.uint8), (*index.shape, 1))
    if image is not None:
        gray = as_rgb_array(image).mean(axis=2, keepdims=True)
        if gray.shape[:2] != index.shape:
            raise UserError(f"image: size must be the target's (got {gray.shape[:2]} and {index.shape}).")
        result[:] = (130 + gray * (110 / 255)).astype(np.uint8)
    ignored = ignore_mask(index, ignore_index)
    result[ignored] = IGNORE_COLOR
    result[(pred != index) & ~ignored] = ERROR_COLOR
    return result
